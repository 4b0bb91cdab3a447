"""From steps to the inputs of one pass through the graph, and from its outputs back to the steps' results.

Rows end together: new tokens are padded on the left, and so is the past, with zeros that the attention mask hides.
For rows of 2 + 1 and 1 + 3 tokens (past + new):

    past        new           attention mask
    k0 k1   |  .  .  t0       1 1 | 0 0 1
    .  k0   |  t0 t1 t2       0 1 | 1 1 1

The keys and values that an encoder's decoder reads are padded like a past, under a mask of their own. Where keys and
values lie between passes, and how those of several rows come together, is the memory's affair (`host_memory`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.engine.graph import Signature
from neuroglot_server.engine.steps import KeyValues, RowStep, StepResult
from neuroglot_server.kernels.scoring import next_tokens
from neuroglot_server.kernels.types import active

Outputs = Mapping[str, NDArray[np.floating]]

_NONE = np.array([np.iinfo(np.int64).max])  # a start past the end: the graph gives no positions


def inputs(steps: Sequence[RowStep], signature: Signature) -> dict[str, NDArray[np.generic]]:
    """The feeds of one pass, but for the keys and values of what came before."""
    interface = signature.interface
    lengths = [len(step.tokens) for step in steps]
    width = max(lengths)
    ids = np.array([(0,) * (width - len(step.tokens)) + step.tokens for step in steps], dtype=np.int64)
    attention = _ending_together(lengths)
    if any(past := [step.past_length for step in steps]):
        attention = np.concatenate([_ending_together(past), attention], axis=1)
    feeds: dict[str, NDArray[np.generic]] = {"input_ids": ids, interface.attention: attention}
    if interface.cross:
        feeds["encoder_attention_mask"] = _ending_together([step.cross_length for step in steps])
    if signature.position_ids:
        feeds["position_ids"] = np.maximum(attention.cumsum(axis=1)[:, -width:] - 1, 0)
    feeds["activations_from"] = _start(max(map(_reaches, steps)))
    if interface.logits:
        feeds["logits_from"] = _start(scored_positions(steps))
    if signature.trailing:
        feeds["present_from"] = _start(max(len(step.tokens) * step.keep for step in steps))
    feeds.update(_edits(steps, signature))
    return feeds


def _ending_together(lengths: Sequence[int]) -> NDArray[np.int64]:
    """The attention mask `[rows, longest]` of rows that are padded on the left."""
    width = max(lengths)
    real: NDArray[np.bool_] = np.arange(width) >= width - np.array(lengths)[:, np.newaxis]
    return real.astype(np.int64)


def _from_focus(step: RowStep) -> int:
    """How many new tokens there are from the focus on."""
    return len(step.tokens) - step.focus


def _reaches(step: RowStep) -> int:
    """At how many trailing positions a step's activations are looked at."""
    if step.capture or step.thresholds:
        return len(step.tokens)
    return _from_focus(step) if step.taps else 0


def scored_positions(steps: Sequence[RowStep]) -> int:
    """Of how many trailing positions logits are given, of every row."""
    return max((len(step.tokens) - step.first_scored for step in steps if step.scored), default=0)


def _start(trailing: int) -> NDArray[np.generic]:
    """From which position on an output is given, so that it covers so many trailing positions."""
    return np.array([-trailing]) if trailing else _NONE


def _edits(steps: Sequence[RowStep], signature: Signature) -> dict[str, NDArray[np.generic]]:
    """Masks of the layers that any row touches, and overrides if any row adds something; none where no row intervenes.

    One position stands for all where each row has one edit for all of its new tokens; padding may be edited freely.
    """
    if not any(step.edits.anywhere for step in steps):
        return {}
    edited = [step.edited for step in steps]
    touched = sorted({layer for parts in edited for _, edit in parts if edit for layer in edit.layers})
    if not touched:
        return {}
    index = {layer: place for place, layer in enumerate(touched)}
    uniform = all(step.uniform for step in steps)
    width = 1 if uniform else max(len(step.tokens) for step in steps)
    shape = (len(touched), len(steps), width, signature.neurons)
    adds = any(edit.adds for parts in edited for _, edit in parts if edit)
    mask = np.ones(shape, dtype=signature.dtype)
    override = np.zeros(shape if adds else 0, dtype=signature.dtype)
    for row, (step, parts) in enumerate(zip(steps, edited, strict=True)):
        padding = width - len(step.tokens)
        for part, edit in parts:
            if edit is None:
                continue
            places = [index[layer] for layer in edit.layers]
            positions = slice(0, 1) if uniform else slice(padding + part.start, padding + part.stop)
            mask[places, row, positions] = edit.mask[:, np.newaxis]
            if edit.override is not None:
                override[places, row, positions] = edit.override[:, np.newaxis]
    feeds: dict[str, NDArray[np.generic]] = {}
    for layer, place in index.items():
        feeds[f"ffn.{layer}.mask"] = mask[place]
        if adds:
            feeds[f"ffn.{layer}.override"] = override[place]
    return feeds


