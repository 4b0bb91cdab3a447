from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from neuroglot_server.core import (
    Add,
    Analysis,
    ByContribution,
    ByNeuron,
    ByType,
    Capture,
    ComponentDescription,
    Contribution,
    Control,
    ControlKind,
    Convert,
    Deactivate,
    Difference,
    EffectiveScore,
    Group,
    Intersection,
    Intervention,
    InvalidRequest,
    Limits,
    ModelDescription,
    NeuronType,
    Override,
    Prediction,
    Row,
    Scale,
    ScoreTarget,
    Selection,
    Union,
    Variant,
)
from neuroglot_server.intake.validation import (
    MOST_VIOLATIONS,
    check,
    check_capture,
    check_generation,
    check_neurons,
)

DECODER = ComponentDescription("decoder", 24, 20, 8, "gelu", gated=False)
MODEL = ModelDescription(
    name="bloom",
    family="bloom",
    source="",
    source_revision="",
    bundle_identity="",
    components=(DECODER,),
    vocabulary_size=100,
    dtype="float16",
    limits=Limits(rows_per_group=3, variants_per_group=2),
)
ENCODER_DECODER = replace(MODEL, components=(replace(DECODER, name="encoder", layers=3), DECODER))
EN, ES = Row("en", "The capital of France is", ("Paris",)), Row("es", "La capital de Francia es")
GROUP = Group("g", (EN, ES))
SHARED = ByType((NeuronType.ALL_SHARED,))
NEURONS = ByNeuron("", 24, 20, bytes(24 * 3))
THREE = replace(NEURONS, bits=b"\x01" + bytes(24 * 3 - 2) + b"\x06")
DEACTIVATE = Intervention(SHARED, Deactivate())
ANALYSIS = Analysis(prediction=Prediction(), variants=(Variant("v", (DEACTIVATE,)),))


def violations(group: Group = GROUP, analysis: Analysis = ANALYSIS, model: ModelDescription = MODEL) -> dict[str, str]:
    """Violations by field; empty if the request is valid."""
    try:
        check(group, analysis, model)
    except InvalidRequest as error:
        return dict(error.violations)
    return {}


def intervening(intervention: Intervention) -> Analysis:
    return replace(ANALYSIS, variants=(Variant("v", (intervention,)),))


def selecting(selection: Selection) -> Analysis:
    return intervening(Intervention(selection, Deactivate()))


def test_valid_requests_pass() -> None:
    selection = Difference((Union((SHARED, NEURONS)), Intersection((Control(SHARED, ControlKind.RANDOM), NEURONS))))
    intervention = Intervention(selection, Convert(), layers=(0, 23), component="decoder")
    assert violations(GROUP, intervening(intervention)) == {}
    assert violations(Group("", (EN,)), Analysis()) == {}
    assert violations(Group("", (EN,)), selecting(NEURONS)) == {}
    for action in (Override(0, (1.0, 2.0, 3.0)), Convert(mean_of_active=True)):
        assert violations(GROUP, intervening(replace(DEACTIVATE, action=action, selection=THREE))) == {}
    assert violations(GROUP, selecting(Control(ByContribution(1.0, 20), ControlKind.RANDOM_MASS))) == {}
    rows = Group("", (EN._replace(choices=("true", "false"), distractor="Rome"), ES))
    score = EffectiveScore(ScoreTarget.GOLD_MINUS_DISTRACTOR, 20)
    wanted = Analysis(contribution=Contribution(top_k=20, neurons=20), effective_score=score, dead=True)
    assert violations(rows, wanted) == {}


