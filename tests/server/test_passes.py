from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from neuroglot.bundle import read_manifest
from neuroglot_server.engine import Engine
from neuroglot_server.kernels.scoring import NextTokens
from neuroglot_server.steps import NO_PAST, Edit, KeyValues, RowStep, StepResult
from tests.checkpoints import CONFIGS, RandomModel

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=CONFIGS)
def engine(request: pytest.FixtureRequest, random_model: Callable[[str], RandomModel]) -> Engine:
    bundle = random_model(request.param).bundle
    (component,) = read_manifest(bundle).model.components
    return Engine(bundle / component.graph, component, threads=1)


class Steps:
    """Random steps for an engine."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.random = np.random.default_rng(seed)

    def tokens(self, length: int) -> tuple[int, ...]:
        return tuple(self.random.integers(4, 320, length).tolist())

    def past(self, *lengths: int) -> KeyValues:
        """Keys and values of a prompt, computed in as many pieces as there are lengths."""
        past = NO_PAST
        for length in lengths:
            (result,) = self.engine.run([RowStep(self.tokens(length), past, keep=True)])
            assert result.kept is not None
            past = past.extended(result.kept)
        return past

    def edit(self, *layers: int, size: float = 1.0) -> Edit:
        shape = (len(layers), self.engine.signature.neurons)
        mask = self.random.normal(size=shape).astype(np.float32)
        return Edit(layers, mask, (self.random.normal(size=shape) * size).astype(np.float32))


def mixed_batch(engine: Engine) -> list[RowStep]:
    """Steps of every kind and of different lengths; every one wants all that can be wanted."""
    steps = Steps(engine, seed=1)
    everywhere = steps.edit(0, 1, 2)
    rows = [
        RowStep(steps.tokens(9)),
        RowStep(steps.tokens(1)),
        RowStep(steps.tokens(4), steps.past(3, 1, 1)),
        RowStep(steps.tokens(1), steps.past(12), first=steps.edit(1)),
        RowStep(steps.tokens(3), steps.past(5), first=steps.edit(0, 2), rest=steps.edit(2)),
        RowStep(steps.tokens(5), steps.past(2), rest=steps.edit(0)),
        RowStep(steps.tokens(6), first=everywhere, rest=everywhere),
    ]
    return [replace(row, taps=True, scored=True, targets=steps.tokens(len(row.tokens)), keep=True) for row in rows]


def assert_same(got: StepResult, expected: StepResult) -> None:
    assert got.finite
    for one, other in (
        (got.activations, expected.activations),
        (got.coefficients, expected.coefficients),
        (got.kept, expected.kept),
    ):
        assert one is not None
        assert other is not None
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= TOLERANCE
    assert isinstance(got.scores, NextTokens)
    assert isinstance(expected.scores, NextTokens)
    assert got.scores.greedy == expected.scores.greedy
    np.testing.assert_allclose(got.scores.log_probabilities, expected.scores.log_probabilities, atol=TOLERANCE)


def test_every_row_of_a_mixed_batch_equals_itself_alone(engine: Engine) -> None:
    batch = mixed_batch(engine)
    alone = [engine.run([step])[0] for step in batch]
    for order in (range(len(batch)), range(len(batch) - 1, -1, -1)):
        together = engine.run([batch[index] for index in order])
        for result, index in zip(together, order, strict=True):
            assert_same(result, alone[index])


def test_edits_move_what_they_should_by_much(engine: Engine) -> None:
    """Or the comparisons here would hold for edits that are not applied at all."""
    for step in mixed_batch(engine):
        if step.first is None and step.rest is None:
            continue
        (edited,) = engine.run([step])
        (plain,) = engine.run([replace(step, first=None, rest=None)])
        assert edited.scores is not None
        assert plain.scores is not None
        moved = np.abs(np.subtract(edited.scores.log_probabilities, plain.scores.log_probabilities))
        assert moved[-1] >= 100 * TOLERANCE
        if step.first is None:
            assert moved[0] <= TOLERANCE


def test_a_row_that_is_not_finite_spoils_no_other(engine: Engine) -> None:
    batch = mixed_batch(engine)
    alone = [engine.run([step])[0] for step in batch]
    steps = Steps(engine, seed=2)
    spoilt = RowStep(steps.tokens(2), steps.past(4), first=steps.edit(0, 1, 2, size=1e38), scored=True, keep=True)
    assert not engine.run([spoilt])[0].finite
    together = engine.run([spoilt, *batch, spoilt])
    assert [result.finite for result in together] == [False, *[True] * len(batch), False]
    for result, expected in zip(together[1:-1], alone, strict=True):
        assert_same(result, expected)


def test_a_prompt_run_in_pieces_equals_the_prompt_run_at_once(engine: Engine) -> None:
    steps = Steps(engine, seed=3)
    tokens, targets = steps.tokens(8), steps.tokens(8)
    (whole,) = engine.run([RowStep(tokens, scored=True, targets=targets)])
    past = NO_PAST
    log_probabilities: list[float] = []
    for piece in (slice(0, 5), slice(5, 6), slice(6, 8)):
        (result,) = engine.run([RowStep(tokens[piece], past, scored=True, targets=targets[piece], keep=True)])
        assert result.kept is not None
        assert result.scores is not None
        past = past.extended(result.kept)
        log_probabilities += result.scores.log_probabilities
    assert whole.scores is not None
    np.testing.assert_allclose(log_probabilities, whole.scores.log_probabilities, atol=TOLERANCE)


def test_only_what_is_wanted_comes_back(engine: Engine) -> None:
    steps = Steps(engine, seed=4)
    wanted: Sequence[RowStep] = [
        RowStep(steps.tokens(5), keep=True),
        RowStep(steps.tokens(2), steps.past(3), taps=True),
        RowStep(steps.tokens(3), steps.past(1), scored=True),
    ]
    kept, tapped, scored = engine.run(wanted)
    assert (kept.activations, kept.scores) == (None, None)
    assert (tapped.kept, tapped.scores) == (None, None)
    assert (scored.kept, scored.activations) == (None, None)
    assert scored.scores is not None
    assert len(scored.scores.greedy) == 3
    assert scored.scores.log_probabilities == ()


def test_kept_keys_and_values_do_not_hold_on_to_the_batch(engine: Engine) -> None:
    steps = Steps(engine, seed=5)
    for result in engine.run([RowStep(steps.tokens(length), keep=True) for length in (2, 7, 3)]):
        assert result.kept is not None
        assert result.kept.base is None
