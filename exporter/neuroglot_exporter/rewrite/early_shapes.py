"""Reads a tensor's shape before it is transposed, so that only a product needs the transposed tensor."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from neuroglot_exporter.rewrite.graph import GraphIndex, insert_after


def early_shapes(model: onnx.ModelProto) -> None:
    """Let every `Shape` of a transposed tensor read the tensor itself, and permute its result.

    Before: keys may be transposed for a product and for a `Shape`, so that ONNX Runtime cannot fuse the transposition
    into the product and copies all past keys in every layer. After: the results are the same, and the `Transpose` has
    one consumer, into which ONNX Runtime fuses it.

    Args:
        model: changed in place.
    """
    graph = model.graph
    index = GraphIndex(graph)
    additions = {}
    for node in graph.node:
        made_by = index.producers.get(node.input[0]) if node.op_type == "Shape" and not node.attribute else None
        if made_by is None or made_by.op_type != "Transpose":
            continue
        whole, order = node.output[0], f"{node.output[0]}.order"
        permutation = np.array(helper.get_node_attr_value(made_by, "perm"), dtype=np.int64)
        graph.initializer.append(numpy_helper.from_array(permutation, order))
        node.input[0], node.output[0] = made_by.input[0], f"{whole}.before"
        additions[node.output[0]] = [
            helper.make_node("Gather", [node.output[0], order], [whole], name=f"/{whole}/Gather", axis=0)
        ]
    insert_after(graph, additions)
