"""Writes parameters into one external file, each once, straight from the model's memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import helper

_SMALL_ALIGNMENT = 64
_LARGE_ALIGNMENT = 4096
_LARGE_BYTES = 2**20


def write_weights(
    model: onnx.ModelProto, parameters: Mapping[str, torch.Tensor], transposed: frozenset[str], data_file: Path
) -> None:
    """Turn the graph inputs that are parameters into initializers whose values stand in an external file.

    Values are little-endian and row-major; large ones begin on a page, so that ONNX Runtime can map them.

    Args:
        model: changed in place.
        parameters: the tensors behind the inputs, by name.
        transposed: names of those that are to be stored transposed.
        data_file: is written; beside it the graph must be saved.
    """
    graph = model.graph
    inputs = [info for info in graph.input if info.name not in parameters]
    del graph.input[:]
    graph.input.extend(inputs)
    read = {tensor for node in graph.node for tensor in node.input}
    with data_file.open("wb") as file:
        for name, parameter in parameters.items():
            if name not in read:
                continue
            values = (parameter.T if name in transposed else parameter).contiguous().numpy()
            alignment = _LARGE_ALIGNMENT if values.nbytes >= _LARGE_BYTES else _SMALL_ALIGNMENT
            file.write(bytes(-file.tell() % alignment))
            graph.initializer.append(
                _external_tensor(
                    name,
                    values.shape,
                    helper.np_dtype_to_tensor_dtype(values.dtype),
                    data_file.name,
                    file.tell(),
                    values.nbytes,
                )
            )
            file.write(values.data)


def _external_tensor(
    name: str, shape: tuple[int, ...], element_type: int, location: str, offset: int, length: int
) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=element_type, dims=shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
