"""Keeps an activation built on tanh from turning positive where its input is negative."""

from __future__ import annotations

import onnx
from onnx import helper

from neuroglot_exporter.errors import RewriteError
from neuroglot_exporter.rewrite.graph import GraphIndex, insert_after, scope_of


def keep_sign(model: onnx.ModelProto, activation_module: str, activation: str) -> bool:
    """Bound an activation by `max(x, 0)`, where x is the input of its module, if the module computes a `Tanh`.

    ONNX Runtime's tanh is an approximation that falls below -1 by an ulp or two between -9 and -8. The tanh form of
    GELU, `x / 2 (1 + tanh u)`, is then +3e-7 where x is about -5: next to nothing, but above a threshold of 0, so that
    a neuron which is deeply inactive would be typed as active (1 in 1,000 where x has a deviation of 3). No GELU
    exceeds `max(x, 0)`, so the bound changes nothing else. It is put behind the activation because ONNX Runtime fuses
    the nodes before it into one.

    Before: the nodes in the scope of the module make `activation` from one tensor. After: unless there is no `Tanh`
    among them, it is `Min` of their result and `Relu` of that tensor, and its consumers read the bounded tensor.

    Args:
        model: changed in place.
        activation_module: module path.
        activation: name of the tensor that the module makes.

    Returns:
        Whether the module computes a `Tanh`.

    Raises:
        RewriteError: it does, and reads more than one tensor from outside.
    """
    graph = model.graph
    scope = scope_of(activation_module)
    inside = [node for node in graph.node if node.name.startswith(scope)]
    if not any(node.op_type == "Tanh" for node in inside):
        return False
    made_inside = {tensor for node in inside for tensor in node.output}
    read = {tensor for node in inside for tensor in node.input} - made_inside
    if len(read) != 1:
        raise RewriteError(f"{activation_module} reads {', '.join(sorted(read)) or 'nothing'}; expected was one tensor")
    unbounded, bound = f"{activation}.unbounded", f"{activation}.bound"
    GraphIndex(graph).rename(activation, unbounded, read_as=activation)
    bounding = [
        helper.make_node("Relu", list(read), [bound], name=f"/{activation}/Relu"),
        helper.make_node("Min", [unbounded, bound], [activation], name=f"/{activation}/Min"),
    ]
    insert_after(graph, {unbounded: bounding})
    return True