@pytest.mark.parametrize(
    ("rows", "field", "says"),
    [
        ((), "group.rows", "has 0 rows, expected 1 to 3"),
        ((EN, ES, ES._replace(label="fr"), ES._replace(label="de")), "group.rows", "has 4 rows, expected 1 to 3"),
        ((EN, ES._replace(label="")), "group.rows[1].label", "is empty"),
        ((EN, ES, EN), "group.rows[2].label", r"is 'en', which is the label of rows[0] too"),
        ((EN, ES._replace(prompt="")), "group.rows[1].text", "is empty, expected a prompt"),
        ((EN, ES._replace(prompt=())), "group.rows[1].token_ids.ids", "is empty, expected a prompt"),
        (
            (EN, ES._replace(prompt=(5, 100))),
            "group.rows[1].token_ids.ids[1]",
            "is 100, expected a token of 'bloom': 0 to 99",
        ),
        ((EN._replace(answers=("Paris", "")),), "group.rows[0].answers[1]", "is ''"),
        ((EN._replace(answers=(" ?! ",)),), "group.rows[0].answers[0]", "is ' ?! ', which has nothing to compare with"),
        (
            (EN._replace(choices=("true", " ")),),
            "group.rows[0].choices[1]",
            "is ' ', which has nothing to compare with",
        ),
        ((EN._replace(choices=("a", "b", "a")),), "group.rows[0].choices[2]", "is 'a', which is choices[0] too"),
        (
            (EN._replace(choices=tuple(map(str, range(257)))),),
            "group.rows[0].choices",
            "has 257 choices, expected at most 256",
        ),
        ((EN._replace(distractor="?"),), "group.rows[0].distractor", "is '?', which has nothing to compare with"),
        ((EN._replace(separator=": "),), "group.rows[0].separator", "is ': ', expected ' ' or ''"),
    ],
)
def test_groups_that_are_refused(rows: tuple[Row, ...], field: str, says: str) -> None:
    assert violations(Group("g", rows), Analysis())[field].startswith(says)


@pytest.mark.parametrize(
    ("analysis", "field", "says"),
    [
        (replace(ANALYSIS, thresholds=()), "analysis.thresholds", "has 0 thresholds, expected 1 to 32"),
        (replace(ANALYSIS, thresholds=(0.0,) * 33), "analysis.thresholds", "has 33 thresholds, expected 1 to 32"),
        (replace(ANALYSIS, thresholds=(0.0, math.nan)), "analysis.thresholds[1]", "is nan, expected a finite number"),
        (replace(ANALYSIS, contribution=Contribution(-0.5)), "analysis.contribution.top_fraction", "is -0.5, expected"),
        (replace(ANALYSIS, contribution=Contribution(1.5)), "analysis.contribution.top_fraction", "is 1.5, expected"),
        (
            replace(ANALYSIS, contribution=Contribution(math.nan)),
            "analysis.contribution.top_fraction",
            "is nan, expected",
        ),
        (
            replace(ANALYSIS, contribution=Contribution(top_k=21)),
            "analysis.contribution.top_k",
            "is 21, expected at most the 20 neurons that a layer of 'bloom' has",
        ),
        (
            replace(ANALYSIS, contribution=Contribution(neurons=21)),
            "analysis.contribution.neurons",
            "is 21, expected at most the 20 neurons",
        ),
        (
            replace(ANALYSIS, effective_score=EffectiveScore(neurons=21)),
            "analysis.effective_score.neurons",
            "is 21, expected at most the 20 neurons",
        ),
        (
            replace(ANALYSIS, effective_score=EffectiveScore(ScoreTarget.GOLD_MINUS_DISTRACTOR)),
            "group.rows[0].distractor",
            "is empty, but scores relative to it are requested",
        ),
        (replace(ANALYSIS, prediction=Prediction(True, 0)), "analysis.prediction.max_tokens", "is less than 1"),
        (replace(ANALYSIS, prediction=None), "analysis.prediction", "is missing, and variants are compared by"),
        (replace(ANALYSIS, variants=ANALYSIS.variants * 3), "analysis.variants", "has 3 variants, expected at most 2"),
    ],
)
def test_analyses_that_are_refused(analysis: Analysis, field: str, says: str) -> None:
    assert violations(analysis=analysis)[field].startswith(says)


@pytest.mark.parametrize(
    ("variants", "field", "says"),
    [
        ([Variant("", (DEACTIVATE,))], "analysis.variants[0].name", "is empty"),
        ([Variant("baseline", (DEACTIVATE,))], "analysis.variants[0].name", "is 'baseline', which is the run without"),
        (
            [Variant("v", (DEACTIVATE,))] * 2,
            "analysis.variants[1].name",
            "is 'v', which is the name of variants[0] too",
        ),
        ([Variant("v", ())], "analysis.variants[0].interventions", "is empty, which is the baseline"),
    ],
)
def test_variants_that_are_refused(variants: list[Variant], field: str, says: str) -> None:
    assert violations(analysis=replace(ANALYSIS, variants=tuple(variants)))[field].startswith(says)


