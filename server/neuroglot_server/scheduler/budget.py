"""How large a batch may be: in padded tokens, and in the bytes that are fed to its pass and taken out of it.

A batch is as long, in every respect, as the longest of its rows; so what it takes follows from the numbers of its
shape alone, and steps of one extent that go on from the same keys and values are interchangeable.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from neuroglot_server.engine.graph import Signature
from neuroglot_server.engine.steps import RowStep

_MOST_PADDING = (9, 8)
"""Most new positions a batch runs for the real ones: nine for eight, and some more."""

_PASS_POSITIONS = 48
"""How many more: with them a group of ten short prompts, of 6 to 16 tokens say, is one pass.

A pass by itself costs as much as 15 positions of a model of 560 million parameters, and more of a smaller one.
"""


class Extent(NamedTuple):
    """How long one step is in every respect.

    Attributes:
        new: its new tokens.
        past: the tokens whose keys and values it is fed.
        cross: the encoder's tokens whose keys and values it is fed.
        scored: positions whose logits it wants.
        tapped: trailing positions whose activations it wants.
        masked: 0 where nothing is edited, 1 where one edit stands for all of its positions, 2 where they differ.
        added: whether an edit does more than to multiply.
        kept: whether keys and values are wanted.
    """

    new: int
    past: int = 0
    cross: int = 0
    scored: int = 0
    tapped: int = 0
    masked: int = 0
    added: bool = False
    kept: bool = False

    @classmethod
    def of(cls, step: RowStep) -> Extent:
        """That of a step."""
        new = len(step.tokens)
        tapped = scored = masked = 0
        added = False
        if step.capture or step.thresholds:
            tapped = new
        elif step.taps:
            tapped = min(max(new - step.focus, 0), new)
        if step.scored:
            scored = max(new - step.first_scored, 0)
        if step.edits.anywhere:
            edits = [edit for _, edit in step.edited if edit is not None]
            masked = (1 if step.uniform else 2) if edits else 0
            added = any(edit.adds for edit in edits)
        return cls(new, step.past.length, step.cross.length, scored, tapped, masked, added, step.keep)

    def joined(self, other: Extent) -> Extent:
        """How long a batch is in which steps of both run."""
        return Extent._make(map(max, self, other))

    def unlikeness(self, other: Extent) -> tuple[int, int]:
        """How ill the two go together, the new tokens first, for all layers run over their padding."""
        return abs(self.new - other.new), abs(self.past - other.past) + abs(self.cross - other.cross)


class Shape(NamedTuple):
    """How large a batch is.

    Attributes:
        rows: how many it has.
        longest: the longest of each part of them.
        real: their new tokens, which are no padding.
        sources: from how many different keys and values its rows go on.
    """

    rows: int = 0
    longest: Extent = Extent(0)
    real: int = 0
    sources: int = 0

    @classmethod
    def of(cls, extents: Iterable[Extent]) -> Shape:
        """That of a batch of such steps, each of which goes on from keys and values of its own."""
        shape = cls()
        for extent in extents:
            shape = shape.grown(extent)
        return shape

    @property
    def positions(self) -> int:
        """Its new positions, padding included."""
        return self.rows * self.longest.new

    def grown(self, extent: Extent, count: int = 1, *, sources: int | None = None) -> Shape:
        """With more rows of one extent, which go on from so many more sources; each from its own unless it is said."""
        longest = self.longest.joined(extent)
        more = count if sources is None else sources
        return Shape(self.rows + count, longest, self.real + count * extent.new, self.sources + more)


_TIMES_A_LAYER = 2
"""Of what rows go on from, a layer holds what it picks, and the same beside the new tokens'."""


