"""Results of float16 bundles match those of the same checkpoint in float32, within float16 rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from neuroglot.definitions.bundle import read_manifest
from neuroglot.definitions.packing import unpack_bits
from neuroglot_exporter import export
from neuroglot_server.core import (
    Add,
    Analysis,
    ByType,
    Convert,
    Deactivate,
    GroupResult,
    Intervention,
    InvalidRequest,
    NeuronType,
    Override,
    Prediction,
    Scale,
    Scope,
    Variant,
)
from neuroglot_server.engine.graph import interfaces
from neuroglot_server.engine.session import Engine
from neuroglot_server.engine.steps import NO_TOKENS, KeyValues, RowStep, StepResult
from tests.checkpoints import RandomModel
from tests.server.serving import CAPITALS, analyze

TOLERANCE = 0.01
"""Relative tolerance of the log-probabilities of answers."""
EVERYTHING = ByType(tuple(NeuronType))
"""The neurons to change: all of them, since rounding may put a neuron into another type, beyond the tolerance."""
ACTIONS = {
    "deactivate": Deactivate(),
    "override": Override(2.5),
    "scale": Scale(-1.5),
    "add": Add(1.25),
    "convert": Convert(0.5),
    "convert just above": Convert(),
    "convert to nothing": Convert(0.0),
}
SMALL = ("baseline", "convert just above", "convert to nothing")
"""Variants without effect, except on the negative lobe of a GELU."""
ANALYSIS = Analysis(
    active_bitmaps=True,
    prediction=Prediction(generate=True),
    variants=tuple(
        Variant(f"{name}, {scope}", (Intervention(EVERYTHING, action, scope=scope),))
        for scope in (Scope.LAST_PROMPT_TOKEN, Scope.ALL_TOKENS)
        for name, action in ACTIONS.items()
    ),
)
OVERFLOW = "the interventions make this row's numbers overflow: use smaller values or fewer neurons"


class Half(NamedTuple):
    family: str
    bundle: Path
    result: GroupResult
    single: GroupResult
    """Results of the same checkpoint in float32."""


@pytest.fixture(scope="module", params=["bloom", "mt0"])
def half(
    request: pytest.FixtureRequest, random_model: Callable[[str], RandomModel], tmp_path_factory: pytest.TempPathFactory
) -> Half:
    model = random_model(request.param)
    bundle = tmp_path_factory.mktemp("float16") / request.param
    export(str(model.checkpoint), bundle, dtype="float16", verify=False)
    return Half(request.param, bundle, analyze(bundle, CAPITALS, ANALYSIS), analyze(model.bundle, CAPITALS, ANALYSIS))


def test_almost_all_neurons_have_the_types_of_float32(half: Half) -> None:
    for got, expected in zip(half.result.components, half.single.components, strict=True):
        shape = (got.layers, got.neurons)
        for one, other in zip(got.thresholds[0].active_bitmaps, expected.thresholds[0].active_bitmaps, strict=True):
            assert (unpack_bits(one, shape) != unpack_bits(other, shape)).mean() <= 0.005


def test_every_intervention_does_what_it_does_in_float32(half: Half) -> None:
    baseline = half.single.variants[0].predictions
    for got, expected in zip(half.result.variants, half.single.variants, strict=True):
        effects = []
        for one, other, plain in zip(got.predictions, expected.predictions, baseline, strict=True):
            assert one.gold_log_probability == pytest.approx(other.gold_log_probability, rel=TOLERANCE)
            assert other.gold_log_probability is not None
            assert plain.gold_log_probability is not None
            effects.append(abs(other.gold_log_probability / plain.gold_log_probability - 1))
        assert got.name.startswith(SMALL) or max(effects) >= 2 * TOLERANCE


def test_convert_without_a_value_has_the_effect_of_zeroing(half: Half) -> None:
    """The next float16 above 0 is 6e-8."""
    of = {variant.name: variant.predictions for variant in half.result.variants}
    for scope in (Scope.LAST_PROMPT_TOKEN, Scope.ALL_TOKENS):
        for one, other in zip(of[f"convert just above, {scope}"], of[f"convert to nothing, {scope}"], strict=True):
            assert one.gold_log_probability == pytest.approx(other.gold_log_probability, rel=1e-3)


def test_a_variant_that_overflows_does_not_affect_the_others(half: Half) -> None:
    huge = Variant("huge", (Intervention(EVERYTHING, Override(6e4), scope=Scope.ALL_TOKENS),))
    result = analyze(half.bundle, CAPITALS, replace(ANALYSIS, variants=(huge, *ANALYSIS.variants)))
    baseline, overflown, *others = result.variants
    if half.family == "bloom":  # T5 keeps its down projection in float32, and clamps what its layers give
        assert {prediction.error for prediction in overflown.predictions} == {OVERFLOW}
    for got, expected in zip([baseline, *others], half.result.variants, strict=True):
        for one, other in zip(got.predictions, expected.predictions, strict=True):
            assert one.gold_log_probability == pytest.approx(other.gold_log_probability, rel=TOLERANCE)


def test_values_outside_the_range_of_float16_are_refused(half: Half) -> None:
    huge = Variant("huge", (Intervention(EVERYTHING, Override(7e4)),))
    with pytest.raises(InvalidRequest, match="is 70000, expected a finite number of float16: -65504 to 65504"):
        analyze(half.bundle, CAPITALS, replace(ANALYSIS, variants=(huge,)))


def test_results_do_not_depend_on_concurrent_requests(half: Half) -> None:
    for index, row in enumerate(CAPITALS.rows):
        alone = analyze(
            half.bundle, replace(CAPITALS, rows=(row,)), Analysis(active_bitmaps=True, prediction=Prediction())
        )
        for got, together in zip(alone.components, half.result.components, strict=True):
            shape = (got.layers, got.neurons)
            one, other = got.thresholds[0].active_bitmaps[0], together.thresholds[0].active_bitmaps[index]
            assert (unpack_bits(one, shape) != unpack_bits(other, shape)).mean() <= 0.005
        expected = half.result.variants[0].predictions[index].gold_log_probability
        assert alone.variants[0].predictions[0].gold_log_probability == pytest.approx(expected, rel=TOLERANCE)


def test_float16_keys_and_values_on_a_device_give_the_same_results_as_arrays(half: Half) -> None:
    facts = read_manifest(half.bundle).model
    outcomes = []
    for bound in (False, True):
        engines = {
            part.name: Engine(half.bundle / part.graph, part, interfaces(facts)[part.name], threads=1, bound=bound)
            for part in facts.components
        }
        cross = NO_TOKENS
        if "encoder" in engines:
            cross = kept(engines["encoder"].run([RowStep((5, 6, 7, 8), keep=True)])[0])
        decoder = engines["decoder"]
        steps = [RowStep(tokens, cross=cross, keep=True) for tokens in ((5, 6, 7), (8, 9))]
        pasts = [kept(result) for result in decoder.run(steps)]
        for token in (10, 11, 12):
            steps = [RowStep((token,), past, cross, scored=True, targets=(token,), keep=True) for past in pasts]
            results = decoder.run(steps)
            outcomes.append([result.scores.log_probabilities for result in results if result.scores is not None])
            pasts = [past.extended(kept(result)) for past, result in zip(pasts, results, strict=True)]
    for host, device in zip(outcomes[:3], outcomes[3:], strict=True):
        np.testing.assert_allclose(device, host, rtol=TOLERANCE)


def kept(result: StepResult) -> KeyValues:
    assert result.kept is not None
    return result.kept
