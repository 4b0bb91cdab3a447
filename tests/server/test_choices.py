"""Choices are scored like the gold answer: in the baseline, under every variant, in every family."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from neuroglot.definitions.packing import pack_bits
from neuroglot_server.core import (
    Analysis,
    ByNeuron,
    Deactivate,
    Group,
    Intervention,
    InvalidRequest,
    Prediction,
    Row,
    Scope,
    Variant,
)
from tests.checkpoints import CONFIGS, RandomModel
from tests.exporter.reference import TOLERANCE
from tests.server import reference
from tests.server.reference import Change
from tests.server.serving import analyze

PROMPT = "The capital of France is"
CHOICES = ("Paris", "Rom", "Türkiye'nin başkenti")
SCOPES = {str(scope): scope for scope in Scope}


def group(choices: tuple[str, ...], *answers: str) -> Group:
    return Group("FR", (Row("en", PROMPT, answers, choices=choices),))


@pytest.mark.parametrize("family", CONFIGS)
def test_choices_have_the_log_probabilities_of_transformers(
    family: str, random_model: Callable[[str], RandomModel]
) -> None:
    _, checkpoint, bundle = random_model(family)
    model = reference.load(checkpoint, family)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    prompt = tokenizer.encode(PROMPT).ids
    between = "" if family in reference.ENCODER_DECODERS else " "
    tokens = [tokenizer.encode(between + choice, add_special_tokens=False).ids for choice in CHOICES]
    neurons = np.random.default_rng(0).random(reference.watched(model, prompt)["decoder"].shape[::2]) < 0.5
    selection = ByNeuron("decoder", *neurons.shape, pack_bits(neurons))
    analysis = Analysis(
        prediction=Prediction(),
        variants=tuple(
            Variant(name, (Intervention(selection, Deactivate(), scope=scope),)) for name, scope in SCOPES.items()
        ),
    )
    result = analyze(bundle, group(CHOICES, "Paris"), analysis)
    for variant in result.variants:
        changes = []
        if variant.name in SCOPES:
            scope = SCOPES[variant.name]
            changes = [Change(neurons, torch.zeros_like, scope.before_last, scope.generated)]
        expected = [reference.gold_log_probability(model, prompt, choice, changes) for choice in tokens]
        (prediction,) = variant.predictions
        assert prediction.choice_log_probabilities == pytest.approx(expected, abs=TOLERANCE)
        assert prediction.choice_log_probabilities[0] == prediction.gold_log_probability
    scores = [variant.predictions[0].choice_log_probabilities for variant in result.variants]
    assert max(abs(scores[1][index] - scores[0][index]) for index in range(3)) > 100 * TOLERANCE


def test_choices_need_no_answer(bloom_bundle: RandomModel) -> None:
    with_answer = analyze(bloom_bundle, group(CHOICES, "Paris"), Analysis(prediction=Prediction()))
    without = analyze(bloom_bundle, group(CHOICES), Analysis(prediction=Prediction(generate=True)))
    expected = with_answer.variants[0].predictions[0].choice_log_probabilities
    assert without.variants[0].predictions[0].choice_log_probabilities == pytest.approx(expected, abs=1e-5)


def test_choices_are_not_scored_without_a_prediction(bloom_bundle: RandomModel) -> None:
    assert analyze(bloom_bundle, group(CHOICES), Analysis()).variants == ()


def test_choices_must_not_be_empty_and_must_fit(bloom_bundle: RandomModel) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        analyze(bloom_bundle, group(("Paris", " ")), Analysis(prediction=Prediction()))
    assert refusal.value.violations[0].field == "group.rows[0].choices[1]"
    with pytest.raises(InvalidRequest, match="up to 4000 more for the answer") as refusal:
        long = group(("Paris", "x" * 4000)).rows[0]._replace(separator="")
        analyze(bloom_bundle, Group("FR", (long,)), Analysis(prediction=Prediction()))
    assert refusal.value.violations[0].field == "group.rows[0].text"
