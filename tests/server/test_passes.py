from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import pytest

from neuroglot.bundle import read_manifest
from neuroglot_server.engine import Engine
from neuroglot_server.signature import interfaces
from neuroglot_server.steps import NO_TOKENS, Edit, Edits, KeyValues, RowStep, StepResult
from tests.checkpoints import RandomModel
from tests.server.reference import CAUSAL, COMPONENTS, ENCODER_DECODERS

TOLERANCE = 1e-4


class Engines(NamedTuple):
    """The engine of a component, and that of the encoder whose keys and values it reads, if it does."""

    engine: Engine
    encoder: Engine | None


@pytest.fixture(
    scope="module", params=[*product(CAUSAL, ["decoder"]), *product(ENCODER_DECODERS, COMPONENTS)], ids=" ".join
)
def engines(request: pytest.FixtureRequest, random_model: Callable[[str], RandomModel]) -> Engines:
    family, component = request.param
    bundle = random_model(family).bundle
    facts = read_manifest(bundle).model
    found = {
        part.name: Engine(bundle / part.graph, part, interfaces(facts)[part.name], threads=1)
        for part in facts.components
    }
    return Engines(found[component], found.get("encoder") if component == "decoder" else None)


class Steps:
    """Random steps for an engine."""

    def __init__(self, engines: Engines, seed: int) -> None:
        self.engine, self.encoder = engines
        self.random = np.random.default_rng(seed)

    def tokens(self, length: int) -> tuple[int, ...]:
        return tuple(self.random.integers(4, 320, length).tolist())

    def step(self, new: int, *past: int, **more: Any) -> RowStep:
        """Some new tokens after a prompt, whose keys and values were computed in as many pieces as there are lengths.

        An encoder has no past. What another encoder read is of another length every time.
        """
        step = RowStep(self.tokens(new), cross=self.cross(), **more)
        for length in past if self.engine.signature.interface.past else ():
            (result,) = self.engine.run([RowStep(self.tokens(length), step.past, step.cross, keep=True)])
            assert result.kept is not None
            step = replace(step, past=step.past.extended(result.kept))
        return step

    def cross(self) -> KeyValues:
        if self.encoder is None:
            return NO_TOKENS
        (result,) = self.encoder.run([RowStep(self.tokens(int(self.random.integers(1, 20))), keep=True)])
        assert result.kept is not None
        return NO_TOKENS.extended(result.kept)

    def edit(self, *layers: int, size: float = 1.0) -> Edit:
        layers = tuple(sorted({layer % self.engine.signature.layers for layer in layers}))
        shape = (len(layers), self.engine.signature.neurons)
        mask = self.random.normal(size=shape).astype(np.float32)
        return Edit(layers, mask, (self.random.normal(size=shape) * size).astype(np.float32))


def mixed_batch(engines: Engines) -> list[RowStep]:
    """Steps of every kind and of different lengths; every one wants all that can be wanted."""
    steps = Steps(engines, seed=1)
    everywhere = steps.edit(0, 1, 2)
    rows = [
        steps.step(9),
        steps.step(1),
        steps.step(4, 3, 1, 1),
        steps.step(1, 12, edits=Edits(at=steps.edit(1))),
        steps.step(3, 5, edits=Edits(steps.edit(1), steps.edit(0, 2), steps.edit(2))),
        steps.step(5, 2, edits=Edits(after=steps.edit(0))),
        steps.step(6, focus=3, edits=Edits(steps.edit(0), steps.edit(1), steps.edit(1, 2))),
        steps.step(6, focus=5, edits=Edits(everywhere, everywhere, everywhere)),
    ]
    scored = engines.engine.signature.interface.logits
    return [
        replace(row, taps=True, scored=scored, targets=steps.tokens(len(row.tokens) * scored), keep=True)
        for row in rows
    ]


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
    if expected.scores is None:
        assert got.scores is None
        return
    assert got.scores is not None
    assert got.scores.greedy == expected.scores.greedy
    np.testing.assert_allclose(got.scores.log_probabilities, expected.scores.log_probabilities, atol=TOLERANCE)


def test_every_row_of_a_mixed_batch_equals_itself_alone(engines: Engines) -> None:
    batch = mixed_batch(engines)
    alone = [engines.engine.run([step])[0] for step in batch]
    for order in (range(len(batch)), range(len(batch) - 1, -1, -1)):
        together = engines.engine.run([batch[index] for index in order])
        for result, index in zip(together, order, strict=True):
            assert_same(result, alone[index])


