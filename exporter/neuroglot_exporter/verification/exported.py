"""Runs rows through an exported graph, all in one left-padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from neuroglot.bundle import Component
from neuroglot_exporter.verification.observation import Floats, Intervention, Observation

_ALL_POSITIONS = np.array([-(2**31)], dtype=np.int64)
_ERRORS_ONLY = 3  # ONNX Runtime warns of every optional input


class ExportedGraph:
    """The graph of a causal model in a bundle's folder."""

    def __init__(self, folder: Path, component: Component) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        self._session = onnxruntime.InferenceSession(
            folder / component.graph, options, providers=["CPUExecutionProvider"]
        )
        self._component = component
        self._inputs = {info.name: info for info in self._session.get_inputs()}
        self._outputs = [info.name for info in self._session.get_outputs()]

    def run(
        self, rows: Sequence[Sequence[int]], interventions: Sequence[Intervention] | None = None
    ) -> list[Observation]:
        """Compute rows of token ids in one pass."""
        token_ids, attention_mask = _left_padded(rows)
        results = self._pass(token_ids, attention_mask, self._no_past(len(rows)), self._changes(rows, interventions))
        return [self._observe(results, row, len(ids)) for row, ids in enumerate(rows)]

    def run_last_after_past(self, rows: Sequence[Sequence[int]]) -> list[Observation]:
        """Compute all tokens but the last, then the last of every row with the keys and values of the others.

        Returns:
            What is seen at the last position only.
        """
        token_ids, attention_mask = _left_padded(rows)
        before = self._pass(token_ids[:, :-1], attention_mask[:, :-1], self._no_past(len(rows)), {})
        past = {
            name.replace("present", "past_key_values", 1): value
            for name, value in before.items()
            if name.startswith("present.")
        }
        results = self._pass(token_ids[:, -1:], attention_mask, past, {})
        return [self._observe(results, row, 1) for row in range(len(rows))]

    def _pass(
        self,
        token_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        past: dict[str, Any],
        changes: dict[str, Any],
    ) -> dict[str, Any]:
        feeds = {
            "input_ids": token_ids,
            "attention_mask": attention_mask,
            "activations_from": _ALL_POSITIONS,
            "logits_from": _ALL_POSITIONS,
            **past,
            **changes,
        }
        if "position_ids" in self._inputs:
            positions = np.maximum(attention_mask.cumsum(axis=1) - 1, 0)
            feeds["position_ids"] = positions[:, -token_ids.shape[1] :]
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))

    def _no_past(self, rows: int) -> dict[str, Floats]:
        past = {}
        for name, info in self._inputs.items():
            if name.startswith("past_key_values."):
                _, heads, _, size = info.shape
                past[name] = np.zeros((rows, heads, 0, size), dtype=np.float32)
        return past

    def _changes(
        self, rows: Sequence[Sequence[int]], interventions: Sequence[Intervention] | None
    ) -> dict[str, Floats]:
        if interventions is None:
            return {}
        longest = max(len(row) for row in rows)
        shape = (self._component.layers, len(rows), longest, self._component.neurons)
        masks, overrides = np.ones(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        for row, intervention in enumerate(interventions):
            first = longest - intervention.mask.shape[1]
            masks[:, row, first:] = intervention.mask
            overrides[:, row, first:] = intervention.override
        changes = {f"ffn.{i}.mask": mask for i, mask in enumerate(masks)}
        return changes | {f"ffn.{i}.override": override for i, override in enumerate(overrides)}

    def _observe(self, results: dict[str, Any], row: int, positions: int) -> Observation:
        def tap(what: str) -> Floats:
            return np.stack([results[f"ffn.{i}.{what}"][row, -positions:] for i in range(self._component.layers)])

        coefficients = tap("coefficient") if self._component.gated else None
        return Observation(tap("activation"), coefficients, results["logits"][row, -positions:])


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask, `[rows, longest]`."""
    longest = max(len(row) for row in rows)
    token_ids = np.zeros((len(rows), longest), dtype=np.int64)
    attention_mask = np.zeros_like(token_ids)
    for row, ids in enumerate(rows):
        token_ids[row, longest - len(ids) :] = ids
        attention_mask[row, longest - len(ids) :] = 1
    return token_ids, attention_mask
