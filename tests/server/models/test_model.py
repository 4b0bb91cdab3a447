from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from neuroglot.definitions.packing import pack_bits, unpack_bits, unpack_codes
from neuroglot_server.core import (
    Action,
    Add,
    Analysis,
    ByNeuron,
    ByType,
    Contribution,
    Control,
    ControlKind,
    Convert,
    Deactivate,
    Group,
    GroupResult,
    Intervention,
    Limits,
    NeuronType,
    Override,
    Prediction,
    Row,
    RowPrediction,
    Scale,
    Scope,
    Selection,
    Settings,
    Variant,
)
from tests import definitions
from tests.exporter.reference import TOLERANCE, Transformers
from tests.server import reference
from tests.server.reference import Change
from tests.server.serving import CAPITALS, analyze, changed_bundle, served

LAYERS, NEURONS = 3, 96
PARTIAL = ByType((NeuronType.PARTIAL_SHARED,))
EVERYTHING = Analysis(
    thresholds=(0.0, 0.5),
    type_map=True,
    active_bitmaps=True,
    contribution=Contribution(),
    prediction=Prediction(generate=True),
)


@pytest.fixture(scope="module")
def transformers(bloom_checkpoint: Path) -> Transformers:
    return Transformers(bloom_checkpoint, "bloom")