def output_names(steps: Sequence[RowStep], signature: Signature) -> list[str]:
    """The outputs that these steps want beside keys and values, and no other: each is copied out of the runtime."""
    names: list[str] = []
    if any(map(_reaches, steps)):
        names += signature.activation_names
    if any(step.taps or step.capture for step in steps):
        names += signature.coefficient_names
    if any(step.scored for step in steps):
        names.append("logits")
    return names


def results(
    steps: Sequence[RowStep], outputs: Outputs, kept: Sequence[KeyValues | None], signature: Signature
) -> list[StepResult]:
    """What came out for each step; nothing in it holds on to the outputs of the whole batch."""
    activations = [outputs[name] for name in signature.activation_names if name in outputs]
    coefficients = [outputs[name] for name in signature.coefficient_names if name in outputs]
    taps = _Taps(activations, coefficients, _finite(*activations, *coefficients))
    logits = outputs.get("logits")
    return [
        _result(row, step, taps, logits, of_step) for row, (step, of_step) in enumerate(zip(steps, kept, strict=True))
    ]


class _Taps(NamedTuple):
    """What came out of the neurons of a batch.

    Attributes:
        activations: of each layer, `[rows, positions, neurons]`; none where no step looks at them.
        coefficients: likewise; none where they are the activations.
        finite: whether all of them are, also those that no step looks at.
    """

    activations: Sequence[NDArray[np.floating]]
    coefficients: Sequence[NDArray[np.floating]]
    finite: bool

    def of(self, row: int, positions: int | slice) -> tuple[NDArray[np.floating], NDArray[np.floating]] | None:
        """A row's activations and coefficients, by themselves; one array where they are the same.

        Args:
            row: the row's index.
            positions: counted from the end: one, for `[layers, neurons]`, or several, `[layers, positions, neurons]`.

        Returns:
            None if any is not finite.
        """
        activations = np.array([layer[row, positions] for layer in self.activations])
        coefficients = activations
        if self.coefficients:
            coefficients = np.array([layer[row, positions] for layer in self.coefficients])
        if not self.finite and not _finite(activations, coefficients):
            return None
        return activations, coefficients


def _result(
    row: int, step: RowStep, taps: _Taps, logits: NDArray[np.floating] | None, kept: KeyValues | None
) -> StepResult:
    length = len(step.tokens)
    activations = coefficients = ever = captured = scores = None
    if step.taps:
        tapped = taps.of(row, -_from_focus(step))
        if tapped is None:
            return StepResult(finite=False, kept=kept)
        activations, coefficients = tapped
    if step.capture:
        captured = taps.of(row, slice(-length, None))
        if captured is None:
            return StepResult(finite=False, kept=kept)
    if step.thresholds:
        seen = [layer[row, -length:] for layer in taps.activations]
        if not taps.finite and not _finite(*seen):
            return StepResult(finite=False, kept=kept)
        largest = np.stack([activations.max(axis=0) for activations in seen])
        ever = np.stack([active(largest, threshold) for threshold in step.thresholds])
    if step.scored:
        assert logits is not None
        scored = logits[row, step.first_scored - length :]
        scores = next_tokens(scored, step.targets, greedy_log_probabilities=step.greedy_log_probabilities)
        if scores is None:
            return StepResult(finite=False, kept=kept)
    return StepResult(True, activations, coefficients, ever, captured, scores, kept)


def _finite(*arrays: NDArray[np.floating]) -> bool:
    """Whether all numbers are; arrays that are given twice are looked at once."""
    distinct = {id(array): array for array in arrays}
    return all(bool(np.isfinite(array).all()) for array in distinct.values())
