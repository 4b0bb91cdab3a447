"""Damages a bundle whose manifest still matches, so that only a comparison with transformers can find it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from neuroglot.definitions.bundle import WEIGHTS, describe_files, read_manifest, write_manifest


def damaged_copy(bundle: Path, folder: Path, damage: Callable[[Path], None]) -> Path:
    """A copy of a bundle, changed by `damage`, with a manifest of the new hashes."""
    shutil.copytree(bundle, folder)
    damage(folder)
    write_manifest(folder, dataclasses.replace(read_manifest(folder), files=describe_files(folder)))
    return folder


def change_graph(folder: Path, change: Callable[[onnx.GraphProto], None], component: str = "decoder") -> None:
    """Change a graph."""
    model = onnx.load(folder / f"{component}.onnx", load_external_data=False)
    change(model.graph)
    onnx.save(model, folder / f"{component}.onnx")


def change_weight(folder: Path, name: str, change: Callable[[np.ndarray], None], component: str = "decoder") -> None:
    """Change a weight in the external data."""
    model = onnx.load(folder / f"{component}.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    data = np.memmap(folder / WEIGHTS, dtype, "r+", offset=int(place["offset"]), shape=tuple(tensor.dims))
    change(data)
    data.flush()


def swap_layers(folder: Path, name: str, component: str = "decoder") -> None:
    """Swap the weights of the first two layers; `name` has `{i}` for the layer."""

    def swap(graph: onnx.GraphProto) -> None:
        first, second = (
            next(tensor for tensor in graph.initializer if tensor.name == name.format(i=i)) for i in range(2)
        )
        first.name, second.name = second.name, first.name

    change_graph(folder, swap, component)
