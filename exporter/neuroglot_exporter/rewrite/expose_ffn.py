"""Exposes the activations of every FFN layer, with inputs to mask and override them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from neuroglot_exporter.errors import RewriteError
from neuroglot_exporter.families.family import FfnLayer
from neuroglot_exporter.rewrite.graph import GraphIndex, insert_after, optional_input, scope_of

_PASSES_THROUGH = frozenset({"Cast", "Identity"})


def expose_ffn(model: onnx.ModelProto, layers: Sequence[FfnLayer], neurons: int, element_type: int) -> bool:
    """Replace every layer's activation by `value = mask * activation + override`.

    Before: each layer's down projection is a `MatMul` in its module's scope; its first input is made in the scope of
    the activation module (a plain FFN), or is a `Mul` of one tensor made there and another (a gated one). Casts
    between them are skipped. After: for every layer i, counted from 0,

    - `ffn.{i}.mask` and `ffn.{i}.override` are optional inputs, 1 and 0 unless given;
    - `ffn.{i}.activation` is an output: the activation before mask and override, `[rows, positions, neurons]`;
    - if gated, `ffn.{i}.coefficient` is an output, too: the input of the down projection, after mask and override.

    Args:
        model: changed in place.
        layers: the layers in their order.
        neurons: width of an activation.
        element_type: of the activations, `onnx.TensorProto.FLOAT` or `FLOAT16`.

    Returns:
        Whether the layers are gated.

    Raises:
        RewriteError: a layer does not match the above, or only some layers are gated.
    """
    gated = {_expose_layer(model.graph, i, layer, neurons, element_type) for i, layer in enumerate(layers)}
    if len(gated) != 1:
        raise RewriteError("some layers are gated and some are not: neuroglot knows no such model")
    return gated.pop()


def _expose_layer(graph: onnx.GraphProto, i: int, layer: FfnLayer, neurons: int, element_type: int) -> bool:
    index = GraphIndex(graph)
    activation, product = _find_activation(index, layer)
    inside = [node.name for node in index.consumers[activation] if node.name.startswith(scope_of(layer.activation))]
    if inside:
        raise RewriteError(f"{inside[0]} reads {activation}, so it is not the last tensor of {layer.activation}")

    tap, mask, override = f"ffn.{i}.activation", f"ffn.{i}.mask", f"ffn.{i}.override"
    index.rename(activation, tap, read_as=f"ffn.{i}.value")
    _add_output(graph, tap, element_type, neurons, f"activations of layer {i}, before mask and override")
    if product is not None:
        coefficient = f"ffn.{i}.coefficient"
        index.rename(product, coefficient, read_as=coefficient)
        _add_output(graph, coefficient, element_type, neurons, f"what multiplies the value rows of layer {i}")
    for name, default, what in ((mask, 1.0, "multiplies"), (override, 0.0, "is added to")):
        optional_input(
            graph,
            helper.make_tensor(name, element_type, [1, 1, 1], [default]),
            (f"{name}.rows", f"{name}.positions", f"{name}.neurons"),
            f"{what} the activations of layer {i}; each dimension is 1 or that of the activations",
        )
    meaning = f"ffn.{i}.value = ffn.{i}.mask * ffn.{i}.activation + ffn.{i}.override"
    intervention = [
        helper.make_node("Mul", [mask, tap], [f"ffn.{i}.masked"], name=f"/ffn.{i}/Mul", doc_string=meaning),
        helper.make_node(
            "Add", [f"ffn.{i}.masked", override], [f"ffn.{i}.value"], name=f"/ffn.{i}/Add", doc_string=meaning
        ),
    ]
    insert_after(graph, {tap: intervention})
    return product is not None


def _find_activation(index: GraphIndex, layer: FfnLayer) -> tuple[str, str | None]:
    """The activation's tensor and, if gated, its product with the up projection."""
    scope = scope_of(layer.activation)
    coefficient = _look_through(index, index.matmul_of(layer.down_projection).input[0])
    producer = index.producers.get(coefficient)
    if producer is None:
        raise RewriteError(f"the input of {layer.down_projection} is {coefficient}; expected was {layer.activation}")
    if producer.name.startswith(scope):
        return coefficient, None
    if producer.op_type == "Mul":
        operands = [_look_through(index, operand) for operand in producer.input]
        made_inside = [
            operand
            for operand in operands
            if operand in index.producers and index.producers[operand].name.startswith(scope)
        ]
        if len(made_inside) == 1:
            return made_inside[0], coefficient
    raise RewriteError(
        f"the input of {layer.down_projection} is made by {producer.op_type} {producer.name}; expected was "
        f"{layer.activation}, or its product with a gate"
    )


def _look_through(index: GraphIndex, tensor: str) -> str:
    """The tensor before any casts."""
    while (producer := index.producers.get(tensor)) is not None and producer.op_type in _PASSES_THROUGH:
        tensor = producer.input[0]
    return tensor


def _add_output(graph: onnx.GraphProto, name: str, element_type: int, neurons: int, documentation: str) -> None:
    shape: list[str | int | None] = ["batch_size", "sequence_length", neurons]
    graph.output.append(helper.make_tensor_value_info(name, element_type, shape, doc_string=documentation))
