"""What a user with ONNX Runtime alone would write: a loop over batches of whole prompts, made by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import neuroglot as ng

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from tokenizers import Tokenizer

_NONE = np.array([np.iinfo(np.int64).max])


class BareLoop:
    """A plain session of a bundle's decoder."""

    def __init__(self, bundle: Path, threads: int = 0) -> None:
        """Start the session."""
        onnxruntime.set_default_logger_severity(3)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(bundle / "decoder.onnx", options, ["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        past = [one for one in self._session.get_inputs() if one.name.startswith("past_key_values")]
        self._past = {one.name: (one.shape[1], one.shape[3]) for one in past}
        self.layers = len(past) // 2
        self.neurons = self._session.run(["ffn.0.activation"], self._feeds([(1,)]))[0].shape[-1]
        self._taps = [f"ffn.{layer}.activation" for layer in range(self.layers)]

    def encode(self, groups: Sequence[ng.Group]) -> list[tuple[int, ...]]:
        """The tokens of all prompts of groups."""
        return [tuple(self._tokenizer.encode(text).ids) for group in groups for text in group.prompts.values()]

    def tap(self, rows: Sequence[tuple[int, ...]], batch: int) -> int:
        """Activations at the last position of every row, in batches of rows of like length; returns the passes run."""
        ordered = sorted(rows, key=len)
        batches = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
        for one in batches:
            self._session.run(self._taps, self._feeds(one) | {"logits_from": _NONE})
        return len(batches)

    def pass_over(
        self, rows: Sequence[tuple[int, ...]], masked: Sequence[np.ndarray | None] | None = None
    ) -> np.ndarray:
        """One full pass over a batch, with a mask `[neurons]` a layer or none: the last position's logits and taps."""
        masks = {
            f"ffn.{layer}.mask": mask.reshape(1, 1, -1) for layer, mask in enumerate(masked or ()) if mask is not None
        }
        logits: np.ndarray = self._session.run(["logits", *self._taps], self._feeds(rows) | masks)[0]
        return logits

    def _feeds(self, rows: Sequence[tuple[int, ...]]) -> dict[str, np.ndarray]:
        width = max(map(len, rows))
        ids = np.zeros((len(rows), width), np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, width - len(row) :], mask[index, width - len(row) :] = row, 1
        past = {name: np.zeros((len(rows), heads, 0, size), np.float32) for name, (heads, size) in self._past.items()}
        return {"input_ids": ids, "attention_mask": mask, **past}
