"""Writes parameters into one external file, each once, directly from the model's memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import torch
from onnx import helper

from neuroglot.definitions.bundle import StoredMatrix

_SMALL_ALIGNMENT = 64
_LARGE_ALIGNMENT = 4096
_LARGE_BYTES = 2**20


class WeightsFile:
    """A bundle's external file. Parameters shared by several graphs are written once."""

    def __init__(self, file: BinaryIO) -> None:
        """Write into a named open file. The graphs must be saved in the same folder."""
        self._file = file
        self._location = Path(file.name).name
        self._written: dict[tuple[int, torch.Size, bool], tuple[int, int]] = {}

    def add(
        self, model: onnx.ModelProto, parameters: Mapping[str, torch.Tensor], transposed: frozenset[str]
    ) -> dict[str, StoredMatrix]:
        """Turn the graph inputs that are parameters into initializers whose values are in the file.

        Values are little-endian and row-major; large ones begin on a page, so that ONNX Runtime can map them.

        Args:
            model: changed in place.
            parameters: the tensors behind the inputs, by name; they must live as long as this object.
            transposed: names of the parameters to store transposed.

        Returns:
            Locations of the two-dimensional parameters, by name.
        """
        graph = model.graph
        inputs = [info for info in graph.input if info.name not in parameters]
        del graph.input[:]
        graph.input.extend(inputs)
        read = {tensor for node in graph.node for tensor in node.input}
        matrices = {}
        for name, parameter in parameters.items():
            if name not in read:
                continue
            stored = parameter.T if name in transposed else parameter
            offset, length = self._place(parameter, stored, name in transposed)
            dtype = str(parameter.dtype).removeprefix("torch.")
            element_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            graph.initializer.append(
                _external_tensor(name, tuple(stored.shape), element_type, self._location, offset, length)
            )
            if stored.dim() == 2:
                rows, columns = stored.shape
                matrices[name] = StoredMatrix(self._location, offset, rows, columns, dtype)
        return matrices

    def _place(self, parameter: torch.Tensor, stored: torch.Tensor, transposed: bool) -> tuple[int, int]:
        """Write a tensor unless it was written already; returns its offset and length in the file, in bytes."""
        key = (parameter.data_ptr(), parameter.shape, transposed)
        if key not in self._written:
            values = stored.contiguous().numpy()
            alignment = _LARGE_ALIGNMENT if values.nbytes >= _LARGE_BYTES else _SMALL_ALIGNMENT
            self._file.write(bytes(-self._file.tell() % alignment))
            self._written[key] = (self._file.tell(), values.nbytes)
            self._file.write(values.data)
        return self._written[key]


def _external_tensor(
    name: str, shape: tuple[int, ...], element_type: int, location: str, offset: int, length: int
) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=element_type, dims=shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
