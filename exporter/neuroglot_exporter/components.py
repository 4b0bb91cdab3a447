"""Writes one component of a bundle: its graph, its weights, and the norms of its value rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch

from neuroglot.bundle import Component
from neuroglot_exporter.families.family import Family, Ffn
from neuroglot_exporter.rewrite.expose_ffn import expose_ffn
from neuroglot_exporter.rewrite.fold_transposes import fold_transposes
from neuroglot_exporter.rewrite.graph import GraphIndex
from neuroglot_exporter.rewrite.keep_sign import keep_sign
from neuroglot_exporter.rewrite.keep_trailing import keep_trailing_logits, keep_trailing_outputs
from neuroglot_exporter.rewrite.output_head import output_head
from neuroglot_exporter.tracing import describe_causal, trace
from neuroglot_exporter.weights import write_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write_component(model: PreTrainedModel, family: Family, ffn: Ffn, folder: Path) -> Component:
    """Trace a component, open its FFN, and write `NAME.onnx`, `NAME.onnx.data` and `NAME.norms.npy`.

    The graph's metadata name the initializers that attribution needs: `value_matrix.{i}` `[neurons, hidden]` for every
    layer i, and `output_embedding` `[vocabulary, hidden]`.

    Args:
        model: in float32 and eval mode, on the CPU.
        family: its family.
        ffn: where the component's neurons are.
        folder: of the bundle.

    Raises:
        RewriteError: the traced graph is not what the family says.
    """
    layers = ffn.layers(model.config)
    values = [value_matrix(model, layer.down_projection) for layer in layers]
    hidden_size, neurons = values[0].shape

    traced = trace(model, describe_causal(model))
    gated = expose_ffn(traced.model, layers, neurons, onnx.TensorProto.FLOAT)
    for i, layer in enumerate(layers):
        keep_sign(traced.model, layer.activation, f"ffn.{i}.activation")
    taps = [output.name for output in traced.model.graph.output if output.name.startswith("ffn.")]
    keep_trailing_outputs(traced.model, taps, "activations_from", "activations_kept")
    keep_trailing_logits(traced.model, family.output_embedding, "logits_from", "logits_kept")
    output_embedding = output_head(traced.model, family.output_embedding)
    transposed = fold_transposes(traced.model, traced.parameters)
    index = GraphIndex(traced.model.graph)
    matrices = {f"value_matrix.{i}": index.matmul_of(layer.down_projection).input[1] for i, layer in enumerate(layers)}
    onnx.helper.set_model_props(traced.model, {**matrices, "output_embedding": output_embedding})

    graph_file = folder / f"{ffn.component}.onnx"
    write_weights(traced.model, traced.parameters, transposed, folder / f"{graph_file.name}.data")
    onnx.save(traced.model, graph_file)
    onnx.checker.check_model(graph_file, full_check=True)
    norms_file = folder / f"{ffn.component}.norms.npy"
    np.save(norms_file, value_norms(values))
    return Component(
        name=ffn.component,
        graph=graph_file.name,
        norms=norms_file.name,
        layers=len(layers),
        neurons=neurons,
        hidden_size=hidden_size,
        activation_function=family.activation_function(model.config),
        gated=gated,
    )


def value_matrix(model: PreTrainedModel, down_projection: str) -> torch.Tensor:
    """A layer's down projection as torch keeps it, `[hidden, neurons]`: neuron i's value `v_i` is column i."""
    return model.get_parameter(f"{down_projection}.weight").detach()


def value_norms(values: list[torch.Tensor]) -> np.ndarray:
    """The Euclidean norm of every neuron's value, `||v_i||` of Eq. 3, float32 `[layers, neurons]`."""
    norms = [torch.linalg.vector_norm(matrix, dim=0, dtype=torch.float32) for matrix in values]
    return torch.stack(norms).numpy()
