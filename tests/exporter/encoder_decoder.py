"""What transformers computes with an encoder-decoder, watched and changed by forward hooks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM

from tests.exporter.reference import Edit

MODULES = {
    "encoder": "encoder.block.{i}.layer.1.DenseReluDense",
    "decoder": "decoder.block.{i}.layer.2.DenseReluDense",
}
"""Written down apart from `neuroglot_exporter.families`."""

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
