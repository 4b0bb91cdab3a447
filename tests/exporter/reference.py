"""Results of transformers, recorded and changed by forward hooks, and of a graph in bare ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import AutoModelForCausalLM

from neuroglot.definitions.bundle import StoredMatrix

TOLERANCE = 1e-4

Edit = Callable[[int, torch.Tensor], torch.Tensor]
"""Maps a layer and its activations `[1, positions, neurons]` to those that the model continues with."""


@dataclass(frozen=True)
class Modules:
    """Modules with a family's neurons, independent of `neuroglot_exporter.families`."""

    activation: str
    down_projection: str


MODULES = {
    "bloom": Modules("transformer.h.{i}.mlp.gelu_impl", "transformer.h.{i}.mlp.dense_4h_to_h"),
    "llama": Modules("model.layers.{i}.mlp.act_fn", "model.layers.{i}.mlp.down_proj"),
    "xglm": Modules("model.layers.{i}.activation_fn", "model.layers.{i}.fc2"),
}


class Transformers:
    """A checkpoint (a folder, or a GGUF file) in transformers, a row at a time, without padding."""

    def __init__(self, checkpoint: Path, family: str) -> None:
        folder, gguf_file = (checkpoint, None) if checkpoint.is_dir() else (checkpoint.parent, checkpoint.name)
        self.model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=torch.float32).eval()
        self.modules = MODULES[family]
        self.layers = self.model.config.num_hidden_layers

    def run(self, ids: Sequence[int], edit: Edit | None = None) -> dict[str, np.ndarray]:
        """`logits` `[positions, vocabulary]`; the others, stacked, `[layers, positions, neurons]`."""
        seen: dict[str, dict[int, torch.Tensor]] = {"pre_activation": {}, "activation": {}, "coefficient": {}}
        handles = []
        for i in range(self.layers):

            def on_activation(_module: Any, inputs: Any, output: torch.Tensor, i: int = i) -> torch.Tensor | None:
                seen["pre_activation"][i] = inputs[0][0].clone()
                seen["activation"][i] = output[0].clone()
                return None if edit is None else edit(i, output)

            def on_projection(_module: Any, inputs: Any, i: int = i) -> None:
                seen["coefficient"][i] = inputs[0][0].clone()

            activation = self.model.get_submodule(self.modules.activation.format(i=i))
            handles.append(activation.register_forward_hook(on_activation))
            projection = self.model.get_submodule(self.modules.down_projection.format(i=i))
            handles.append(projection.register_forward_pre_hook(on_projection))
        try:
            with torch.no_grad():
                logits = self.model(torch.tensor([list(ids)])).logits[0].numpy()
        finally:
            for handle in handles:
                handle.remove()
        taps = {name: np.stack([by_layer[i].numpy() for i in range(self.layers)]) for name, by_layer in seen.items()}
        return taps | {"logits": logits}


class Graph:
    """A bundle's graph in bare ONNX Runtime."""

    def __init__(self, bundle: Path, component: str = "decoder") -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(bundle / f"{component}.onnx", options)
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.layers = sum(name.endswith(".activation") for name in self.outputs)

    def no_past(self, rows: int) -> dict[str, np.ndarray]:
        """Past keys and values of length 0."""
        past = {}
        for info in self.session.get_inputs():
            if info.name.startswith("past_key_values."):
                _, heads, _, size = info.shape
                past[info.name] = np.zeros((rows, heads, 0, size), np.float32)
        return past

    def run(
        self,
        ids: np.ndarray,
        mask: np.ndarray,
        past: dict[str, np.ndarray] | None = None,
        start: int | None = -(2**40),
        **feeds: Any,
    ) -> dict[str, np.ndarray]:
        """All outputs; `activation` (and `coefficient`) are stacked, `[layers, rows, kept, neurons]`.

        `start` is given for activations and logits, and with None for neither.
        """
        starts = {} if start is None else dict.fromkeys(("activations_from", "logits_from"), np.array([start]))
        inputs = {"input_ids": ids, "attention_mask": mask} | (self.no_past(len(ids)) if past is None else past)
        if any(info.name == "position_ids" for info in self.session.get_inputs()):
            inputs["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        values = dict(zip(self.outputs, self.session.run(None, inputs | starts | feeds), strict=True))
        for tap in ("activation", "coefficient"):
            if f"ffn.0.{tap}" in values:
                values[tap] = np.stack([values[f"ffn.{i}.{tap}"] for i in range(self.layers)])
        return values

    @staticmethod
    def past_of(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The present outputs of a pass, as inputs of the next."""
        return {
            name.replace("present", "past_key_values"): value
            for name, value in values.items()
            if name.startswith("present.")
        }


def stored(bundle: Path, matrix: StoredMatrix) -> np.ndarray:
    """Read a matrix at the location in the manifest."""
    content = (bundle / matrix.file).read_bytes()[matrix.offset :]
    return np.frombuffer(content, matrix.dtype, matrix.rows * matrix.columns).reshape(matrix.rows, matrix.columns)


def left_padded(rows: Sequence[Sequence[int]], width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Token ids, with a valid but senseless token as padding, and the attention mask."""
    longest = width or max(map(len, rows))
    ids, mask = np.full((len(rows), longest), 7, np.int64), np.zeros((len(rows), longest), np.int64)
    for r, row in enumerate(rows):
        ids[r, longest - len(row) :], mask[r, longest - len(row) :] = row, 1
    return ids, mask
