"""Runs rows through a bundle's graphs, all in one left-padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from neuroglot.definitions.bundle import Component, ModelFacts
from neuroglot_exporter.verification.observation import DECODER, ENCODER, Floats, Intervention, Observation
from neuroglot_exporter.verification.rows import LOGIT_POSITIONS, Row

_ALL_POSITIONS = np.array([-(2**31)], dtype=np.int64)
_ERRORS_ONLY = 3  # ONNX Runtime warns of every optional input


class ExportedModel:
    """The graphs of a bundle in ONNX Runtime, in memory as long as this object."""

    def __init__(self, folder: Path, facts: ModelFacts) -> None:
        self._graphs = {
            component.name: _Graph(folder, component, np.dtype(facts.dtype)) for component in facts.components
        }

    def run(self, rows: Sequence[Row], interventions: Sequence[Intervention] | None = None) -> list[Observation]:
        """Compute rows in one pass. Takes one intervention per row, all in the same component and of one shape."""
        context, taps = self._encode(rows, interventions)
        token_ids, mask = _left_padded(rows, DECODER)
        results = self._decode(token_ids, mask, self._graphs[DECODER].no_past(len(rows)), context, interventions)
        taps |= {DECODER: self._graphs[DECODER].taps(results)}
        return [_observe(taps, results["logits"], i, row) for i, row in enumerate(rows)]

    def run_row(self, row: Row, intervention: Intervention | None = None) -> Observation:
        """Compute one row, alone and without padding."""
        return self.run([row], None if intervention is None else [intervention])[0]

    def run_last_after_past(self, rows: Sequence[Row]) -> list[Observation]:
        """Compute all of the decoder's tokens but the last, then the last with the KV cache of the others.

        Returns:
            Observations at the decoder's last position only.
        """
        context, _ = self._encode(rows, None)
        token_ids, mask = _left_padded(rows, DECODER)
        before = self._decode(token_ids[:, :-1], mask[:, :-1], self._graphs[DECODER].no_past(len(rows)), context, None)
        results = self._decode(token_ids[:, -1:], mask, _past_of(before), context, None)
        taps = {DECODER: self._graphs[DECODER].taps(results)}
        return [_observe(taps, results["logits"], i, {DECODER: row[DECODER][-1:]}) for i, row in enumerate(rows)]

    def _encode(
        self, rows: Sequence[Row], interventions: Sequence[Intervention] | None
    ) -> tuple[dict[str, Any], dict[str, _Taps]]:
        """The decoder's inputs from the encoder, and the encoder's taps; both empty without an encoder."""
        if ENCODER not in self._graphs:
            return {}, {}
        token_ids, mask = _left_padded(rows, ENCODER)
        graph = self._graphs[ENCODER]
        results = graph.run({"input_ids": token_ids, "attention_mask": mask}, interventions)
        return {"encoder_attention_mask": mask, **_past_of(results)}, {ENCODER: graph.taps(results)}

    def _decode(
        self,
        token_ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        past: Mapping[str, Any],
        context: Mapping[str, Any],
        interventions: Sequence[Intervention] | None,
    ) -> dict[str, Any]:
        feeds = {
            "input_ids": token_ids,
            "decoder_attention_mask" if context else "attention_mask": mask,
            "logits_from": np.array([-LOGIT_POSITIONS]),
        }
        graph = self._graphs[DECODER]
        if "position_ids" in graph.inputs:
            feeds["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -token_ids.shape[1] :]
        return graph.run({**feeds, **past, **context}, interventions)


class _Taps:
    """A batch's taps, stacked by layer: `[layers, rows, positions, neurons]`."""

    def __init__(self, activations: Floats, coefficients: Floats | None) -> None:
        self.activations = activations
        self.coefficients = coefficients


class _Graph:
    """The graph of one component."""

    def __init__(self, folder: Path, component: Component, floats: np.dtype[Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        self._session = onnxruntime.InferenceSession(
            folder / component.graph, options, providers=["CPUExecutionProvider"]
        )
        self._component = component
        self._outputs = [info.name for info in self._session.get_outputs()]
        self.inputs = {info.name: info for info in self._session.get_inputs()}
        self._floats = floats

    def run(self, feeds: Mapping[str, Any], interventions: Sequence[Intervention] | None) -> dict[str, Any]:
        """Return all outputs, with taps at all positions. Interventions in other components are ignored."""
        changes = self._feeds_of(interventions or ())
        everything = {"activations_from": _ALL_POSITIONS, **feeds, **changes}
        return dict(zip(self._outputs, self._session.run(self._outputs, everything), strict=True))

    def no_past(self, rows: int) -> dict[str, NDArray[Any]]:
        """Keys and values of length 0, of the component's own attention."""
        past = {}
        for name, info in self.inputs.items():
            if name.startswith("past_key_values.") and f".{ENCODER}." not in name:
                _, heads, _, size = info.shape
                past[name] = np.zeros((rows, heads, 0, size), dtype=self._floats)
        return past

    def taps(self, results: Mapping[str, Any]) -> _Taps:
        """The taps among the outputs of a run."""

        def tap(what: str) -> Floats:
            layers = range(self._component.layers)
            return np.stack([results[f"ffn.{i}.{what}"] for i in layers]).astype(np.float32, copy=False)

        return _Taps(tap("activation"), tap("coefficient") if self._component.gated else None)

    def _feeds_of(self, interventions: Sequence[Intervention]) -> dict[str, NDArray[Any]]:
        own = [intervention for intervention in interventions if intervention.component == self._component.name]
        if not own:
            return {}
        masks = np.stack([intervention.mask for intervention in own], axis=1).astype(self._floats)
        overrides = np.stack([intervention.override for intervention in own], axis=1).astype(self._floats)
        changes = {f"ffn.{i}.mask": mask for i, mask in enumerate(masks)}
        return changes | {f"ffn.{i}.override": override for i, override in enumerate(overrides)}


def _observe(taps: Mapping[str, _Taps], logits: NDArray[Any], row: int, tokens: Row) -> Observation:
    """One row of a batch, without its padding; copied, so that the batch need not stay in memory."""
    return Observation(
        {name: tap.activations[:, row, -len(tokens[name]) :].copy() for name, tap in taps.items()},
        {
            name: tap.coefficients[:, row, -len(tokens[name]) :].copy()
            for name, tap in taps.items()
            if tap.coefficients is not None
        },
        logits[row, -len(tokens[DECODER]) :].astype(np.float32),
    )


def _past_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """The keys and values that a run returned, by the input names of the next run."""
    return {
        name.replace("present", "past_key_values", 1): value
        for name, value in results.items()
        if name.startswith("present.")
    }


def _left_padded(rows: Sequence[Row], component: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask, `[rows, longest]`."""
    longest = max(len(row[component]) for row in rows)
    token_ids = np.zeros((len(rows), longest), dtype=np.int64)
    attention_mask = np.zeros_like(token_ids)
    for i, row in enumerate(rows):
        ids = row[component]
        token_ids[i, longest - len(ids) :] = ids
        attention_mask[i, longest - len(ids) :] = 1
    return token_ids, attention_mask
