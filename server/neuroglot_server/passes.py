"""From steps to the inputs of one pass through the graph, and from its outputs back to the steps' results.

Rows end together: new tokens are padded on the left, and so is the past, with zeros that the attention mask hides.
For rows of 2 + 1 and 1 + 3 tokens (past + new):

    past        new           attention mask
    k0 k1   |  .  .  t0       1 1 | 0 0 1
    .  k0   |  t0 t1 t2       0 1 | 1 1 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.kernels.scoring import next_tokens
from neuroglot_server.steps import Edit, RowStep, StepResult

Outputs = Mapping[str, NDArray[np.floating]]

_NONE = np.array([np.iinfo(np.int64).max])  # a start past the end: the graph gives no positions


@dataclass(frozen=True)
class Signature:
    """What a decoder's graph takes and gives.

    Attributes:
        layers: number of layers.
        neurons: FFN neurons a layer.
        heads: heads of the keys and values.
        head_size: width of a head.
        dtype: of activations, keys and values.
        position_ids: whether the graph takes them (models without ALiBi).
        coefficients: whether coefficients are an output of their own (gated models).
    """

    layers: int
    neurons: int
    heads: int
    head_size: int
    dtype: np.dtype[np.floating]
    position_ids: bool
    coefficients: bool

    @property
    def past_names(self) -> list[str]:
        """Inputs of keys and values, in the order of `KeyValues`."""
        return [f"past_key_values.{layer}.{part}" for layer in range(self.layers) for part in ("key", "value")]

    @property
    def present_names(self) -> list[str]:
        """Outputs of keys and values, in the order of `KeyValues`."""
        return [f"present.{layer}.{part}" for layer in range(self.layers) for part in ("key", "value")]

    @property
    def activation_names(self) -> list[str]:
        """Outputs of activations, by layer."""
        return [f"ffn.{layer}.activation" for layer in range(self.layers)]

    @property
    def coefficient_names(self) -> list[str]:
        """Outputs of coefficients, by layer; none where they are the activations."""
        return [f"ffn.{layer}.coefficient" for layer in range(self.layers)] if self.coefficients else []


def inputs(steps: Sequence[RowStep], signature: Signature) -> dict[str, NDArray[np.generic]]:
    """The feeds of one pass."""
    rows = len(steps)
    past_width = max(step.past_length for step in steps)
    new_width = max(len(step.tokens) for step in steps)
    ids = np.zeros((rows, new_width), dtype=np.int64)
    attention = np.zeros((rows, past_width + new_width), dtype=np.int64)
    past = np.zeros(
        (2 * signature.layers, rows, signature.heads, past_width, signature.head_size), dtype=signature.dtype
    )
    for row, step in enumerate(steps):
        ids[row, new_width - len(step.tokens) :] = step.tokens
        attention[row, past_width - step.past_length : past_width] = 1
        attention[row, past_width + new_width - len(step.tokens) :] = 1
        column = past_width - step.past_length
        for piece in step.past.pieces:
            past[:, row, :, column : column + piece.shape[2]] = piece
            column += piece.shape[2]
    feeds: dict[str, NDArray[np.generic]] = {"input_ids": ids, "attention_mask": attention}
    feeds.update(zip(signature.past_names, past, strict=True))
    if signature.position_ids:
        feeds["position_ids"] = np.maximum(attention.cumsum(axis=1)[:, past_width:] - 1, 0)
    feeds["activations_from"] = _start([step for step in steps if step.taps])
    feeds["logits_from"] = _start([step for step in steps if step.scored])
    feeds.update(_edits(steps, signature))
    return feeds


def _start(wanting: Sequence[RowStep]) -> NDArray[np.generic]:
    """From which position on an output is given, so that it covers the new tokens of all that want it."""
    return np.array([-max(len(step.tokens) for step in wanting)]) if wanting else _NONE


def _edits(steps: Sequence[RowStep], signature: Signature) -> dict[str, NDArray[np.generic]]:
    """Masks and overrides of the layers that any row touches; none where no row intervenes.

    One position stands for all where each row has one edit for all of its new tokens; padding may be edited freely.
    """
    touched = sorted({layer for step in steps for edit in (step.first, step.rest) if edit for layer in edit.layers})
    if not touched:
        return {}
    index = {layer: place for place, layer in enumerate(touched)}
    uniform = all(len(step.tokens) == 1 or step.first is step.rest for step in steps)
    width = 1 if uniform else max(len(step.tokens) for step in steps)
    shape = (len(touched), len(steps), width, signature.neurons)
    mask = np.ones(shape, dtype=signature.dtype)
    override = np.zeros(shape, dtype=signature.dtype)

    def write(edit: Edit | None, row: int, positions: slice) -> None:
        if edit is not None:
            places = [index[layer] for layer in edit.layers]
            mask[places, row, positions] = edit.mask[:, np.newaxis]
            override[places, row, positions] = edit.override[:, np.newaxis]

    for row, step in enumerate(steps):
        first = 0 if uniform else width - len(step.tokens)
        write(step.first, row, slice(first, first + 1))
        write(step.rest, row, slice(first + 1, width))
    feeds: dict[str, NDArray[np.generic]] = {}
    for layer, place in index.items():
        feeds[f"ffn.{layer}.mask"] = mask[place]
        feeds[f"ffn.{layer}.override"] = override[place]
    return feeds


def output_names(steps: Sequence[RowStep], signature: Signature) -> list[str]:
    """The outputs that these steps want, and no other: each is copied out of the runtime."""
    names = []
    if any(step.taps for step in steps):
        names += signature.activation_names + signature.coefficient_names
    if any(step.scored for step in steps):
        names.append("logits")
    if any(step.keep for step in steps):
        names += signature.present_names
    return names


def results(steps: Sequence[RowStep], outputs: Outputs, signature: Signature) -> list[StepResult]:
    """What came out for each step; nothing in it holds on to the outputs of the whole batch."""
    new_width = max(len(step.tokens) for step in steps)
    keeping = any(step.keep for step in steps)
    new = np.stack([outputs[name][:, :, -new_width:] for name in signature.present_names]) if keeping else None
    return [_result(row, step, outputs, new, signature) for row, step in enumerate(steps)]


def _result(
    row: int, step: RowStep, outputs: Outputs, new: NDArray[np.floating] | None, signature: Signature
) -> StepResult:
    length = len(step.tokens)
    activations = coefficients = scores = kept = None
    if step.taps:
        activations = np.stack([outputs[name][row, -length] for name in signature.activation_names])
        coefficients = activations
        if signature.coefficients:
            coefficients = np.stack([outputs[name][row, -length] for name in signature.coefficient_names])
        if not (np.isfinite(activations).all() and np.isfinite(coefficients).all()):
            return StepResult(finite=False)
    if step.scored:
        scores = next_tokens(outputs["logits"][row, -length:], step.targets)
        if scores is None:
            return StepResult(finite=False)
    if step.keep:
        assert new is not None
        kept = new[:, row, :, -length:].copy()
    return StepResult(True, activations, coefficients, scores, kept)
