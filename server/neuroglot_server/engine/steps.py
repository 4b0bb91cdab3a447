"""The unit of batching: a step of one row, that is some new tokens on top of those whose keys and values are known.

Every pass of the model is a batch of such steps. A causal model reads a group's prompt in a step without scores
(prefill); its last prompt token and gold tokens are one with scores, and so is each generated token. An encoder reads
a prompt in one step, and what it keeps is the `cross` of the decoder's steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.kernels.scoring import NextTokens

BLOCK = 16
"""Tokens of a block, from a row's first token on: what is known of prompts is known in blocks, see `prefixes`."""


class Piece(Protocol):
    """Keys and values of consecutive tokens, `[2 * layers, heads, tokens, head_size]`: an array, or like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def nbytes(self) -> int:
        """What it takes up, in bytes."""

    def __getitem__(self, slices: tuple[slice, slice, slice], /) -> Self:
        """Some of its tokens, not copied: `piece[:, :, start:stop]`."""

    def copy(self) -> Self:
        """The same, by themselves."""


@dataclass(frozen=True, eq=False)
class Ending:
    """The pass in which a past's last token was new; what that pass gave is the whole past of this row.

    Attributes:
        batch: stands for the pass.
        row: the row's index in it.
    """

    batch: object
    row: int


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys and values of some of a row's tokens.

    They are kept in the pieces in which they were computed, so that rows that fork from a prompt share its piece.

    Attributes:
        pieces: each `[2 * layers, heads, tokens, head_size]`: the keys and then the values of layer 0, of layer 1, ...
        ending: where the engine may find these, and the past that they were computed on top of, in one.
    """

    pieces: tuple[Piece, ...] = ()
    ending: Ending | None = None

    @cached_property
    def length(self) -> int:
        """Number of tokens."""
        return sum(piece.shape[2] for piece in self.pieces)

    @property
    def nbytes(self) -> int:
        """What they take up, in bytes; pieces that are shared count in each that shares them."""
        return sum(piece.nbytes for piece in self.pieces)

    @cached_property
    def identity(self) -> tuple[int, ...]:
        """The same for those that consist of the same pieces, as long as they are in memory."""
        return tuple(map(id, self.pieces))

    def extended(self, following: KeyValues) -> KeyValues:
        """These and those of the tokens that follow."""
        if not self.pieces:
            return following
        return KeyValues((*self.pieces, *following.pieces), following.ending)

    def first(self, tokens: int) -> KeyValues:
        """Those of the first tokens, of which there must be as many; nothing is copied."""
        pieces = []
        for piece in self.pieces:
            if tokens <= 0:
                break
            pieces.append(piece[:, :, :tokens])
            tokens -= piece.shape[2]
        return KeyValues(tuple(pieces))

    def copied(self) -> KeyValues:
        """These, by themselves."""
        return KeyValues(tuple(piece.copy() for piece in self.pieces))

    def part(self, start: int, stop: int) -> KeyValues:
        """Those of some of the tokens: whole pieces as they are, and copies, which do not hold on to the others."""
        if (start, stop) == (0, self.length):
            return self
        pieces, offset = [], 0
        for piece in self.pieces:
            inside = piece[:, :, max(start - offset, 0) : max(stop - offset, 0)]
            if inside.shape[2]:
                pieces.append(piece if inside.shape == piece.shape else inside.copy())
            offset += piece.shape[2]
        return KeyValues(tuple(pieces))


NO_TOKENS = KeyValues()


class Sources(NamedTuple):
    """Keys and values that the rows of a pass go on from.

    Attributes:
        different: each of them once, in the order in which rows come to them.
        places: which of these each row goes on from, int64 `[rows]`.
    """

    different: list[KeyValues]
    places: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[KeyValues]) -> Sources:
        """Those of rows."""
        known: dict[tuple[int, ...], int] = {}
        different: list[KeyValues] = []
        places = []
        for row in rows:
            place = known.setdefault(row.identity, len(different))
            if place == len(different):
                different.append(row)
            places.append(place)
        return cls(different, np.array(places))


