"""Lets rows of a pass go on from keys and values that are fed once for several of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from neuroglot_exporter.errors import RewriteError
from neuroglot_exporter.rewrite.graph import GraphIndex, optional_input, sort_nodes

_DOCUMENTATION = "[rows]; which of the rows of {} each row goes on from, negative: its own"
_JOINS = {"Concat", "MatMul"}
"""Where keys and values come together with something of the pass's own rows."""


def fork_rows(model: onnx.ModelProto, pasts: Iterable[str], rows: str, sources: str) -> None:
    """Pick each row's keys and values from those that are fed, layer by layer.

    Before: the inputs `pasts` are `[rows, heads, positions, head_size]`. After: `[sources, heads, positions,
    head_size]`, and the optional input `rows` says from which of them each row goes on.

    The index is taken in every layer anew, from a tensor of that layer: so nothing can be picked before the layer is
    run, and what is picked of all layers is not held at once.

    Args:
        model: changed in place.
        pasts: names of inputs that end in `.key` and `.value`, each of which has one reader.
        rows: name of the optional input.
        sources: symbol for the number of rows that are fed.

    Raises:
        RewriteError: an input has several readers, or meets no tensor of the pass's own rows.
    """
    graph = model.graph
    own = numpy_helper.from_array(np.array([-1], dtype=np.int64), rows)
    optional_input(graph, own, (f"{rows}_or_1",), _DOCUMENTATION.format(sources))
    for name, value in ((f"{rows}.first", 0), (f"{rows}.step", 1)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.int64), name))
    index = GraphIndex(graph)
    infos = {info.name: info for info in graph.input}
    indexed: dict[str, str] = {}
    for past in pasts:
        layer = past.rpartition(".")[0]
        if layer not in indexed:
            indexed[layer] = f"{layer}.{rows}"
            graph.node.extend(_index(rows, indexed[layer], _beside(index, past)))
        reader = _reader(index, past)
        reader.input[list(reader.input).index(past)] = f"{past}.picked"
        graph.node.append(
            helper.make_node("Gather", [past, indexed[layer]], [f"{past}.picked"], name=f"/{past}/Gather", axis=0)
        )
        infos[past].type.tensor_type.shape.dim[0].dim_param = sources
    sort_nodes(graph)


def _beside(index: GraphIndex, past: str) -> str:
    """The tensor of the pass's own rows that keys or values meet first, whose first dimension is the rows."""
    tensor = past
    while True:
        node = _reader(index, tensor)
        others = [name for name in node.input if name != tensor]
        if node.op_type in _JOINS and others:
            return others[0]
        tensor = node.output[0]


def _reader(index: GraphIndex, tensor: str) -> onnx.NodeProto:
    """The node that reads a tensor, but for what asks how many positions there are: those are the same for all rows.

    Raises:
        RewriteError: there is none, or there are several.
    """
    readers = [node for node in index.consumers[tensor] if node.op_type != "Shape"]
    if len(readers) != 1:
        names = ", ".join(node.name for node in readers) or "nothing"
        raise RewriteError(f"{tensor} is read by {names}, expected one node on the way to the pass's own rows")
    return readers[0]


def _index(rows: str, name: str, beside: str) -> list[onnx.NodeProto]:
    """Nodes that make a layer's index: the input, or where that is negative each row's own place."""
    shape, count, own, unsaid = (f"{name}.{part}" for part in ("shape", "count", "own", "unsaid"))
    first, step = f"{rows}.first", f"{rows}.step"

    def node(kind: str, read: list[str], made: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, read, [made], name=f"/{made}/{kind}", **attributes)

    return [
        node("Shape", [beside], shape, start=0, end=1),
        node("Squeeze", [shape], count),
        node("Range", [first, count, step], own),
        node("Less", [rows, first], unsaid),
        node("Where", [unsaid, own, rows], name),
    ]
