"""The unit of batching: a step of one row, that is some new tokens on top of those whose keys and values are known.

Every pass of the model is a batch of such steps. A group's prompt is a step without scores (prefill); its last prompt
token and gold tokens are one with scores, and so is each generated token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.kernels.scoring import NextTokens


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys and values of a row's tokens so far.

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


NO_PAST = KeyValues()


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
class RowStep:
    """New tokens of one row, and what is wanted of them.

    Attributes:
        tokens: the new tokens, at least one.
        past: keys and values of the tokens before them.
        first: the edit at the first new token.
        rest: the edit at the others.
        taps: whether activations and coefficients at the first new token are wanted.
        scored: whether scores of all new tokens' successors are wanted.
        targets: those successors, as many as `tokens`, where their log-probabilities are wanted.
        keep: whether the keys and values of the new tokens are wanted.
    """

    tokens: tuple[int, ...]
    past: KeyValues = NO_PAST
    first: Edit | None = None
    rest: Edit | None = None
    taps: bool = False
    scored: bool = False
    targets: tuple[int, ...] = ()
    keep: bool = False
    past_length: int = field(init=False)

    def __post_init__(self) -> None:
        """Count the past once: the batcher asks for it again and again."""
        object.__setattr__(self, "past_length", self.past.length)


@dataclass(frozen=True, eq=False)
class StepResult:
    """What came out for a step.

    Attributes:
        finite: whether all numbers that were looked at are finite; the others are then what was asked for.
        activations: `[layers, neurons]`, with `taps`.
        coefficients: what multiplies the value rows, of the same shape; the activations themselves where not gated.
        scores: with `scored`.
        kept: `[2 * layers, heads, tokens, head_size]`, with `keep`.
    """

    finite: bool
    activations: NDArray[np.floating] | None = None
    coefficients: NDArray[np.floating] | None = None
    scores: NextTokens | None = None
    kept: NDArray[np.floating] | None = None