@dataclass(frozen=True, eq=False)
class Edit:
    """What an intervention does at one position of one row: `value = mask * activation + override`.

    Attributes:
        layers: the layers that it touches, in order.
        mask: `[len(layers), neurons]`: bool where it keeps a neuron's value or drops it, else in the model's dtype.
        override: of the same shape, in the model's dtype; None where nothing is added.
    """

    layers: tuple[int, ...]
    mask: NDArray[np.floating] | NDArray[np.bool_]
    override: NDArray[np.floating] | None = None

    @property
    def adds(self) -> bool:
        """Whether it does more than to multiply."""
        return self.override is not None


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

    @cached_property
    def anywhere(self) -> bool:
        """Whether anything is done at all."""
        return self.before is not None or self.at is not None or self.after is not None


NO_EDITS = Edits()


class RowStep(NamedTuple):
    """New tokens of one row, and what is wanted of them.

    Attributes:
        tokens: the new tokens, at least one.
        past: keys and values of the tokens before them.
        cross: keys and values of the prompt, where it is read by an encoder and this is a step of its decoder.
        focus: the index among the new tokens of the component's last prompt token; negative where that lies in the
            past, and `len(tokens)` or more where it is still to come.
        edits: of the row; the focus says which of them falls on which of the new tokens.
        taps: whether activations and coefficients at the focus are wanted.
        thresholds: where it is wanted whether each neuron exceeds a threshold at any of the new tokens: which ones.
        capture: whether activations and coefficients at all new tokens are wanted.
        scored: whether scores of the new tokens' successors are wanted, from the focus on; of all where it lies in the
            past.
        targets: those successors, one a scored token, where their log-probabilities are wanted.
        greedy_log_probabilities: whether, with `scored`, those of the most likely successors are wanted.
        keep: whether the keys and values of the new tokens are wanted; of an encoder, those that its decoder reads.
    """

    tokens: tuple[int, ...]
    past: KeyValues = NO_TOKENS
    cross: KeyValues = NO_TOKENS
    focus: int = 0
    edits: Edits = NO_EDITS
    taps: bool = False
    thresholds: tuple[float, ...] = ()
    capture: bool = False
    scored: bool = False
    targets: tuple[int, ...] = ()
    greedy_log_probabilities: bool = False
    keep: bool = False

    @property
    def wanted(self) -> tuple[object, ...]:
        """What is wanted of it: the attributes from `taps` on."""
        return self[_WANTED_FROM:]

    @property
    def past_length(self) -> int:
        """Number of tokens of the past."""
        return self.past.length

    @property
    def cross_length(self) -> int:
        """Number of the encoder's tokens."""
        return self.cross.length

    @property
    def source(self) -> tuple[int, ...] | None:
        """The identity of the keys and values that others may share: the encoder's, or those that an answer forks from.

        None where nobody does: a continuation's past is its own.
        """
        if self.cross.pieces:
            return self.cross.identity
        return self.past.identity if self.focus >= 0 and self.past.pieces else None

    @property
    def first_scored(self) -> int:
        """The index among the new tokens of the first that is scored, if any is."""
        return max(self.focus, 0)

    @property
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


_WANTED_FROM = RowStep._fields.index("taps")


@dataclass(eq=False)
class StepResult:
    """What came out for a step; not changed once it is there.

    Attributes:
        finite: whether all numbers that were looked at are finite; if not, keys and values are all that there is.
        activations: `[layers, neurons]`, with `taps`.
        coefficients: what multiplies the value rows, of the same shape; the activations themselves where not gated.
        ever: with `thresholds`: whether each neuron exceeds each of them at any new token, bool
            `[thresholds, layers, neurons]`.
        captured: with `capture`: activations and coefficients, in a tuple, each `[layers, tokens, neurons]`.
        scores: with `scored`.
        kept: with `keep`: keys and values of the new tokens; of an encoder, those that its decoder reads.
    """

    finite: bool
    activations: NDArray[np.floating] | None = None
    coefficients: NDArray[np.floating] | None = None
    ever: NDArray[np.bool_] | None = None
    captured: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None
    scores: NextTokens | None = None
    kept: KeyValues | None = None

    @property
    def nbytes(self) -> int:
        """What it takes up, in bytes."""
        size = 0 if self.kept is None else self.kept.nbytes
        if self.activations is not None:
            size += self.activations.nbytes
        if self.coefficients is not None and self.coefficients is not self.activations:
            size += self.coefficients.nbytes
        if self.ever is not None:
            size += self.ever.nbytes
        if self.captured is not None:
            size += sum(array.nbytes for array in self.captured)
        return size
