from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neuroglot_server.engine.graph import Interface, Signature
from neuroglot_server.engine.passes import inputs
from neuroglot_server.engine.steps import Edit, Edits, KeyValues, RowStep
from neuroglot_server.scheduler.budget import Budget, Extent, Shape, Sizes

HUGE = 10**9
OLDER = Sizes(key_values=7, activations=31, edits=31, logits=101)
SIZES = [OLDER, replace(OLDER, layers=2), replace(OLDER, layers=12)]

EXTENTS = st.builds(
    Extent,
    new=st.integers(8, 14),
    past=st.integers(0, 70),
    cross=st.integers(0, 30),
    scored=st.integers(0, 4),
    tapped=st.integers(0, 2),
    masked=st.integers(0, 2),
    added=st.booleans(),
    kept=st.booleans(),
)
SOURCES = st.integers(0, 3)
"""What a row goes on from, if others may go on from the same; 0: from its own."""


def needed(extents: list[Extent], sources: list[int], sizes: Sizes) -> int:
    """Bytes of a batch, read off its definition: each row is as long as the longest, in every respect."""
    rows = len(extents)
    new = max(one.new for one in extents)
    past = max(one.past for one in extents)
    cross = max(one.cross for one in extents)
    if sizes.layers:
        different = sources.count(0) + len(set(sources) - {0})
        total = different * (cross or past) * sizes.key_values + (rows * past * sizes.key_values if cross else 0)
        total += rows * ((past + cross) * sizes.key_values * min(2, sizes.layers) // sizes.layers)
    else:
        total = rows * (past + cross) * sizes.key_values
    if any(one.kept for one in extents):
        total += rows * new * sizes.key_values
    total += rows * max(one.tapped for one in extents) * sizes.activations
    total += rows * max(one.scored for one in extents) * sizes.logits
    edits = sizes.edits * (2 if any(one.added for one in extents) else 1)
    if any(one.masked == 2 for one in extents):
        return total + rows * new * edits
    return total + rows * any(one.masked for one in extents) * edits


def padding(extents: list[Extent]) -> float:
    """What is too much in padding, for each real token."""
    real = sum(one.new for one in extents)
    return (len(extents) * max(one.new for one in extents) - 48 - real) / real


def shape_of(extents: list[Extent], sources: list[int]) -> Shape:
    shape = Shape()
    for place, (extent, source) in enumerate(zip(extents, sources, strict=True)):
        shape = shape.grown(extent, sources=1 if not source else int(source not in sources[:place]))
    return shape


@given(
    st.lists(st.tuples(EXTENTS, SOURCES), min_size=1, max_size=6),
    EXTENTS,
    SOURCES,
    st.sampled_from(SIZES),
    st.integers(1, 4000),
    st.integers(1, 30_000),
)
def test_room_is_for_as_many_as_fit_and_no_more(
    batch: list[tuple[Extent, int]], extent: Extent, source: int, sizes: Sizes, tokens: int, size: int
) -> None:
    budget = Budget(tokens, size, sizes)
    extents, sources = [extent for extent, _ in batch], [source for _, source in batch]

    def fits(count: int) -> bool:
        rows = [*extents, *[extent] * count]
        longest = max(one.new for one in rows)
        held = needed(rows, [*sources, *[source] * count], sizes)
        return len(rows) * longest <= tokens and held <= size and padding(rows) <= 1 / 8

    assert budget.holds(shape_of(extents, sources)) == (fits(0) or len(extents) == 1)
    more = None if source == 0 else int(source not in sources)
    room = budget.room(shape_of(extents, sources), extent, HUGE, sources=more)
    assert all(map(fits, range(1, room + 1)))
    assert not fits(room + 1)


@given(st.lists(EXTENTS, min_size=1, max_size=6), st.sampled_from(SIZES))
def test_a_full_batch_has_no_room_for_anything(batch: list[Extent], sizes: Sizes) -> None:
    shape = Shape.of(batch)
    budget = Budget(shape.positions, sizes.batch(shape), sizes)
    assert budget.full(shape)
    assert all(budget.room(shape, extent, HUGE, sources=0) == 0 for extent in batch)


def test_fewer_tokens_than_the_budget_may_be_asked_for() -> None:
    budget = Budget(100, HUGE, OLDER)
    shape = Shape().grown(Extent(5))
    assert budget.room(shape, Extent(5), HUGE) == 19
    assert budget.room(shape, Extent(5), 20) == 3


def test_a_step_that_is_too_large_is_refused_with_the_limit() -> None:
    budget = Budget(100, 10 * 2**20, Sizes(key_values=2**20))
    assert budget.refusal(Extent(10)) == ""
    assert Budget(5, HUGE, OLDER).refusal(Extent(10)) == "", "a row by itself may be longer"
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


def test_rows_that_go_on_from_the_same_count_it_once() -> None:
    budget = Budget(HUGE, 1000, Sizes(key_values=1, layers=10))
    fork = Extent(1, past=100)  # of which a layer's share is 10, and a layer holds it twice
    assert budget.room(Shape(), fork, HUGE, sources=1) == 45
    assert budget.room(Shape().grown(fork, 5, sources=1), fork, HUGE, sources=0) == 40
    assert budget.room(Shape(), fork, HUGE) == 8, "each from its own"


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
    factor = Edits(at=replace(edit, override=None))
    assert [Extent.of(RowStep((5,), edits=edits)).added for edits in (at_last, factor)] == [True, False]


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
        forks=False,
        vocabulary=17,
    )
    sizes = Sizes.of(signature, signature)
    edit = Edit((0, 1), np.ones((2, 11), np.float32), np.ones((2, 11), np.float32))
    past = KeyValues((np.ones((4, 3, 6, 5), np.float32),))
    steps = [RowStep((1, 2), past, focus=1, edits=Edits(at=edit)), RowStep((3, 4, 5), focus=2)]
    edits = sum(array.nbytes for name, array in inputs(steps, signature).items() if name.startswith("ffn"))
    padded_past = np.zeros((4, 2, 3, 6, 5), np.float32).nbytes
    shape = Shape.of(map(Extent.of, steps))
    assert sizes.batch(shape) == edits + padded_past
    assert sizes.logits == 17 * 4
    forking = replace(signature, forks=True)
    shallow, deep = (Sizes.of(one, one).row(Extent(1, past=8)) for one in (forking, replace(forking, layers=8)))
    assert shallow == deep == 8 * sizes.key_values, "what a layer of it takes up, as often as a pass holds one"
    assert sizes.activations == 2 * 11 * 4