@pytest.mark.parametrize(
    ("intervention", "field", "says"),
    [
        (replace(DEACTIVATE, layers=(3, 31)), "layers[1]", "is 31, expected a layer of 'bloom': it has 24 (0 to 23)"),
        (replace(DEACTIVATE, layers=(-1,)), "layers[0]", "is -1, expected a layer"),
        (
            replace(DEACTIVATE, component="encoder"),
            "component",
            "is 'encoder', expected a component of 'bloom': decoder",
        ),
        (
            replace(DEACTIVATE, action=Override(math.inf)),
            "override.value",
            "is inf, expected a finite number of float16",
        ),
        (replace(DEACTIVATE, action=Override(1e6)), "override.value", "is 1e+06, expected a finite number of float16"),
        (replace(DEACTIVATE, action=Scale(math.nan)), "scale.factor", "is nan, expected a finite number"),
        (replace(DEACTIVATE, action=Add(-math.inf)), "add.value", "is -inf, expected a finite number"),
        (replace(DEACTIVATE, action=Convert(math.nan)), "convert.value", "is nan, expected a finite number"),
        (
            replace(DEACTIVATE, action=Convert(0.5, mean_of_active=True)),
            "convert.value",
            "is 0.5, but the mean of active is requested: leave one out",
        ),
        (
            replace(DEACTIVATE, action=Override(0, (1.0,))),
            "override.values",
            "has 1 numbers, one per neuron, but the selection does not name its neurons",
        ),
        (
            replace(DEACTIVATE, action=Scale(0, (1.0,)), selection=Union((THREE,))),
            "scale.values",
            "has 1 numbers, one per neuron, but the selection does not name its neurons",
        ),
        (
            replace(DEACTIVATE, action=Add(0, (1.0, 2.0)), selection=THREE),
            "add.values",
            "has 2 numbers, expected one for each of the 3 neurons",
        ),
        (
            replace(DEACTIVATE, action=Add(0, (1.0, 2.0, 1e6)), selection=THREE),
            "add.values[2]",
            "is 1e+06, expected a finite number of float16",
        ),
        (
            replace(DEACTIVATE, action=Override(4.0, (1.0, 2.0, 3.0)), selection=THREE),
            "override.value",
            "is 4, but there is a number for each neuron: leave one of them out",
        ),
    ],
)
def test_interventions_that_are_refused(intervention: Intervention, field: str, says: str) -> None:
    field = f"analysis.variants[0].interventions[0].{field}"
    assert violations(analysis=intervening(intervention))[field].startswith(says)


@pytest.mark.parametrize(
    ("selection", "field", "says"),
    [
        (ByType(()), "types.types", "is empty, expected at least one type"),
        (ByContribution(0.0), "top_contribution.fraction", "is 0, expected more than 0 and at most 1"),
        (ByContribution(1.5), "top_contribution.fraction", "is 1.5, expected more than 0 and at most 1"),
        (ByContribution(top_k=21), "top_contribution.top_k", "is 21, expected at most the 20 neurons"),
        (Union(()), "union.selections", "is empty, expected at least one selection"),
        (Intersection(()), "intersection.selections", "is empty"),
        (Difference(()), "difference.selections", "is empty"),
        (
            replace(NEURONS, layers=4, neurons=512),
            "neurons",
            "is a set of 4 layers of 512 neurons, expected the 24 layers",
        ),
        (
            replace(NEURONS, component="encoder"),
            "neurons.component",
            "is 'encoder', expected a component of 'bloom': decoder",
        ),
        (replace(NEURONS, bits=bytes(71)), "neurons.bits", "71 bytes do not hold an array of shape (24, 20)"),
        (replace(NEURONS, bits=bytes(71) + b"\x10"), "neurons.bits", "a bit past the last of 20 neurons is set"),
        (
            Union((SHARED, Difference((SHARED, Control(replace(NEURONS, bits=b""), ControlKind.RANDOM))))),
            "union.selections[1].difference.selections[1].control.of.neurons.bits",
            "0 bytes do not hold",
        ),
    ],
)
def test_selections_that_are_refused(selection: Selection, field: str, says: str) -> None:
    field = f"analysis.variants[0].interventions[0].selection.{field}"
    assert violations(analysis=selecting(selection))[field].startswith(says)


@pytest.mark.parametrize(
    ("selection", "field"),
    [
        (SHARED, "types"),
        (Control(Union((NEURONS, SHARED)), ControlKind.RANDOM), "control.of.union.selections[1].types"),
    ],
)
def test_a_single_row_has_no_types_to_choose_by(selection: Selection, field: str) -> None:
    found = violations(Group("g", (EN,)), selecting(selection))
    assert list(found) == [f"analysis.variants[0].interventions[0].selection.{field}"]
    assert "send two languages or more" in next(iter(found.values()))


