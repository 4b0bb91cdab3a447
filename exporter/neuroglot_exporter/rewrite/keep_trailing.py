"""Restricts tensors to trailing positions, from a start that is an optional input."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from neuroglot_exporter.rewrite.graph import (
    LAST_POSITION,
    GraphIndex,
    insert_after,
    optional_input,
)


def keep_trailing_outputs(
    model: onnx.ModelProto, outputs: Iterable[str], start: str, kept: str, *, axis: int = 1, default: int = -1
) -> None:
    """Cut outputs to the positions from `start` on.

    Before: the outputs are `[rows, positions, ...]`. After: `[rows, kept, ...]`; nodes of the graph that read
    these tensors still read all positions.

    Args:
        model: changed in place.
        outputs: names of outputs.
        start: name of the optional input with the first position.
        kept: symbol for the number of kept positions.
        axis: axis of the positions.
        default: default of the optional input; 0 for all positions.
    """
    graph = model.graph
    _add_start(graph, start, axis, default)
    index = GraphIndex(graph)
    infos = {info.name: info for info in graph.output}
    additions = {}
    for name in outputs:
        whole = f"{name}.all_positions"
        index.rename(name, whole, read_as=whole)
        additions[whole] = [_trailing_slice(whole, name, start)]
        infos[name].type.tensor_type.shape.dim[axis].dim_param = kept
    insert_after(graph, additions)


def keep_trailing_logits(model: onnx.ModelProto, head: str, start: str, kept: str) -> None:
    """Compute the logits of the positions from `start` on only.

    Before: the module `head` is a `MatMul` of `[rows, positions, hidden]` that makes the output `logits`. After: it
    reads the trailing positions only.

    Args:
        model: changed in place.
        head: module path of the output embedding.
        start: name of the optional input with the first position.
        kept: symbol for the number of kept positions.

    Raises:
        RewriteError: the module has no `MatMul`.
    """
    graph = model.graph
    _add_start(graph, start)
    matmul = GraphIndex(graph).matmul_of(head)
    hidden, trailing = matmul.input[0], "output_hidden.trailing"
    matmul.input[0] = trailing
    insert_after(graph, {hidden: [_trailing_slice(hidden, trailing, start)]})
    logits = next(info for info in graph.output if info.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = kept


def _add_start(graph: onnx.GraphProto, name: str, axis: int = 1, default: int = -1) -> None:
    documentation = "[1]; first position that is given, negative: counted from the end; past the end gives none"
    optional_input(graph, numpy_helper.from_array(np.array([default], dtype=np.int64), name), (1,), documentation)
    for constant, value in ((f"{name}.end", LAST_POSITION), (f"{name}.axis", axis)):
        graph.initializer.append(numpy_helper.from_array(np.array([value], dtype=np.int64), constant))


def _trailing_slice(tensor: str, output: str, start: str) -> onnx.NodeProto:
    return helper.make_node(
        "Slice", [tensor, start, f"{start}.end", f"{start}.axis"], [output], name=f"/{output}/Slice"
    )