@pytest.fixture(scope="module")
def tokenizer(bloom_bundle: Path) -> Tokenizer:
    return Tokenizer.from_file(str(bloom_bundle / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(row.prompt).ids for row in CAPITALS.rows]


@pytest.fixture(scope="module")
def activations(transformers: Transformers, prompts: list[list[int]]) -> np.ndarray:
    """Of transformers, at the last prompt tokens: `[rows, layers, neurons]`."""
    return reference.activations(transformers, prompts)


@pytest.fixture(scope="module")
def everything(bloom_bundle: Path) -> GroupResult:
    return analyze(bloom_bundle, CAPITALS, EVERYTHING)


def variant_of(action: Action, selection: Selection = PARTIAL, scope: Scope = Scope.LAST_PROMPT_TOKEN) -> Variant:
    return Variant("changed", (Intervention(selection, action, scope=scope),))


def with_variants(*variants: Variant) -> Analysis:
    return Analysis(prediction=Prediction(generate=True), variants=variants)


def test_types_and_active_neurons_are_those_of_transformers(everything: GroupResult, activations: np.ndarray) -> None:
    (component,) = everything.components
    assert (component.component, component.layers, component.neurons) == ("decoder", LAYERS, NEURONS)
    assert [result.threshold for result in component.thresholds] == [0.0, 0.5]
    for result in component.thresholds:
        codes = definitions.type_codes(activations, result.threshold)
        assert (unpack_codes(result.type_map, (LAYERS, NEURONS)) == codes).all()
        assert result.type_counts is not None
        assert result.type_counts.tolist() == [np.bincount(layer, minlength=4).tolist() for layer in codes]
        active = activations > result.threshold
        assert result.active_counts.tolist() == active.sum(axis=2).T.tolist()
        for packed, of_row in zip(result.active_bitmaps, active, strict=True):
            assert (unpack_bits(packed, (LAYERS, NEURONS)) == of_row).all()
        near = np.abs(activations - result.threshold) <= 1e-5
        assert result.near_threshold == (near & (active | (result.threshold != 0))).sum()


def test_contributions_are_those_of_the_checkpoints_weights(
    everything: GroupResult, activations: np.ndarray, bloom_checkpoint: Path
) -> None:
    weights = load_file(bloom_checkpoint / "model.safetensors")
    result = everything.components[0].thresholds[0].contribution
    assert result is not None
    assert result.top_k == 5
    for layer, sets in enumerate(definitions.types(activations)):
        (name,) = (name for name in weights if name.endswith(f"h.{layer}.mlp.dense_4h_to_h.weight"))
        values = weights[name].T
        for row in range(len(activations)):
            shares = definitions.contributions(activations[row, layer].tolist(), values)
            top = definitions.top_neurons(shares, 5)
            assert result.top_counts[row, layer].tolist() == [len(top & members) for members in sets.values()]
            expected = [sum(shares[neuron] for neuron in members) for members in sets.values()]
            np.testing.assert_allclose(result.sums[row, layer], expected, atol=1e-5)


def test_gold_tokens_are_scored_as_transformers_scores_them(
    everything: GroupResult, transformers: Transformers, prompts: list[list[int]]
) -> None:
    baseline = everything.variants[0]
    assert baseline.name == "baseline"
    for row, prompt, prediction in zip(everything.rows, prompts, baseline.predictions, strict=True):
        assert (row.prompt_tokens, row.last_token_id) == (len(prompt), prompt[-1])
        expected = reference.gold_log_probability(transformers, prompt, row.gold_token_ids)
        assert prediction.gold_log_probability == pytest.approx(expected, abs=TOLERANCE)
        assert prediction.exact is False


CHANGES: dict[str, tuple[Action, Callable[[torch.Tensor], torch.Tensor]]] = {
    "deactivate": (Deactivate(), torch.zeros_like),
    "override": (Override(2.5), lambda a: torch.full_like(a, 2.5)),
    "scale": (Scale(-1.5), lambda a: -1.5 * a),
    "add": (Add(1.25), lambda a: a + 1.25),
    "convert": (Convert(1.5), lambda a: torch.full_like(a, 1.5)),
}


@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize("name", CHANGES)
def test_interventions_do_what_hooks_in_transformers_do(
    name: str,
    scope: Scope,
    bloom_bundle: Path,
    transformers: Transformers,
    prompts: list[list[int]],
    activations: np.ndarray,
) -> None:
    action, change = CHANGES[name]
    result = analyze(bloom_bundle, CAPITALS, with_variants(variant_of(action, scope=scope)))
    before_last = scope in (Scope.ALL_PROMPT_TOKENS, Scope.ALL_TOKENS)
    generated = scope in (Scope.LAST_PROMPT_TOKEN_AND_GENERATED, Scope.ALL_TOKENS)
    members = reference.of_type(activations, "partial_shared")
    (_, changed) = result.variants
    for index, prompt in enumerate(prompts):
        neurons = members & ~(activations[index] > 0) if name == "convert" else members
        changes = [Change(neurons, change, before_last, generated)]
        prediction = changed.predictions[index]
        gold = result.rows[index].gold_token_ids
        expected = reference.gold_log_probability(transformers, prompt, gold, changes)
        assert prediction.gold_log_probability == pytest.approx(expected, abs=TOLERANCE)
        assert list(prediction.token_ids) == reference.greedy(transformers, prompt, changes, len(gold) + 4, {2})
        assert prediction.selected_neurons == members.sum()
        assert prediction.selected_active_neurons == (members & (activations[index] > 0)).sum()
        moved = reference.logits(transformers, prompt, gold[:-1], changes) - reference.logits(
            transformers, prompt, gold[:-1], ()
        )
        assert np.abs(moved).max() >= 100 * TOLERANCE


def test_convert_by_default_zeroes_what_is_inactive_at_threshold_zero(bloom_bundle: Path) -> None:
    """The next float above 0 has the same effect as 0, which the definition uses."""
    everywhere = ByType(tuple(NeuronType))
    converted = variant_of(Convert(), everywhere)
    cut = Variant("cut", (Intervention(everywhere, Convert(0.0)),))
    baseline, one, other = analyze(bloom_bundle, CAPITALS, with_variants(converted, cut)).variants
    assert one.predictions == other.predictions
    assert one.predictions[0].gold_log_probability != baseline.predictions[0].gold_log_probability


def test_variants_by_type_use_the_first_threshold(bloom_bundle: Path, activations: np.ndarray) -> None:
    analysis = dataclasses.replace(with_variants(variant_of(Deactivate())), thresholds=(0.5, 0.0))
    result = analyze(bloom_bundle, CAPITALS, analysis)
    members = (definitions.type_codes(activations, 0.5) == NeuronType.PARTIAL_SHARED).sum()
    assert result.variants[1].predictions[0].selected_neurons == members


def test_a_variant_without_effect_predicts_the_same_as_the_baseline(bloom_bundle: Path) -> None:
    nothing = ByNeuron("decoder", LAYERS, NEURONS, pack_bits(np.zeros((LAYERS, NEURONS), dtype=np.bool_)))
    baseline, same = analyze(bloom_bundle, CAPITALS, with_variants(variant_of(Deactivate(), nothing))).variants
    assert same.predictions == baseline.predictions


def test_a_control_in_every_row_deactivates_as_many_active_neurons(bloom_bundle: Path) -> None:
    control = Control(PARTIAL, ControlKind.RANDOM_ACTIVE, draw=2, seed=11)
    analysis = with_variants(variant_of(Deactivate()), Variant("control", (Intervention(control, Deactivate()),)))
    first, second = (analyze(bloom_bundle, CAPITALS, analysis) for _ in range(2))
    baseline, without, control_result = first.variants
    assert second.variants == first.variants
    assert control_result.predictions != baseline.predictions
    for of_type, of_control in zip(without.predictions, control_result.predictions, strict=True):
        assert of_control.selected_active_neurons == of_control.selected_neurons == of_type.selected_active_neurons


def test_a_variant_that_overflows_does_not_affect_the_others(bloom_bundle: Path) -> None:
    shared = ByType((NeuronType.PARTIAL_SHARED,))
    huge = Variant("huge", (Intervention(shared, Override(3e38)),))
    modest = variant_of(Override(2.5))
    result = analyze(bloom_bundle, CAPITALS, with_variants(huge, modest))
    alone = analyze(bloom_bundle, CAPITALS, with_variants(modest))
    baseline, overflown, unharmed = result.variants
    for prediction in overflown.predictions:
        assert prediction == RowPrediction(
            error="the interventions make this row's numbers overflow: use smaller values or fewer neurons"
        )
    assert_same(baseline.predictions, alone.variants[0].predictions)
    assert_same(unharmed.predictions, alone.variants[1].predictions)


def assert_same(got: Sequence[RowPrediction], expected: Sequence[RowPrediction]) -> None:
    """The same but for rounding in log-probabilities."""
    for one, other in zip(got, expected, strict=True):
        assert one.gold_log_probability == pytest.approx(other.gold_log_probability, abs=TOLERANCE)
        assert dataclasses.replace(one, gold_log_probability=None) == dataclasses.replace(
            other, gold_log_probability=None
        )


def test_results_do_not_depend_on_concurrent_requests(bloom_bundle: Path, tokenizer: Tokenizer) -> None:
    random = np.random.default_rng(0)
    requests: list[tuple[Group, Analysis]] = []
    for index, scope in enumerate((*Scope, *Scope)):
        rows = tuple(
            Row(label, tuple(random.integers(4, 320, random.integers(1, 30)).tolist()), answers)
            for label, answers in (("en", ("Paris",)), ("es", ("una ciudad grande",)), ("ru", ()), ("th", ("ก",)))[
                : 2 + index % 3
            ]
        )
        control = Control(PARTIAL, ControlKind.RANDOM_ACTIVE, seed=index)
        variants = (
            variant_of(Deactivate(), scope=scope),
            Variant("control", (Intervention(control, Add(0.5 * index), scope=scope),)),
            Variant("overflow", (Intervention(ByType(tuple(NeuronType)), Override(3e38), scope=scope),)),
        )
        analysis = dataclasses.replace(EVERYTHING, variants=variants[: 1 + index % 3])
        requests.append((Group(f"{index}", rows), analysis))

    async def together(settings: Settings) -> list[GroupResult]:
        async with served(bloom_bundle, settings) as model:
            return await asyncio.gather(*(model.analyze(group, analysis) for group, analysis in requests))

    alone = [analyze(bloom_bundle, group, analysis) for group, analysis in requests]
    limits = Limits(tokens_per_row=64)
    for settings in (Settings(threads=1), Settings(threads=1, batch_tokens=64, limits=limits)):
        for got, expected in zip(asyncio.run(together(settings)), alone, strict=True):
            assert (got.group_id, got.rows) == (expected.group_id, expected.rows)
            for one, other in zip(got.components[0].thresholds, expected.components[0].thresholds, strict=True):
                assert one.type_map == other.type_map
                assert one.active_bitmaps == other.active_bitmaps
            for variant, alike in zip(got.variants, expected.variants, strict=True):
                assert_same(variant.predictions, alike.predictions)


class Spoken(NamedTuple):
    """A prompt after which the model generates two different tokens, the first of them a word."""

    prompt: tuple[int, ...]
    word: str
    first: int
    second: int


@pytest.fixture(scope="module")
def spoken(bloom_bundle: Path, tokenizer: Tokenizer) -> Spoken:
    random = np.random.default_rng(1)
    analysis = Analysis(prediction=Prediction(generate=True, max_tokens=2))
    for _ in range(20):
        rows = tuple(Row(f"{index}", tuple(random.integers(4, 320, 5).tolist())) for index in range(64))
        predictions = analyze(bloom_bundle, Group("", rows), analysis).variants[0].predictions
        for row, prediction in zip(rows, predictions, strict=True):
            first, second = (*prediction.token_ids, 2, 2)[:2]
            word = tokenizer.decode([first])
            if len(word) > 1 and word.isalpha() and tokenizer.encode(word).ids == [first] and second not in (first, 2):
                return Spoken(tuple(row.prompt), word, first, second)
    raise AssertionError("the random model says nothing readable: try other prompts")


def test_exact_and_matches_say_whether_the_model_gives_the_answer(
    bloom_bundle: Path, tmp_path: Path, spoken: Spoken
) -> None:
    bundle = changed_bundle(bloom_bundle, tmp_path / "stops", eos=spoken.second)
    rows = (
        Row("right", spoken.prompt, (spoken.word,), ""),
        Row("alias", spoken.prompt, ("Paris", f" {spoken.word.upper()}. "), ""),
        Row("start", spoken.prompt, ("Paris", spoken.word[0]), ""),
        Row("wrong", spoken.prompt, ("Paris",), ""),
        Row("unknown", spoken.prompt),
    )
    predictions = analyze(bundle, Group("", rows), with_variants()).variants[0].predictions
    assert {prediction.token_ids for prediction in predictions} == {(spoken.first,)}
    assert {prediction.text for prediction in predictions} == {spoken.word}
    right, alias, start, wrong, unknown = [
        (prediction.exact, prediction.matches, prediction.starts_with_answer) for prediction in predictions
    ]
    assert right == (True, True, True)
    assert alias == (False, True, True)
    assert start == (False, False, True)
    assert wrong == (False, False, False)
    assert unknown == (None, None, None)
    assert predictions[-1].gold_log_probability is None


def test_generation_stops_at_a_newline_and_four_tokens_past_the_answer(
    bloom_bundle: Path, tmp_path: Path, spoken: Spoken, tokenizer: Tokenizer
) -> None:
    rows = (
        Row("joined", spoken.prompt, (spoken.word,), ""),
        Row("apart", spoken.prompt, ("Paris",), ""),
        Row("none", spoken.prompt),
    )
    analysis = Analysis(prediction=Prediction(generate=True, max_tokens=3))
    generated = [
        prediction.token_ids for prediction in analyze(bloom_bundle, Group("", rows), analysis).variants[0].predictions
    ]
    gold = len(tokenizer.encode("Paris").ids)
    assert [len(ids) for ids in generated] == [5, gold + 4, 3]
    assert generated[0][:3] == generated[1][:3] == generated[2]
    newline = changed_bundle(bloom_bundle, tmp_path / "breaks", newline=spoken.second)
    broken = analyze(newline, Group("", rows[-1:]), analysis).variants[0].predictions[0]
    assert broken.token_ids == (spoken.first, spoken.second)
    assert broken.text == spoken.word


def test_what_is_generated_does_not_depend_on_the_gold_answer(bloom_bundle: Path, tokenizer: Tokenizer) -> None:
    """Generation reuses the pass over gold tokens that the model agrees with, with the same result."""
    random = np.random.default_rng(2)
    rows = tuple(Row(f"{index}", tuple(random.integers(4, 320, 6).tolist())) for index in range(64))
    analysis = Analysis(prediction=Prediction(generate=True, max_tokens=7))
    freely = analyze(bloom_bundle, Group("", rows), analysis).variants[0].predictions
    agreeing, expected = [], []
    for row, prediction in zip(rows, freely, strict=True):
        for known in (1, 2):
            answer = tokenizer.decode(list(prediction.token_ids[:known])) + "q" * (3 - known)
            ids = tuple(tokenizer.encode(answer).ids)
            if len(ids) == 3 and ids[:known] == prediction.token_ids[:known]:
                label = f"{row.label}, {known} known"
                agreeing.append(row._replace(label=label, answers=(answer,), separator=""))
                expected.append(prediction.token_ids)
    assert {row.label[-7] for row in agreeing} == {"1", "2"}
    found = analyze(bloom_bundle, Group("", tuple(agreeing[:64])), analysis).variants[0].predictions
    assert [prediction.token_ids for prediction in found] == expected[:64]


def test_one_row_has_activity_and_predictions_but_no_types(bloom_bundle: Path) -> None:
    result = analyze(bloom_bundle, Group("one", CAPITALS.rows[:1]), EVERYTHING)
    first = result.components[0].thresholds[0]
    assert first.type_counts is None
    assert first.type_map == b""
    assert first.contribution is None
    assert first.active_counts.shape == (LAYERS, 1)
    assert len(first.active_bitmaps) == 1
    assert result.variants[0].predictions[0].exact is False


def test_only_counts_are_returned_by_default(bloom_bundle: Path, everything: GroupResult) -> None:
    result = analyze(bloom_bundle, CAPITALS, Analysis())
    assert result.variants == ()
    (threshold,) = result.components[0].thresholds
    assert (threshold.type_map, threshold.active_bitmaps, threshold.contribution) == (b"", (), None)
    assert (threshold.type_counts == everything.components[0].thresholds[0].type_counts).all()
    assert result.rows == everything.rows


def test_scores_without_generation_are_those_with_it(bloom_bundle: Path, everything: GroupResult) -> None:
    result = analyze(bloom_bundle, CAPITALS, Analysis(prediction=Prediction()))
    for scored, generated in zip(result.variants[0].predictions, everything.variants[0].predictions, strict=True):
        assert scored.gold_log_probability == pytest.approx(generated.gold_log_probability, abs=TOLERANCE)
        assert (scored.exact, scored.token_ids, scored.text, scored.matches) == (generated.exact, (), "", None)


def test_token_ids_are_run_unchanged(bloom_bundle: Path, everything: GroupResult, prompts: list[list[int]]) -> None:
    rows = tuple(row._replace(prompt=tuple(prompt)) for row, prompt in zip(CAPITALS.rows, prompts, strict=True))
    result = analyze(bloom_bundle, Group("FR", rows), EVERYTHING)
    assert result.components[0].thresholds[0].type_map == everything.components[0].thresholds[0].type_map
    assert not any(row.gold_is_joint for row in result.rows)
