"""Memory of groups: splitting variants into parts bounds it and does not change results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroglot.definitions.packing import pack_bits
from neuroglot_server.core import (
    Action,
    Add,
    Analysis,
    ByNeuron,
    ComponentDescription,
    Convert,
    Deactivate,
    Intervention,
    Override,
    Prediction,
    Scale,
    Scope,
    Settings,
    Variant,
)
from neuroglot_server.intake.costs import Costs
from neuroglot_server.intake.text import EncodedRow
from neuroglot_server.scheduler.budget import Sizes
from tests.server.serving import CAPITALS, analyze

COMPONENTS = (ComponentDescription("decoder", 1, 10, 8, "gelu", gated=False),)
SIZES = Sizes(key_values=100, activations=40, edits=40, neurons=10, logits=10)
ROWS = [EncodedRow("en", (1,) * 30, (5, 6), True, ("Paris",)), EncodedRow("th", (1,) * 50, (), False, ())]
ALL = ByNeuron("", 1, 10, bytes([255, 3]))


def under(*actions: Action) -> tuple[Variant, ...]:
    """One variant for each action."""
    return tuple(Variant(str(index), (Intervention(ALL, action),)) for index, action in enumerate(actions))


GENERATED = Analysis(prediction=Prediction(generate=True), variants=under(Scale(2.0), Add(1.0)))


def held(costs: Costs, rows: list[tuple[EncodedRow, bool]]) -> int:
    """Bytes of keys and values: of generated tokens, one more than are run, and of prompts whose prefill is re-run."""
    return sum(100 * (1 + (6 if row.gold else 16) + rerun * len(row.prompt)) for row, rerun in rows)


@given(
    count=st.integers(0, 40),
    changed=st.lists(st.tuples(st.sampled_from(ROWS), st.booleans()), max_size=30),
    group=st.integers(1, 50_000),
    part=st.integers(1, 20_000),
)
def test_parts_cover_everything_in_order_within_the_limits(
    count: int, changed: list[tuple[EncodedRow, bool]], group: int, part: int
) -> None:
    costs = Costs([SIZES], group, part, COMPONENTS)
    variants, rows = costs.variants(ROWS, GENERATED, count), costs.rows(ROWS, GENERATED, changed)
    assert [index for part_of in variants for index in range(count)[part_of]] == list(range(count))
    assert [index for part_of in rows for index in range(len(changed))[part_of]] == list(range(len(changed)))
    for part_of in variants:
        assert part_of.stop - part_of.start <= 1 or (part_of.stop - part_of.start) * len(ROWS) * 2 * SIZES.edits <= part
    for part_of in rows:
        assert part_of.stop - part_of.start <= 1 or held(costs, changed[part_of]) <= part


def test_long_prompts_make_smaller_parts_of_variants_and_the_group_still_fits() -> None:
    short, long = (EncodedRow("en", (1,) * length, (5,), True, ("a",)) for length in (10, 400))
    for row in (short, long):
        costs = Costs([SIZES], 50_000, 10_000, COMPONENTS)
        assert costs.bytes([row], replace(GENERATED, prediction=Prediction()), [False] * 64) <= 50_000
    assert len(costs.variants([long], GENERATED, 64)) > len(costs.variants([short], GENERATED, 64))


def test_the_memory_of_a_group_stops_growing_with_its_variants() -> None:
    costs = Costs([SIZES], 10**6, 5_000, COMPONENTS)
    sizes = [costs.bytes(ROWS, GENERATED, [False] * count) for count in (0, 1, 31, 32, 400)]
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[2] == sizes[3] == sizes[4]


@pytest.mark.parametrize(
    ("actions", "of_row"),
    [
        ((Deactivate(),), 10),
        ((Deactivate(), Convert(1.0)), 10 + 40),
        ((Override(0.5),), 10 + 40),
        ((Scale(2.0), Deactivate()), 40),
        ((Scale(2.0), Add(1.0)), 40 + 40),
    ],
)
def test_the_size_of_edits_depends_on_the_actions(actions: tuple[Action, ...], of_row: int) -> None:
    costs = Costs([SIZES], 10**6, 4_000, COMPONENTS)
    analysis = Analysis(prediction=Prediction(), variants=under(*actions))
    assert costs.variants(ROWS, analysis, 10**6)[0].stop == 4_000 // (len(ROWS) * of_row)


@pytest.mark.parametrize("generate", [False, True])
def test_many_variants_in_parts_have_the_results_of_one_part(bloom_bundle: Path, generate: bool) -> None:
    random = np.random.default_rng(7)
    variants = tuple(
        Variant(
            f"draw {draw}",
            (
                Intervention(
                    ByNeuron("", 3, 96, pack_bits(random.random((3, 96)) < 0.5)),
                    Deactivate(),
                    scope=Scope.ALL_PROMPT_TOKENS if draw % 3 == 0 else Scope.LAST_PROMPT_TOKEN,
                ),
            ),
        )
        for draw in range(12)
    )
    twice = (*variants, Variant("the first again", variants[0].interventions))
    analysis = Analysis(prediction=Prediction(generate=generate), variants=twice)
    together = analyze(bloom_bundle, CAPITALS, analysis)
    split = analyze(bloom_bundle, CAPITALS, analysis, Settings(threads=1, batch_bytes=200_000))
    assert [variant.name for variant in split.variants] == ["baseline", *(variant.name for variant in twice)]
    for left, right in zip(split.variants, together.variants, strict=True):
        for one, other in zip(left.predictions, right.predictions, strict=True):
            assert one.token_ids == other.token_ids
            assert one.gold_log_probability == pytest.approx(other.gold_log_probability, abs=1e-5)
    assert split.variants[-1].predictions == split.variants[1].predictions
