"""Contributions, controls and selections that depend on a group's baseline, against transformers and definitions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from neuroglot.definitions.packing import pack_bits, unpack_bits
from neuroglot_server.core import (
    Action,
    Add,
    Analysis,
    ByContribution,
    ByNeuron,
    ByUpload,
    Caller,
    Contribution,
    Control,
    ControlKind,
    Convert,
    Deactivate,
    Group,
    GroupResult,
    Intervention,
    InvalidRequest,
    Override,
    Prediction,
    Scale,
    Selection,
    ThresholdResult,
    UploadNotFound,
    Variant,
)
from tests import definitions
from tests.checkpoints import RandomModel
from tests.exporter.encoder_decoder import START
from tests.exporter.encoder_decoder import Row as Texts
from tests.exporter.encoder_decoder import Transformers as EncoderDecoder
from tests.exporter.reference import Transformers
from tests.server import reference
from tests.server.reference import Change
from tests.server.serving import CAPITALS, analyze, served

LAYERS, NEURONS = 3, 96
ROWS = range(len(CAPITALS.rows))
THRESHOLDS = (0.0, 0.3)
PREDICTED = Analysis(prediction=Prediction())
PLACES = [(0, 5), (0, 90), (1, 0), (1, 95), (2, 17), (2, 18)]
NUMBERS = (3.0, -2.0, 1.5, 0.25, -4.0, 2.0)


@pytest.fixture(scope="module")
def transformers(bloom_checkpoint: Path) -> Transformers:
    return Transformers(bloom_checkpoint, "bloom")


@pytest.fixture(scope="module")
def prompts(bloom_bundle: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(bloom_bundle / "tokenizer.json"))
    return [tokenizer.encode(str(row.prompt)).ids for row in CAPITALS.rows]


@pytest.fixture(scope="module")
def activations(transformers: Transformers, prompts: list[list[int]]) -> np.ndarray:
    """At the last prompt tokens, `[rows, layers, neurons]`."""
    return reference.activations(transformers, prompts)


@pytest.fixture(scope="module")
def lengths(activations: np.ndarray, bloom_checkpoint: Path) -> np.ndarray:
    """|m_i| * ||v_i|| of every neuron, `[rows, layers, neurons]`."""
    weights = load_file(bloom_checkpoint / "model.safetensors")
    found = np.zeros(activations.shape)
    for layer in range(LAYERS):
        (name,) = (name for name in weights if name.endswith(f"h.{layer}.mlp.dense_4h_to_h.weight"))
        for neuron, value in enumerate(weights[name].T):
            found[:, layer, neuron] = np.abs(activations[:, layer, neuron]) * np.sqrt((value.astype(float) ** 2).sum())
    return found


def neurons(places: list[tuple[int, int]]) -> ByNeuron:
    members = np.zeros((LAYERS, NEURONS), dtype=np.bool_)
    members[tuple(zip(*places, strict=True))] = True
    return ByNeuron("", LAYERS, NEURONS, pack_bits(members))


def variant(name: str, selection: Selection, action: Action) -> Variant:
    return Variant(name, (Intervention(selection, action),))


def threshold_results(result: GroupResult) -> tuple[ThresholdResult, ...]:
    return result.components[-1].thresholds


@pytest.mark.parametrize("options", [Contribution(neurons=7), Contribution(0.5, top_k=9, raw=True, neurons=NEURONS)])
def test_contributions_and_leading_neurons_at_every_threshold(
    options: Contribution, bloom_bundle: Path, activations: np.ndarray, lengths: np.ndarray
) -> None:
    values = lengths if options.raw else lengths / lengths.sum(axis=-1, keepdims=True)
    k = options.top_k or 5
    analysis = Analysis(THRESHOLDS, contribution=options, active_bitmaps=True)
    for index, found in enumerate(threshold_results(analyze(bloom_bundle, CAPITALS, analysis))):
        contribution = found.contribution
        assert contribution is not None
        assert contribution.top_k == k
        assert contribution.leading is not None
        assert len(contribution.top_bitmaps) == (len(CAPITALS.rows) if index == 0 else 0)
        codes = definitions.type_codes(activations, found.threshold)
        for row, layer in np.ndindex(values.shape[:2]):
            of_layer = values[row, layer]
            best_first = np.argsort(-of_layer)
            top = set(best_first[:k].tolist())
            if index == 0:
                bits = unpack_bits(contribution.top_bitmaps[row], (LAYERS, NEURONS))
                assert set(np.flatnonzero(bits[layer]).tolist()) == top
            for code, members in enumerate(definitions.types(activations, found.threshold)[layer].values()):
                assert contribution.top_counts[row, layer, code] == len(top & members)
                total = sum(of_layer[neuron] for neuron in members)
                np.testing.assert_allclose(contribution.sums[row, layer, code], total, rtol=1e-4, atol=1e-5)
            leading = contribution.leading.neurons[row, layer]
            assert len(set(leading.tolist())) == options.neurons
            np.testing.assert_allclose(of_layer[leading], of_layer[best_first[: options.neurons]], rtol=1e-4)
            np.testing.assert_allclose(contribution.leading.values[row, layer], of_layer[leading], rtol=1e-4, atol=1e-6)
            assert (contribution.leading.codes[row, layer] == codes[layer, leading]).all()


def test_top_contributors_are_only_counted_without_bitmaps(bloom_bundle: Path) -> None:
    (found,) = threshold_results(analyze(bloom_bundle, CAPITALS, Analysis(contribution=Contribution())))
    assert found.contribution is not None
    assert found.contribution.top_bitmaps == ()


def test_top_contributors_are_chosen_in_each_row_by_its_own_baseline(
    bloom_bundle: Path, transformers: Transformers, prompts: list[list[int]], lengths: np.ndarray
) -> None:
    selection = ByContribution(top_k=4)
    analysis = replace(PREDICTED, variants=(variant("top", selection, Deactivate()),))
    result = analyze(bloom_bundle, CAPITALS, analysis)
    for row in ROWS:
        top = np.zeros((LAYERS, NEURONS), dtype=np.bool_)
        np.put_along_axis(top, np.argsort(-lengths[row], axis=-1)[:, :4], True, axis=-1)
        expected = reference.gold_log_probability(
            transformers, prompts[row], result.rows[row].gold_token_ids, [Change(top, torch.zeros_like)]
        )
        assert result.variants[1].predictions[row].gold_log_probability == pytest.approx(expected, abs=1e-3)
        assert result.variants[1].predictions[row].selected_neurons == 4 * LAYERS
    alone = analyze(bloom_bundle, Group("FR", CAPITALS.rows[:1]), analysis)
    mine, before = (found.variants[1].predictions[0].gold_log_probability for found in (alone, result))
    assert mine == pytest.approx(before, abs=1e-4), "a row alone has contributions, though no types"


@pytest.mark.parametrize(
    ("action", "of"),
    [
        (Override(0, NUMBERS), lambda number: lambda a: torch.full_like(a, number)),
        (Scale(0, NUMBERS), lambda number: lambda a: a * number),
        (Add(0, NUMBERS), lambda number: lambda a: a + number),
    ],
)
def test_actions_with_one_value_per_neuron(
    action: Action,
    of: Callable[[float], Callable[[torch.Tensor], torch.Tensor]],
    bloom_bundle: Path,
    transformers: Transformers,
    prompts: list[list[int]],
) -> None:
    result = analyze(bloom_bundle, CAPITALS, replace(PREDICTED, variants=(variant("v", neurons(PLACES), action),)))
    changes = []
    for position, number in zip(PLACES, NUMBERS, strict=True):
        alone = np.zeros((LAYERS, NEURONS), dtype=np.bool_)
        alone[position] = True
        changes.append(Change(alone, of(number)))
    moved = []
    for row in ROWS:
        gold = result.rows[row].gold_token_ids
        baseline, changed = (found.predictions[row].gold_log_probability for found in result.variants)
        expected = reference.gold_log_probability(transformers, prompts[row], gold, changes)
        assert changed == pytest.approx(expected, abs=1e-3)
        assert baseline is not None
        moved.append(abs(expected - baseline))
    assert max(moved) > 0.1


def test_convert_to_the_mean_of_the_active_rows(
    bloom_bundle: Path, transformers: Transformers, prompts: list[list[int]], activations: np.ndarray
) -> None:
    everything = ByNeuron("", LAYERS, NEURONS, b"\xff" * (LAYERS * NEURONS // 8))
    converted = variant("mean", everything, Convert(mean_of_active=True))
    result = analyze(bloom_bundle, CAPITALS, replace(PREDICTED, variants=(converted,)))
    for row in ROWS:
        changes = []
        for layer, neuron in np.ndindex(LAYERS, NEURONS):
            active = [a for a in activations[:, layer, neuron].tolist() if a > 0]
            if active and not activations[row, layer, neuron] > 0:
                alone = np.zeros((LAYERS, NEURONS), dtype=np.bool_)
                alone[layer, neuron] = True
                mean = sum(active) / len(active)
                changes.append(Change(alone, lambda a, mean=mean: torch.full_like(a, mean)))
        expected = reference.gold_log_probability(transformers, prompts[row], result.rows[row].gold_token_ids, changes)
        prediction = result.variants[1].predictions[row]
        assert prediction.gold_log_probability == pytest.approx(expected, abs=2e-3)
        assert prediction.selected_neurons == LAYERS * NEURONS


def test_uploaded_neurons_are_selected_by_name(bloom_bundle: Path) -> None:
    chosen = neurons(PLACES)

    def analysis_of(selection: Selection) -> Analysis:
        actions = {"off": Deactivate(), "set": Override(0, NUMBERS)}
        return replace(PREDICTED, variants=tuple(variant(name, selection, action) for name, action in actions.items()))

    async def ask() -> None:
        ann, bob = Caller("ann"), Caller("bob")
        async with served(bloom_bundle) as model:
            name = await model.upload(chosen, ann)
            assert await model.upload(replace(chosen, component="decoder"), ann) == name, "the same neurons"
            explicit, uploaded = [
                await model.analyze(CAPITALS, analysis_of(selection), ann) for selection in (chosen, ByUpload(name))
            ]
            for one, other in zip(explicit.variants, uploaded.variants, strict=True):
                for mine, theirs in zip(one.predictions, other.predictions, strict=True):
                    assert mine.gold_log_probability == pytest.approx(theirs.gold_log_probability, abs=1e-5)
            with pytest.raises(UploadNotFound, match=name):
                await model.analyze(CAPITALS, analysis_of(ByUpload(name)), bob)
            with pytest.raises(InvalidRequest, match="expected the 3 layers of 96"):
                await model.upload(replace(chosen, layers=2), ann)
            few = analysis_of(ByUpload(await model.upload(neurons(PLACES[:2]), ann)))
            with pytest.raises(InvalidRequest, match=r"override.values: has 6 numbers.*each of the 2 neurons"):
                await model.analyze(CAPITALS, few, ann)

    asyncio.run(ask())


def test_draws_of_every_control_differ_and_are_reproducible(bloom_bundle: Path) -> None:
    variants = tuple(
        variant(f"{kind} {draw}", Control(ByContribution(0.2), kind, draw, seed=7), Deactivate())
        for kind in ControlKind
        for draw in range(3)
    )
    first, again = (analyze(bloom_bundle, CAPITALS, replace(PREDICTED, variants=variants)) for _ in range(2))
    found = [tuple(one.gold_log_probability for one in of.predictions) for of in first.variants]
    np.testing.assert_allclose(
        found, [[one.gold_log_probability for one in of.predictions] for of in again.variants], atol=1e-5
    )
    assert len(set(found)) == 1 + len(variants)


@pytest.mark.parametrize("family", ["bloom", "mt0"])
def test_dead_neurons_are_inactive_at_every_token_of_the_prompt(
    family: str, random_model: Callable[[str], RandomModel]
) -> None:
    random = random_model(family)
    result = analyze(random.bundle, CAPITALS, Analysis((0.0, 2.0), active_bitmaps=True, dead=True))
    tokenizer = Tokenizer.from_file(str(random.bundle / "tokenizer.json"))
    prompts = [tokenizer.encode(str(row.prompt)).ids for row in CAPITALS.rows]
    if family == "mt0":
        seq2seq = EncoderDecoder(random.checkpoint)
        runs = [seq2seq.run(Texts(prompt, [START])) for prompt in prompts]
    else:
        runs = [{"decoder": Transformers(random.checkpoint, family).run(prompt)} for prompt in prompts]
    for component in result.components:
        for found in component.thresholds:
            assert found.dead_counts is not None
            for row, run in enumerate(runs):
                dead = ~(run[component.component]["activation"] > found.threshold).any(axis=1)
                assert found.dead_counts[:, row].tolist() == dead.sum(axis=-1).tolist()
                assert (unpack_bits(found.dead_bitmaps[row], dead.shape) == dead).all()
                assert found.threshold == 0 or dead.any()
    counted = analyze(random.bundle, CAPITALS, Analysis(dead=True))
    assert threshold_results(counted)[0].dead_bitmaps == ()
    unasked = analyze(random.bundle, CAPITALS, Analysis())
    assert threshold_results(unasked)[0].dead_counts is None
