"""Lets several rows of a pass fork from the same keys and values, which are fed once."""

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
"""Nodes that join past keys and values with tensors of the pass's own rows."""


def fork_rows(model: onnx.ModelProto, pasts: Iterable[str], rows: str, sources: str) -> None:
    """Pick each row's keys and values from those that are fed, layer by layer.

    Before: the inputs `pasts` are `[rows, heads, positions, head_size]`. After: `[sources, heads, positions,
    head_size]`, and the optional input `rows` gives the index of the source of each row.

    Each layer computes its own index, from a tensor of that layer. Keys and values can then be gathered only once the
    layer runs, and those of all layers are never in memory at once.

    Args:
        model: changed in place.
        pasts: names of inputs that end in `.key` and `.value`, each of which has one reader.
        rows: name of the optional input.
        sources: symbol for the number of sources.

    Raises:
        RewriteError: an input has several consumers, or is joined with no tensor of the pass's own rows.
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
    """The first tensor of the pass's own rows, `[rows, ...]`, that keys or values are joined with."""
    tensor = past
    while True:
        node = _reader(index, tensor)
        others = [name for name in node.input if name != tensor]
        if node.op_type in _JOINS and others:
            return others[0]
        tensor = node.output[0]


def _reader(index: GraphIndex, tensor: str) -> onnx.NodeProto:
    """The only consumer of a tensor. `Shape` nodes do not count: the number of positions is the same for all rows.

    Raises:
        RewriteError: there is none, or there are several.
    """
    readers = [node for node in index.consumers[tensor] if node.op_type != "Shape"]
    if len(readers) != 1:
        names = ", ".join(node.name for node in readers) or "nothing"
        raise RewriteError(f"{tensor} is read by {names}, expected one node on the way to the pass's own rows")
    return readers[0]


def _index(rows: str, name: str, beside: str) -> list[onnx.NodeProto]:
    """Nodes that make a layer's index: the input, or each row's own index where that is negative."""
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