def test_the_component_must_be_named_if_there_are_several() -> None:
    assert violations(analysis=selecting(replace(NEURONS, component="decoder")), model=ENCODER_DECODER) == {}
    (description,) = violations(analysis=selecting(NEURONS), model=ENCODER_DECODER).values()
    assert description == "is empty, and 'bloom' has more than one: name encoder or decoder"
    wrong = violations(
        analysis=intervening(replace(DEACTIVATE, layers=(3,), component="encoder")), model=ENCODER_DECODER
    )
    assert "it has 3 (0 to 2)" in next(iter(wrong.values()))


def test_a_selection_of_too_many_selections_is_refused() -> None:
    (description,) = violations(analysis=selecting(Union((SHARED,) * 1024))).values()
    assert description == "has 1025 selections, expected at most 1024: send fewer"


def test_effective_scores_of_no_answer_are_refused() -> None:
    found = violations(Group("", (ES,)), Analysis(effective_score=EffectiveScore()))
    assert found == {
        "analysis.effective_score": "is requested, but no row has an answer: give answers, or leave it out"
    }


def refused(check_it: Callable[[], None]) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as error:
        check_it()
    return dict(error.value.violations)


def test_uploads_that_are_refused() -> None:
    check_neurons(NEURONS, MODEL)
    found = refused(lambda: check_neurons(replace(NEURONS, bits=b""), MODEL))
    assert found["neurons.bits"].startswith("0 bytes do not hold")
    found = refused(lambda: check_neurons(NEURONS, ENCODER_DECODER))
    assert found["neurons.component"].endswith("name encoder or decoder")


def test_generations_that_are_refused() -> None:
    check_generation(EN, (replace(DEACTIVATE, selection=ByContribution()),), 0.0, 1, MODEL)
    wrong = (replace(DEACTIVATE, layers=(24,)), DEACTIVATE)
    found = refused(lambda: check_generation(EN._replace(prompt=""), wrong, math.nan, 0, MODEL))
    assert list(found) == [
        "row.text",
        "threshold",
        "max_tokens",
        "interventions[0].selection.types",
        "interventions[0].layers[0]",
        "interventions[1].selection.types",
    ]
    many = (replace(DEACTIVATE, selection=Union((NEURONS,) * 1024)),)
    assert list(refused(lambda: check_generation(EN, many, 0.0, 1, MODEL))) == ["interventions"]


@pytest.mark.parametrize(
    ("capture", "field", "says"),
    [
        (Capture(component="encoder"), "component", "is 'encoder', expected a component of 'bloom': decoder"),
        (Capture(layers=(0, 24)), "layers[1]", "is 24, expected a layer of 'bloom': it has 24 (0 to 23)"),
        (Capture(neurons=(20,)), "neurons[0]", "is 20, expected a neuron of 'bloom': 0 to 19"),
        (Capture(layers=(2, 1)), "layers[1]", "is 1 after 2, expected them in ascending order, each once"),
        (Capture(neurons=(3, 5, 5)), "neurons[2]", "is 5 after 5, expected them in ascending order"),
    ],
)
def test_captures_that_are_refused(capture: Capture, field: str, says: str) -> None:
    assert refused(lambda: check_capture(EN, capture, MODEL))[field].startswith(says)


def test_a_capture_names_one_component() -> None:
    check_capture(EN, Capture(layers=(0, 23), neurons=(0, 19)), MODEL)
    check_capture(EN, Capture("encoder"), ENCODER_DECODER)
    found = refused(lambda: check_capture(EN, Capture(), ENCODER_DECODER))
    assert found == {"component": "is empty, and 'bloom' has more than one: name encoder or decoder"}
    found = refused(lambda: check_capture(EN, Capture("encoder", layers=(3,)), ENCODER_DECODER))
    assert "it has 3 (0 to 2)" in found["layers[0]"]


def test_the_message_is_one_line_that_names_the_first_field() -> None:
    with pytest.raises(InvalidRequest, match=r"^group\.rows\[0\]\.text: is empty, expected .* \(and 1 more\)$"):
        check(Group("g", (EN._replace(prompt=""), ES._replace(label=""))), Analysis(), MODEL)


def test_all_violations_are_reported_at_once_up_to_a_limit() -> None:
    group = Group("g", (EN._replace(label=""), ES._replace(prompt="")))
    found = violations(group, replace(ANALYSIS, thresholds=(math.inf,), variants=(Variant("baseline", ()),)))
    assert list(found) == [
        "group.rows[0].label",
        "group.rows[1].text",
        "analysis.thresholds[0]",
        "analysis.variants[0].name",
        "analysis.variants[0].interventions",
    ]
    assert len(violations(Group("g", (EN._replace(prompt=(100,) * 1000),)), Analysis())) == MOST_VIOLATIONS
