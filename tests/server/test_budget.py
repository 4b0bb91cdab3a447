from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neuroglot_server.budget import Budget, Extent, Shape, Sizes
from neuroglot_server.passes import inputs
from neuroglot_server.signature import Interface, Signature
from neuroglot_server.steps import Edit, Edits, KeyValues, RowStep

HUGE = 10**9
SIZES = Sizes(key_values=7, activations=31, edits=62, logits=101)

EXTENTS = st.builds(
    Extent,
    new=st.integers(8, 14),
    past=st.integers(0, 70),
    cross=st.integers(0, 30),
    scored=st.integers(0, 4),
    tapped=st.integers(0, 2),
    masked=st.integers(0, 2),
    kept=st.booleans(),
)


def needed(extents: list[Extent]) -> int:
    """Bytes of a batch, read off its definition: each row is as long as the longest, in every respect."""
    rows = len(extents)
    new = max(one.new for one in extents)
    past = max(one.past for one in extents)
    total = rows * (past + max(one.cross for one in extents)) * SIZES.key_values
    if any(one.kept for one in extents):
        total += rows * new * SIZES.key_values
    total += rows * max(one.tapped for one in extents) * SIZES.activations
    total += rows * max(one.scored for one in extents) * SIZES.logits
    if any(one.masked == 2 for one in extents):
        return total + rows * new * SIZES.edits
    return total + rows * any(one.masked for one in extents) * SIZES.edits


def padding(extents: list[Extent]) -> float:
    """What is too much in padding, for each real token."""
    real = sum(one.new for one in extents)
    return (len(extents) * max(one.new for one in extents) - 48 - real) / real


@given(st.lists(EXTENTS, min_size=1, max_size=6), EXTENTS, st.integers(1, 4000), st.integers(1, 30_000))
def test_room_is_for_as_many_as_fit_and_no_more(batch: list[Extent], extent: Extent, tokens: int, size: int) -> None:
    budget = Budget(tokens, size, SIZES)

    def fits(extents: list[Extent]) -> bool:
        longest = max(one.new for one in extents)
        return len(extents) * longest <= tokens and needed(extents) <= size and padding(extents) <= 1 / 8

    room = budget.room(Shape.of(batch), extent, HUGE)
    assert all(fits([*batch, *[extent] * count]) for count in range(1, room + 1))
    assert not fits([*batch, *[extent] * (room + 1)])


@given(st.lists(EXTENTS, min_size=1, max_size=6))
def test_a_full_batch_has_no_room_for_anything(batch: list[Extent]) -> None:
    shape = Shape.of(batch)
    budget = Budget(shape.positions, shape.rows * SIZES.row(shape.longest), SIZES)
    assert budget.full(shape)
    assert all(budget.room(shape, extent, HUGE) == 0 for extent in batch)


def test_fewer_tokens_than_the_budget_may_be_asked_for() -> None:
    budget = Budget(100, HUGE, SIZES)
    shape = Shape().grown(Extent(5))
    assert budget.room(shape, Extent(5), HUGE) == 19
    assert budget.room(shape, Extent(5), 20) == 3


def test_a_step_that_is_too_large_is_refused_with_the_limit() -> None:
    budget = Budget(100, 10 * 2**20, Sizes(key_values=2**20))
    assert budget.refusal(Extent(10)) == ""
    assert Budget(5, HUGE, SIZES).refusal(Extent(10)) == "", "a row by itself may be longer"
    assert "takes up 21.0 MiB in one batch (10 tokens before 1 new ones), and a batch may take up 10.0 MiB" in (
        budget.refusal(Extent(1, past=10, kept=True))
    )
    assert budget.longest_row(lambda tokens: Extent(tokens, kept=True), 50) == 10
    assert budget.longest_row(lambda tokens: Extent(tokens), 50) == 50
    assert budget.longest_row(lambda tokens: Extent(1, tokens, kept=True), 50) == 4
    assert Budget(1, 1, Sizes(key_values=9)).longest_row(lambda tokens: Extent(tokens, kept=True), 50) == 0


def test_the_past_counts_twice_where_it_comes_out_again() -> None:
    trailing, whole = Sizes(key_values=1), Sizes(key_values=1, past_comes_out=True)
    several, one = Extent(4, past=20, kept=True), Extent(1, past=20, kept=True)
    assert (trailing.row(several), whole.row(several)) == (24, 44)
    assert trailing.row(one) == whole.row(one) == 41, "a device keeps the whole for the next pass"


def test_extents_say_what_a_step_asks_for() -> None:
    edit = Edit((0,), np.ones((1, 4), np.float32), np.ones((1, 4), np.float32))
    everywhere, at_last = Edits(edit, edit, edit), Edits(at=edit)
    tokens = (5, 6, 7)
    assert Extent.of(RowStep(tokens)) == Extent(3)
    assert Extent.of(RowStep(tokens, focus=2, taps=True)) == Extent(3, tapped=1)
    assert Extent.of(RowStep(tokens, focus=0, taps=True, keep=True)) == Extent(3, tapped=3, kept=True)
    assert Extent.of(RowStep(tokens, thresholds=(0.0,), focus=2)).tapped == 3
    assert Extent.of(RowStep(tokens, capture=True, focus=2)).tapped == 3
    assert Extent.of(RowStep(tokens, scored=True)).scored == 3
    assert Extent.of(RowStep(tokens, scored=True, focus=2)).scored == 1
    assert Extent.of(RowStep(tokens, scored=True, focus=-1)).scored == 3
    assert Extent.of(RowStep(tokens, focus=1, edits=everywhere)).masked == 1
    assert Extent.of(RowStep(tokens, focus=1, edits=at_last)).masked == 2
    assert Extent.of(RowStep(tokens, focus=-1, edits=at_last)).masked == 0, "it acts in the past"
    assert Extent.of(RowStep((5,), focus=0, edits=at_last)).masked == 1


def test_bytes_are_those_of_the_arrays_that_are_fed() -> None:
    names = tuple(f"past.{layer}.{part}" for layer in range(2) for part in ("key", "value"))
    signature = Signature(
        Interface("attention_mask", names, (), names),
        layers=2,
        neurons=11,
        dtype=np.dtype(np.float32),
        heads=3,
        head_size=5,
        position_ids=False,
        coefficients=False,
        trailing=True,
    )
    sizes = Sizes.of(signature, signature, vocabulary_size=17)
    edit = Edit((0, 1), np.ones((2, 11), np.float32), np.ones((2, 11), np.float32))
    past = KeyValues((np.ones((4, 3, 6, 5), np.float32),))
    steps = [RowStep((1, 2), past, focus=1, edits=Edits(at=edit)), RowStep((3, 4, 5), focus=2)]
    edits = sum(array.nbytes for name, array in inputs(steps, signature).items() if name.startswith("ffn"))
    padded_past = np.zeros((4, 2, 3, 6, 5), np.float32).nbytes
    shape = Shape.of(map(Extent.of, steps))
    assert shape.rows * sizes.row(shape.longest) == edits + padded_past
    assert sizes.logits == 17 * 4
    assert sizes.activations == 2 * 11 * 4
