"""Writes the components of a bundle: their graphs, weights, and the norms of their value rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import torch

from neuroglot.definitions.bundle import WEIGHTS, Component, StoredMatrix
from neuroglot_exporter.errors import RewriteError
from neuroglot_exporter.families.family import Family, Ffn
from neuroglot_exporter.rewrite.document import document
from neuroglot_exporter.rewrite.early_shapes import early_shapes
from neuroglot_exporter.rewrite.expose_ffn import expose_ffn
from neuroglot_exporter.rewrite.fold_transposes import fold_transposes
from neuroglot_exporter.rewrite.fork_rows import fork_rows
from neuroglot_exporter.rewrite.graph import GraphIndex
from neuroglot_exporter.rewrite.keep_sign import keep_sign
from neuroglot_exporter.rewrite.keep_trailing import keep_trailing_logits, keep_trailing_outputs
from neuroglot_exporter.rewrite.output_head import output_head
from neuroglot_exporter.t5_graphs import trace_decoder, trace_encoder
from neuroglot_exporter.tracing import TracedGraph, trace_causal
from neuroglot_exporter.weights import WeightsFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OUTPUT_EMBEDDING = "output_embedding"
_ELEMENT_TYPES = {torch.float32: onnx.TensorProto.FLOAT, torch.float16: onnx.TensorProto.FLOAT16}


class Written(NamedTuple):
    """The written components, and the location of the output embedding."""

    components: tuple[Component, ...]
    output_embedding: StoredMatrix


def write_components(model: PreTrainedModel, family: Family, folder: Path) -> Written:
    """Trace every component, expose its FFN, and write `NAME.onnx`, `NAME.norms.npy`, and the weights of all of them.

    The graphs' metadata name the initializers that attribution needs: `value_matrix.{i}` `[neurons, hidden]` for every
    layer i, and where there are logits `output_embedding` `[vocabulary, hidden]`.

    Args:
        model: in eval mode, on the CPU.
        family: its family.
        folder: of the bundle.

    Raises:
        RewriteError: a traced graph does not match the family.
    """
    traces = {"encoder": trace_encoder, "decoder": trace_decoder if family.encoder_decoder else trace_causal}
    components, embeddings = [], []
    with (folder / WEIGHTS).open("wb") as file:
        weights = WeightsFile(file)
        for ffn in family.ffns:
            component, matrices = _write_component(model, family, ffn, traces[ffn.component](model), weights, folder)
            components.append(component)
            embeddings += [matrix for name, matrix in matrices.items() if name == _OUTPUT_EMBEDDING]
    for component in components:
        onnx.checker.check_model(folder / component.graph, full_check=True)
    (output_embedding,) = embeddings
    return Written(tuple(components), output_embedding)


def _write_component(
    model: PreTrainedModel, family: Family, ffn: Ffn, traced: TracedGraph, weights: WeightsFile, folder: Path
) -> tuple[Component, dict[str, StoredMatrix]]:
    """Write one component. Also returns the locations of the matrices that its metadata name."""
    layers = ffn.layers(model.config)
    values = [value_matrix(model, layer.down_projection) for layer in layers]
    hidden_size, neurons = values[0].shape

    graph = traced.model
    early_shapes(graph)
    gated = expose_ffn(graph, layers, neurons, _ELEMENT_TYPES[model.dtype])
    for i, layer in enumerate(layers):
        keep_sign(graph, layer.activation, f"ffn.{i}.activation")
    taps = [output.name for output in graph.graph.output if output.name.startswith("ffn.")]
    keep_trailing_outputs(graph, taps, "activations_from", "activations_kept")
    pasts = [info.name for info in graph.graph.input if info.name.startswith("past_key_values.")]
    cross = [name for name in pasts if ".encoder." in name]
    if cross:
        fork_rows(graph, cross, "cross_rows", "cross_sources")
    if pasts:
        fork_rows(graph, [name for name in pasts if name not in cross], "past_rows", "past_sources")
        present = [output.name for output in graph.graph.output if output.name.startswith("present.")]
        keep_trailing_outputs(graph, present, "present_from", "present_kept", axis=2, default=0)
    metadata = {}
    if any(output.name == "logits" for output in graph.graph.output):
        keep_trailing_logits(graph, family.output_embedding, "logits_from", "logits_kept")
        metadata[_OUTPUT_EMBEDDING] = output_head(graph, family.output_embedding)
    transposed = fold_transposes(graph, traced.parameters)
    index = GraphIndex(graph.graph)
    metadata |= {f"value_matrix.{i}": index.matmul_of(layer.down_projection).input[1] for i, layer in enumerate(layers)}
    summary = f"{ffn.component} of {family.name}: {len(layers)} FFN layers of {neurons} neurons, shown and maskable"
    document(graph, ffn.component, summary, metadata)

    graph_file = folder / f"{ffn.component}.onnx"
    matrices = _named(metadata, weights.add(graph, traced.parameters, transposed))
    onnx.save(graph, graph_file)
    norms_file = folder / f"{ffn.component}.norms.npy"
    np.save(norms_file, value_norms(values))
    component = Component(
        name=ffn.component,
        graph=graph_file.name,
        norms=norms_file.name,
        layers=len(layers),
        neurons=neurons,
        hidden_size=hidden_size,
        activation_function=family.activation_function(model.config),
        gated=gated,
        values=tuple(matrices[f"value_matrix.{i}"] for i in range(len(layers))),
    )
    return component, matrices


def _named(metadata: Mapping[str, str], stored: Mapping[str, StoredMatrix]) -> dict[str, StoredMatrix]:
    """Locations of the matrices that the metadata name.

    Raises:
        RewriteError: one of them is not a parameter, so it is not stored as the graph reads it.
    """
    for what, name in metadata.items():
        if name not in stored:
            raise RewriteError(
                f"{what} is {name} in the traced graph, which is no parameter: something else reads it too"
            )
    return {what: stored[name] for what, name in metadata.items()}


def value_matrix(model: PreTrainedModel, down_projection: str) -> torch.Tensor:
    """A layer's down projection as torch keeps it, `[hidden, neurons]`: neuron i's value `v_i` is column i."""
    return model.get_parameter(f"{down_projection}.weight").detach()


def value_norms(values: list[torch.Tensor]) -> np.ndarray:
    """The Euclidean norm of every neuron's value, `||v_i||` of Eq. 3, float32 `[layers, neurons]`."""
    norms = [torch.linalg.vector_norm(matrix, dim=0, dtype=torch.float32) for matrix in values]
    return torch.stack(norms).numpy()
