"""Computes the logits with the output embedding as it is stored."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from neuroglot_exporter.errors import RewriteError
from neuroglot_exporter.rewrite.graph import GraphIndex


def output_head(model: onnx.ModelProto, head: str) -> str:
    """Turn the head's `MatMul` with a transposed weight into a `Gemm` with the weight itself.

    Before: the module `head` is `MatMul(hidden, Transpose(weight))`. After: `hidden` is flattened to two dimensions,
    multiplied by `Gemm` with `transB`, and reshaped back. A tied embedding is then one initializer, and row r of an
    untied one is stored as the output embedding of token r.

    Args:
        model: changed in place.
        head: module path of the output embedding.

    Returns:
        The weight's name; `[vocabulary, hidden]`.

    Raises:
        RewriteError: the head does not match the above.
    """
    graph = model.graph
    index = GraphIndex(graph)
    matmul = index.matmul_of(head)
    transpose = index.producers.get(matmul.input[1])
    if transpose is None or transpose.op_type != "Transpose":
        raise RewriteError(f"{matmul.name} does not multiply with a transposed weight, so it is no linear layer")
    weight = transpose.input[0]
    info = next((value for value in graph.input if value.name == weight), None)
    if info is None:
        raise RewriteError(f"{matmul.name} multiplies with {weight}, which is no parameter of the model")
    vocabulary, hidden_size = (dimension.dim_value for dimension in info.type.tensor_type.shape.dim)

    def constant(name: str, *values: int) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name

    hidden, logits = matmul.input[0], matmul.output[0]
    replacement = [
        helper.make_node(
            "Reshape",
            [hidden, constant("output_head.flat", -1, hidden_size)],
            ["output_head.hidden"],
            name="/head/Flatten",
        ),
        helper.make_node("Gemm", ["output_head.hidden", weight], ["output_head.logits"], name="/head/Gemm", transB=1),
        helper.make_node("Shape", [hidden], ["output_head.rows"], name="/head/Rows", start=0, end=2),
        helper.make_node(
            "Concat",
            ["output_head.rows", constant("output_head.vocabulary", vocabulary)],
            ["output_head.shape"],
            name="/head/Concat",
            axis=0,
        ),
        # allowzero: a start past the end keeps no position, and a 0 must not mean "as before".
        helper.make_node(
            "Reshape", ["output_head.logits", "output_head.shape"], [logits], name="/head/Reshape", allowzero=1
        ),
    ]
    nodes = list(graph.node)
    position = nodes.index(matmul)
    if index.consumers[transpose.output[0]] == [matmul]:
        nodes.remove(transpose)
        position -= 1
    nodes[position : position + 1] = replacement
    del graph.node[:]
    graph.node.extend(nodes)
    return weight