@dataclass(frozen=True)
class Sizes:
    """What one position of one row takes up, in bytes.

    Attributes:
        key_values: keys and values of all layers.
        activations: activations of all layers, and coefficients where they differ.
        edits: masks of all layers, and as much again of overrides.
        neurons: a byte a neuron: masks that only switch neurons on and off, before they are fed.
        logits: scores of all words.
        layers: where rows that go on from the same keys and values share what is fed: in how many parts a pass picks
            it for them, one held at a time; 0 where keys and values of every row are fed.
        past_comes_out: whether a pass of several tokens a row gives keys and values of the past, too.
    """

    key_values: int = 0
    activations: int = 0
    edits: int = 0
    neurons: int = 0
    logits: int = 0
    layers: int = 0
    past_comes_out: bool = False

    @classmethod
    def of(cls, signature: Signature, decoder: Signature, *, prepacked: bool = False) -> Sizes:
        """Those of a component.

        Args:
            signature: the component's.
            decoder: the decoder's, whose keys and values an encoder gives.
            prepacked: whether it runs saved prepacked weights, whose passes hold what all layers pick at once.
        """
        item = signature.dtype.itemsize
        neurons = signature.layers * signature.neurons
        return cls(
            key_values=2 * decoder.layers * decoder.heads * decoder.head_size * decoder.dtype.itemsize,
            activations=neurons * item * (2 if signature.coefficients else 1),
            edits=neurons * item,
            neurons=neurons,
            logits=signature.vocabulary * item,
            layers=(1 if prepacked else signature.layers) if signature.forks else 0,
            past_comes_out=not signature.trailing,
        )

    def batch(self, shape: Shape) -> int:
        """Bytes of a batch."""
        return shape.sources * self.source(shape.longest) + shape.rows * self.row(shape.longest)

    def source(self, longest: Extent) -> int:
        """Bytes of what rows of a batch that is so long share with those that go on from the same.

        An encoder's prompt is shared by all of its answers, whose own tokens are no source: they are few.
        """
        return (longest.cross or longest.past) * self.key_values if self.layers else 0

    def row(self, longest: Extent) -> int:
        """Bytes of each row of a batch that is so long, but for what it shares.

        The past may come out again before the new keys and values where any row keeps them: of a graph that gives no
        less, and of rows of one new token, whose next past it is on a device (`device_memory`).
        """
        size = longest.tapped * self.activations + longest.scored * self.logits
        if longest.past or longest.cross:
            fed = (longest.past + longest.cross) * self.key_values
            if self.layers:
                fed = fed * min(_TIMES_A_LAYER, self.layers) // self.layers
                fed += longest.past * bool(longest.cross) * self.key_values
            size += fed
        if longest.kept:
            again = longest.past if self.past_comes_out or longest.new == 1 else 0
            size += (again + longest.new) * self.key_values
        if longest.masked:
            size += (1 if longest.masked == 1 else longest.new) * (1 + longest.added) * self.edits
        return size


@dataclass(frozen=True)
class Budget:
    """How large the batches of a component may be.

    Attributes:
        tokens: most new tokens of a batch of several rows, padding included. A row by itself may be longer; tokens of
            the past and of an encoder's prompt are hardly any work, and bounded by their bytes.
        bytes: most that a batch feeds and gets: keys and values, activations, edits and logits.
        sizes: what each of these takes up.
    """

    tokens: int
    bytes: int
    sizes: Sizes

    def room(self, shape: Shape, extent: Extent, tokens: int, *, sources: int | None = None) -> int:
        """How many steps of an extent may join a batch.

        Args:
            shape: the batch so far.
            extent: of each of the steps.
            tokens: most new tokens that it may have then, if fewer than the budget's.
            sources: from how many more sources they go on together: 1, or 0 where the batch has it already. None where
                each goes on from its own.
        """
        longest = shape.longest.joined(extent)
        rows = min(self.tokens, tokens) // longest.new
        source, row = self.sizes.source(longest), self.sizes.row(longest)
        left = self.bytes - (shape.sources + (sources or 0)) * source - shape.rows * row
        if each_takes := row + (source if sources is None else 0):
            rows = min(rows, shape.rows + left // each_takes)
        room = rows - shape.rows
        # Padding may be `real * rows * longest.new <= positions * real tokens`, and `_PASS_POSITIONS` more. Each more
        # row takes `each` off what is left of that; where it adds to it the first must fit, and then all do.
        positions, real = _MOST_PADDING
        slack = positions * shape.real - real * (shape.rows * longest.new - _PASS_POSITIONS)
        each = real * longest.new - positions * extent.new
        if each > 0:
            room = min(room, slack // each)
        elif slack < each:
            room = 0
        return max(room, 0)

    def holds(self, shape: Shape) -> bool:
        """Whether a batch may be so large; a row by itself may, unless it is refused."""
        if shape.rows == 1:
            return True
        positions, real = _MOST_PADDING
        return (
            shape.positions <= self.tokens
            and real * (shape.positions - _PASS_POSITIONS) <= positions * shape.real
            and self.sizes.batch(shape) <= self.bytes
        )

    def full(self, shape: Shape) -> bool:
        """Whether no step fits any more: not even one that makes no part of the batch longer, and has no new source."""
        longest = shape.longest
        return (
            shape.positions + longest.new > self.tokens
            or self.sizes.batch(shape) + self.sizes.row(longest) > self.bytes
        )

    def refusal(self, extent: Extent) -> str:
        """Why a step cannot run at all, not even alone; empty if it can."""
        size = self.sizes.source(extent) + self.sizes.row(extent)
        if size > self.bytes:
            return (
                f"a row of it takes up {size / 2**20:.1f} MiB in one batch ({extent.past + extent.cross} tokens before "
                f"{extent.new} new ones), and a batch may take up {self.bytes / 2**20:.1f} MiB (batch_bytes): shorten "
                "it, or ask for less of each token"
            )
        return ""

    def longest_row(self, extent: Callable[[int], Extent], most: int) -> int:
        """The longest row, of up to `most` tokens, whose step is within the budget; it has that extent."""
        return bisect_left(range(1, most + 1), 1, key=lambda tokens: bool(self.refusal(extent(tokens))))
