"""The unit of batching: a step of one row, that is some new tokens on top of those whose keys and values are known.

Every pass of the model is a batch of such steps. A causal model reads a group's prompt in a step without scores
(prefill); its last prompt token and gold tokens are one with scores, and so is each generated token. An encoder reads
a prompt in one step, and what it keeps is the `cross` of the decoder's steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.kernels.scoring import NextTokens


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys and values of some of a row's tokens.

    They are kept in the pieces in which they were computed, so that rows that fork from a prompt share its piece.

    Attributes:
        pieces: each `[2 * layers, heads, tokens, head_size]`: the keys and then the values of layer 0, of layer 1, ...
    """

    pieces: tuple[NDArray[np.floating], ...] = ()

    @property
    def length(self) -> int:
        """Number of tokens."""
        return sum(piece.shape[2] for piece in self.pieces)

    def extended(self, piece: NDArray[np.floating]) -> KeyValues:
        """These and the next tokens' keys and values."""
        return KeyValues((*self.pieces, piece))


NO_TOKENS = KeyValues()


@dataclass(frozen=True, eq=False)
class Edit:
    """What an intervention does at one position of one row: `value = mask * activation + override`.

    Attributes:
        layers: the layers that it touches, in order.
        mask: `[len(layers), neurons]`, in the model's dtype.
        override: of the same shape.
    """

    layers: tuple[int, ...]
    mask: NDArray[np.floating]
    override: NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Edits:
    """What is done along one row of one component; None where nothing is.

    Attributes:
        before: at the prompt tokens before the last one.
        at: at the last prompt token.
        after: at the tokens of the answer.
    """

    before: Edit | None = None
    at: Edit | None = None
    after: Edit | None = None

    @property
    def anywhere(self) -> bool:
        """Whether anything is done at all."""
        return any(edit is not None for edit in (self.before, self.at, self.after))


NO_EDITS = Edits()


@dataclass(frozen=True, eq=False)
class RowStep:
    """New tokens of one row, and what is wanted of them.

    Attributes:
        tokens: the new tokens, at least one.
        past: keys and values of the tokens before them.
        cross: keys and values of the prompt, where it is read by an encoder and this is a step of its decoder.
        focus: the index among the new tokens of the component's last prompt token; negative where that lies in the
            past, and `len(tokens)` or more where it is still to come.
        edits: of the row; the focus says which of them falls on which of the new tokens.
        taps: whether activations and coefficients at the focus are wanted.
        scored: whether scores of all new tokens' successors are wanted.
        targets: those successors, as many as `tokens`, where their log-probabilities are wanted.
        keep: whether the keys and values of the new tokens are wanted; of an encoder, those that its decoder reads.
    """

    tokens: tuple[int, ...]
    past: KeyValues = NO_TOKENS
    cross: KeyValues = NO_TOKENS
    focus: int = 0
    edits: Edits = NO_EDITS
    taps: bool = False
    scored: bool = False
    targets: tuple[int, ...] = ()
    keep: bool = False

    # The batcher asks for these again and again.

    @cached_property
    def past_length(self) -> int:
        """Number of tokens of the past."""
        return self.past.length

    @cached_property
    def cross_length(self) -> int:
        """Number of the encoder's tokens."""
        return self.cross.length

    @cached_property
    def uniform(self) -> bool:
        """Whether the same is done at all new tokens, so that a single position can stand for all."""
        return len({id(edit) for _, edit in self.edited}) == 1

    @property
    def edited(self) -> list[tuple[slice, Edit | None]]:
        """The new tokens before, at and after the focus, where there are such, and what is done there."""
        length = len(self.tokens)
        starts = [min(max(start, 0), length) for start in (0, self.focus, self.focus + 1, length)]
        parts = zip(starts, starts[1:], (self.edits.before, self.edits.at, self.edits.after), strict=False)
        return [(slice(start, stop), edit) for start, stop, edit in parts if start < stop]


@dataclass(frozen=True, eq=False)
class StepResult:
    """What came out for a step.

    Attributes:
        finite: whether all numbers that were looked at are finite; the others are then what was asked for.
        activations: `[layers, neurons]`, with `taps`.
        coefficients: what multiplies the value rows, of the same shape; the activations themselves where not gated.
        scores: with `scored`.
        kept: `[2 * layers, heads, tokens, head_size]`, with `keep`; the layers are those of the decoder.
    """

    finite: bool
    activations: NDArray[np.floating] | None = None
    coefficients: NDArray[np.floating] | None = None
    scores: NextTokens | None = None
    kept: NDArray[np.floating] | None = None