def test_edits_move_what_they_should_by_much(engines: Engines) -> None:
    """Or the comparisons here would hold for edits that are not applied at all."""
    for step in mixed_batch(engines):
        if not step.edits.anywhere:
            continue
        (edited,) = engines.engine.run([step])
        (plain,) = engines.engine.run([replace(step, edits=Edits())])
        moved = moved_at_each_token(edited, plain)
        assert moved[-1] >= 100 * TOLERANCE
        if step.edits.at is None and engines.engine.signature.interface.past:
            assert moved[0] <= TOLERANCE


def moved_at_each_token(one: StepResult, other: StepResult) -> np.ndarray:
    """Of the scores; of an encoder, which has none, of the keys and values."""
    if one.scores is None or other.scores is None:
        assert one.kept is not None
        assert other.kept is not None
        moved: np.ndarray = np.abs(one.kept - other.kept).max(axis=(0, 1, 3))
        return moved
    return np.abs(np.subtract(one.scores.log_probabilities, other.scores.log_probabilities))


def test_a_row_that_is_not_finite_spoils_no_other(engines: Engines) -> None:
    batch = mixed_batch(engines)
    alone = [engines.engine.run([step])[0] for step in batch]
    steps = Steps(engines, seed=2)
    spoilt = steps.step(2, 4, edits=Edits(at=steps.edit(0, 1, 2, size=1e38)), keep=True)
    (result,) = engines.engine.run([spoilt])
    assert result.kept is not None
    assert not np.isfinite(result.kept).all()
    together = engines.engine.run([spoilt, *batch, spoilt])
    for result, expected in zip(together[1:-1], alone, strict=True):
        assert_same(result, expected)


def test_a_row_that_is_not_finite_says_so(engines: Engines) -> None:
    steps = Steps(engines, seed=6)
    wanted = {"scored": True} if engines.engine.signature.interface.logits else {"taps": True}
    step = steps.step(2, 4, edits=Edits(at=steps.edit(0, 1, 2, size=1e38)), **wanted)
    assert not engines.engine.run([step])[0].finite


def test_the_taps_are_those_of_the_focus(engines: Engines) -> None:
    """In a decoder they are what the tokens up to there give by themselves."""
    steps = Steps(engines, seed=7)
    step = steps.step(7, 3, taps=True)
    seen = [engines.engine.run([replace(step, focus=focus)])[0].activations for focus in range(7)]
    for one, other in pairwise(seen):
        assert one is not None
        assert other is not None
        assert np.abs(one - other).max() >= 100 * TOLERANCE
    if engines.engine.signature.interface.past:
        for focus, activations in enumerate(seen):
            (alone,) = engines.engine.run([replace(step, tokens=step.tokens[: focus + 1], focus=focus)])
            assert activations is not None
            assert alone.activations is not None
            assert np.abs(activations - alone.activations).max() <= TOLERANCE


def test_a_prompt_run_in_pieces_equals_the_prompt_run_at_once(engines: Engines) -> None:
    if not engines.engine.signature.interface.past:
        return  # an encoder's first tokens depend on its last
    steps = Steps(engines, seed=3)
    whole = steps.step(8, scored=True, targets=steps.tokens(8))
    (at_once,) = engines.engine.run([whole])
    past = NO_TOKENS
    log_probabilities: list[float] = []
    for piece in (slice(0, 5), slice(5, 6), slice(6, 8)):
        part = replace(whole, tokens=whole.tokens[piece], targets=whole.targets[piece], past=past, keep=True)
        (result,) = engines.engine.run([part])
        assert result.kept is not None
        assert result.scores is not None
        past = past.extended(result.kept)
        log_probabilities += result.scores.log_probabilities
    assert at_once.scores is not None
    np.testing.assert_allclose(log_probabilities, at_once.scores.log_probabilities, atol=TOLERANCE)


def test_only_what_is_wanted_comes_back(engines: Engines) -> None:
    steps = Steps(engines, seed=4)
    scored = engines.engine.signature.interface.logits
    kept, tapped, third = engines.engine.run(
        [steps.step(5, keep=True), steps.step(2, 3, taps=True), steps.step(3, 1, scored=scored)]
    )
    assert (kept.activations, kept.scores) == (None, None)
    assert (tapped.kept, tapped.scores) == (None, None)
    assert (third.kept, third.activations) == (None, None)
    assert (third.scores is not None) == scored
    if third.scores is not None:
        assert len(third.scores.greedy) == 3
        assert third.scores.log_probabilities == ()


def test_kept_keys_and_values_do_not_hold_on_to_the_batch(engines: Engines) -> None:
    steps = Steps(engines, seed=5)
    for result in engines.engine.run([steps.step(length, keep=True) for length in (2, 7, 3)]):
        assert result.kept is not None
        assert result.kept.base is None
