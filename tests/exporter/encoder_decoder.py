"""Encoder-decoders: the results of transformers, recorded and changed by hooks, and those of the graphs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM

from tests.exporter.reference import Edit, Graph, left_padded

MODULES = {
    "encoder": "encoder.block.{i}.layer.1.DenseReluDense",
    "decoder": "decoder.block.{i}.layer.2.DenseReluDense",
}
"""Independent of `neuroglot_exporter.families`."""

START = 3
Taps = dict[str, np.ndarray]


class Row(NamedTuple):
    prompt: list[int]
    steps: list[int]
    """What the decoder reads: the start token and an answer."""


class Transformers:
    """A checkpoint in transformers, a row at a time, without padding."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        config = self.model.config
        self.layers = {"encoder": config.num_layers, "decoder": config.num_decoder_layers}

    def run(self, row: Row, edits: Mapping[str, Edit] | None = None) -> dict[str, Taps]:
        """By component: taps `[layers, positions, neurons]`; the decoder's also hold the logits."""
        seen: dict[tuple[str, str, int], torch.Tensor] = {}
        handles = []
        for component, path in MODULES.items():
            edit = (edits or {}).get(component)
            for i in range(self.layers[component]):

                def on_activation(_m: Any, inputs: Any, output: Any, at: Any = (component, i), edit: Any = edit) -> Any:
                    seen["pre_activation", *at] = inputs[0][0].clone()
                    seen["activation", *at] = output[0].clone()
                    return None if edit is None else edit(at[1], output)

                def on_projection(_m: Any, inputs: Any, at: Any = (component, i)) -> None:
                    seen["coefficient", *at] = inputs[0][0].clone()

                module = self.model.get_submodule(path.format(i=i))
                handles.append(module.act.register_forward_hook(on_activation))
                handles.append(module.wo.register_forward_pre_hook(on_projection))
        try:
            with torch.no_grad():
                output = self.model(torch.tensor([row.prompt]), decoder_input_ids=torch.tensor([row.steps]))
        finally:
            for handle in handles:
                handle.remove()
        taps = {
            component: {
                tap: np.stack([seen[tap, component, i].numpy() for i in range(layers)])
                for tap in ("pre_activation", "activation", "coefficient")
            }
            for component, layers in self.layers.items()
        }
        taps["decoder"]["logits"] = output.logits[0].numpy()
        return taps


class Graphs:
    """Both graphs of a bundle in bare ONNX Runtime."""

    def __init__(self, bundle: Path) -> None:
        self.encoder, self.decoder = Graph(bundle, "encoder"), Graph(bundle, "decoder")
        self.layers = {"encoder": self.encoder.layers, "decoder": self.decoder.layers}

    def encode(self, ids: np.ndarray, mask: np.ndarray, start: int | None = -(2**40), **feeds: Any) -> Taps:
        return _stacked(self.encoder, {"input_ids": ids, "attention_mask": mask} | _starts(self.encoder, start) | feeds)

    def decode(
        self,
        ids: np.ndarray,
        mask: np.ndarray,
        encoded: Taps,
        encoder_mask: np.ndarray,
        past: Taps | None = None,
        start: int | None = -(2**40),
        **feeds: Any,
    ) -> Taps:
        cross = {name.replace("present", "past_key_values"): v for name, v in encoded.items() if "present" in name}
        masks = {"decoder_attention_mask": mask, "encoder_attention_mask": encoder_mask}
        none = {name: value for name, value in self.decoder.no_past(len(ids)).items() if ".decoder." in name}
        inputs = {"input_ids": ids, **masks, **cross, **(none if past is None else past)}
        return _stacked(self.decoder, inputs | _starts(self.decoder, start) | feeds)

    def run(self, rows: Sequence[Row], edits: Mapping[str, Mapping[str, np.ndarray]] | None = None) -> dict[str, Taps]:
        """All rows in one left-padded batch."""
        feeds = {"encoder": {}, "decoder": {}} | dict(edits or {})
        prompts, prompt_mask = left_padded([row.prompt for row in rows])
        encoded = self.encode(prompts, prompt_mask, **feeds["encoder"])
        decoded = self.decode(*left_padded([row.steps for row in rows]), encoded, prompt_mask, None, **feeds["decoder"])
        return {"encoder": encoded, "decoder": decoded}


def _starts(graph: Graph, start: int | None) -> dict[str, np.ndarray]:
    names = {info.name for info in graph.session.get_overridable_initializers()} & {"activations_from", "logits_from"}
    return {} if start is None else dict.fromkeys(names, np.array([start]))


def _stacked(graph: Graph, inputs: dict[str, np.ndarray]) -> Taps:
    values = dict(zip(graph.outputs, graph.session.run(None, inputs), strict=True))
    for tap in ("activation", "coefficient"):
        if f"ffn.0.{tap}" in values:
            values[tap] = np.stack([values[f"ffn.{i}.{tap}"] for i in range(graph.layers)])
    return values
