"""From steps to the inputs of one pass through the graph, and from its outputs back to the steps' results.

Rows end together: new tokens are padded on the left, and so is the past, with zeros that the attention mask hides.
For rows of 2 + 1 and 1 + 3 tokens (past + new):

    past        new           attention mask
    k0 k1   |  .  .  t0       1 1 | 0 0 1
    .  k0   |  t0 t1 t2       0 1 | 1 1 1

The keys and values that an encoder's decoder reads are padded like a past, under a mask of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.kernels.scoring import next_tokens
from neuroglot_server.signature import Signature
from neuroglot_server.steps import KeyValues, RowStep, StepResult

Outputs = Mapping[str, NDArray[np.floating]]

_NONE = np.array([np.iinfo(np.int64).max])  # a start past the end: the graph gives no positions


def inputs(steps: Sequence[RowStep], signature: Signature) -> dict[str, NDArray[np.generic]]:
    """The feeds of one pass."""
    interface = signature.interface
    new_width = max(len(step.tokens) for step in steps)
    ids = np.zeros((len(steps), new_width), dtype=np.int64)
    for row, step in enumerate(steps):
        ids[row, new_width - len(step.tokens) :] = step.tokens
    past = _ending_together([step.past_length for step in steps])
    attention = np.concatenate([past, _ending_together([len(step.tokens) for step in steps])], axis=1)
    feeds: dict[str, NDArray[np.generic]] = {"input_ids": ids, interface.attention: attention}
    if interface.past:
        feeds.update(zip(interface.past, _key_values([step.past for step in steps], signature), strict=True))
    if interface.cross:
        feeds["encoder_attention_mask"] = _ending_together([step.cross_length for step in steps])
        feeds.update(zip(interface.cross, _key_values([step.cross for step in steps], signature), strict=True))
    if signature.position_ids:
        feeds["position_ids"] = np.maximum(attention.cumsum(axis=1)[:, -new_width:] - 1, 0)
    feeds["activations_from"] = _start([_from_focus(step) for step in steps if step.taps])
    if interface.logits:
        feeds["logits_from"] = _start([len(step.tokens) for step in steps if step.scored])
    feeds.update(_edits(steps, signature))
    return feeds


def _ending_together(lengths: Sequence[int]) -> NDArray[np.int64]:
    """The attention mask `[rows, longest]` of rows that are padded on the left."""
    width = max(lengths)
    real: NDArray[np.bool_] = np.arange(width) >= width - np.array(lengths)[:, np.newaxis]
    return real.astype(np.int64)


def _key_values(rows: Sequence[KeyValues], signature: Signature) -> NDArray[np.floating]:
    """Keys and values of all rows, padded on the left: `[2 * layers, rows, heads, longest, head_size]`."""
    width = max(row.length for row in rows)
    shape = (2 * signature.layers, len(rows), signature.heads, width, signature.head_size)
    together = np.zeros(shape, dtype=signature.dtype)
    for index, row in enumerate(rows):
        column = width - row.length
        for piece in row.pieces:
            together[:, index, :, column : column + piece.shape[2]] = piece
            column += piece.shape[2]
    return together


def _from_focus(step: RowStep) -> int:
    """How many new tokens there are from the focus on."""
    return len(step.tokens) - step.focus


def _start(trailing: Sequence[int]) -> NDArray[np.generic]:
    """From which position on an output is given, so that it covers as many trailing positions as each wants."""
    return np.array([-max(trailing)]) if trailing else _NONE


def _edits(steps: Sequence[RowStep], signature: Signature) -> dict[str, NDArray[np.generic]]:
    """Masks and overrides of the layers that any row touches; none where no row intervenes.

    One position stands for all where each row has one edit for all of its new tokens; padding may be edited freely.
    """
    edited = [step.edited for step in steps]
    touched = sorted({layer for parts in edited for _, edit in parts if edit for layer in edit.layers})
    if not touched:
        return {}
    index = {layer: place for place, layer in enumerate(touched)}
    uniform = all(step.uniform for step in steps)
    width = 1 if uniform else max(len(step.tokens) for step in steps)
    shape = (len(touched), len(steps), width, signature.neurons)
    mask = np.ones(shape, dtype=signature.dtype)
    override = np.zeros(shape, dtype=signature.dtype)
    for row, (step, parts) in enumerate(zip(steps, edited, strict=True)):
        padding = width - len(step.tokens)
        for part, edit in parts:
            if edit is None:
                continue
            places = [index[layer] for layer in edit.layers]
            positions = slice(0, 1) if uniform else slice(padding + part.start, padding + part.stop)
            mask[places, row, positions] = edit.mask[:, np.newaxis]
            override[places, row, positions] = edit.override[:, np.newaxis]
    feeds: dict[str, NDArray[np.generic]] = {}
    for layer, place in index.items():
        feeds[f"ffn.{layer}.mask"] = mask[place]
        feeds[f"ffn.{layer}.override"] = override[place]
    return feeds


def output_names(steps: Sequence[RowStep], signature: Signature) -> list[str]:
    """The outputs that these steps want, and no other: each is copied out of the runtime."""
    names: list[str] = []
    if any(step.taps for step in steps):
        names += signature.activation_names + signature.coefficient_names
    if any(step.scored for step in steps):
        names.append("logits")
    if any(step.keep for step in steps):
        names += signature.interface.present
    return names


def results(steps: Sequence[RowStep], outputs: Outputs, signature: Signature) -> list[StepResult]:
    """What came out for each step; nothing in it holds on to the outputs of the whole batch."""
    new_width = max(len(step.tokens) for step in steps)
    keeping = any(step.keep for step in steps)
    new = np.stack([outputs[name][:, :, -new_width:] for name in signature.interface.present]) if keeping else None
    return [_result(row, step, outputs, new, signature) for row, step in enumerate(steps)]


def _result(
    row: int, step: RowStep, outputs: Outputs, new: NDArray[np.floating] | None, signature: Signature
) -> StepResult:
    length = len(step.tokens)
    activations = coefficients = scores = kept = None
    if step.taps:
        focus = -_from_focus(step)
        activations = np.stack([outputs[name][row, focus] for name in signature.activation_names])
        coefficients = activations
        if signature.coefficients:
            coefficients = np.stack([outputs[name][row, focus] for name in signature.coefficient_names])
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
