"""Stores a weight in the layout that its only consumer reads."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from neuroglot_exporter.rewrite.graph import GraphIndex


def fold_transposes(model: onnx.ModelProto, parameters: Collection[str]) -> frozenset[str]:
    """Remove the transposes of parameters that have no other consumer.

    torch keeps the weight of a linear layer as `[out, in]` and multiplies with its transpose, `[in, out]`. ONNX Runtime
    would transpose each of them at every start, into additional memory.

    Before: a parameter is read by one `Transpose` of two dimensions and by nothing else. After: consumers of
    the transpose read the parameter, whose declared shape is reversed; the weights must be stored transposed. Other
    parameters are unchanged.

    Args:
        model: changed in place.
        parameters: names of the graph inputs that are parameters.

    Returns:
        Names of the parameters to be stored transposed.
    """
    graph = model.graph
    index = GraphIndex(graph)
    infos = {info.name: info for info in graph.input}
    folded = set()
    for name in parameters:
        readers = index.consumers[name]
        shape = infos[name].type.tensor_type.shape
        if len(readers) != 1 or readers[0].op_type != "Transpose" or len(shape.dim) != 2:
            continue
        transpose = readers[0]
        index.redirect(transpose.output[0], name)
        graph.node.remove(transpose)
        first, second = (dimension.dim_value for dimension in shape.dim)
        shape.dim[0].dim_value, shape.dim[1].dim_value = second, first
        folded.add(name)
    return frozenset(folded)
