"""What the client sends, against the contract's text."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields

import numpy as np
import pytest
from google.protobuf import text_format

import neuroglot as ng
from neuroglot.request.messages import (
    analysis_message,
    group_message,
    intervention_message,
    priority_message,
    row_message,
)
from neuroglot.request.options import AnalysisKeywords, AnalysisOptions
from neuroglot.request.selections import Uploaded
from neuroglot.v1 import analysis_pb2, group_pb2, model_pb2, service_pb2

MODEL = text_format.Parse(
    """
    name: "small" source: "hub/small"
    components { name: "encoder" layers: 2 neurons: 12 }
    components { name: "decoder" layers: 3 neurons: 5 }
    """,
    model_pb2.Model(),
)
GROUP = ng.Group({"en": "x"})
SET = ng.NeuronSet.from_indices([(0, 1), (2, 4)], component="decoder", layers=3, neurons=5, source="hub/small")


def analysis(group: ng.Group = GROUP, **asked: object) -> analysis_pb2.Analysis:
    options = AnalysisOptions(**asked)
    return analysis_message(options, predict=options.predicts(group))


def expect(intervention: ng.Intervention, text: str) -> None:
    assert intervention_message(intervention) == text_format.Parse(text, analysis_pb2.Intervention())


def test_a_group() -> None:
    group = ng.Group(
        {"en": "The capital is", "th": "เมืองหลวงคือ"},
        answers={"th": ["ปารีส", "Paris"]},
        id="own",
        choices={"en": ["true", "false"]},
        distractors={"th": "ลอนดอน"},
    )
    expected = """
        id: "sent"
        rows { label: "en" text: "The capital is" separator: " " choices: "true" choices: "false" }
        rows { label: "th" text: "เมืองหลวงคือ" answers: "ปารีส" answers: "Paris" separator: "" distractor: "ลอนดอน" }
    """
    assert group_message(group, "sent") == text_format.Parse(expected, group_pb2.Group())


def test_selections() -> None:
    here = "deactivate {} scope: SCOPE_LAST_PROMPT_TOKEN"
    expect(ng.deactivate(ng.ALL_SHARED), f"selection {{ types {{ types: NEURON_TYPE_ALL_SHARED }} }} {here}")
    expect(ng.deactivate("non-activated"), f"selection {{ types {{ types: NEURON_TYPE_NON_ACTIVATED }} }} {here}")
    expect(
        ng.deactivate([ng.PARTIAL_SHARED, "specific", ng.SPECIFIC]),
        f"selection {{ types {{ types: NEURON_TYPE_PARTIAL_SHARED types: NEURON_TYPE_SPECIFIC }} }} {here}",
    )
    neurons = r'component: "decoder" layers: 3 neurons: 5 bits: "\002\000\020"'
    expect(ng.deactivate(SET), f"selection {{ neurons {{ {neurons} }} }} {here}")
    expect(
        ng.deactivate(ng.control(SET, kind="random", draw=3, seed=2**64 - 1)),
        f"""selection {{ control {{
            of {{ neurons {{ {neurons} }} }} kind: CONTROL_KIND_RANDOM draw: 3 seed: {2**64 - 1}
        }} }} {here}""",
    )
    expect(ng.deactivate(Uploaded("4f", SET)), f'selection {{ uploaded: "4f" }} {here}')
    expect(ng.deactivate(ng.top_contribution()), f"selection {{ top_contribution {{ fraction: 0.05 }} }} {here}")
    expect(ng.deactivate(ng.top_contribution(count=9)), f"selection {{ top_contribution {{ top_k: 9 }} }} {here}")
    for combine in (ng.union, ng.intersection, ng.difference):
        expect(
            ng.deactivate(combine(ng.SPECIFIC, ng.control(ng.ALL_SHARED))),
            f"""selection {{ {combine.__name__} {{
                selections {{ types {{ types: NEURON_TYPE_SPECIFIC }} }}
                selections {{ control {{
                    of {{ types {{ types: NEURON_TYPE_ALL_SHARED }} }} kind: CONTROL_KIND_RANDOM_ACTIVE
                }} }}
            }} }} {here}""",
        )


@pytest.mark.parametrize(
    ("intervention", "action"),
    [
        (ng.deactivate(ng.SPECIFIC), "deactivate {}"),
        (ng.convert(ng.SPECIFIC), "convert {}"),
        (ng.convert(ng.SPECIFIC, 0.0), "convert { value: 0 }"),
        (ng.convert(ng.SPECIFIC, 1.5), "convert { value: 1.5 }"),
        (ng.convert(ng.SPECIFIC, mean_of_active=True), "convert { mean_of_active: true }"),
        (ng.override(ng.SPECIFIC, -2), "override { value: -2 }"),
        (ng.override(ng.SPECIFIC, 0.0), "override {}"),
        (ng.scale(ng.SPECIFIC, 0.5), "scale { factor: 0.5 }"),
        (ng.scale(ng.SPECIFIC, 0.0), "scale {}"),
        (ng.add(ng.SPECIFIC, 4.0), "add { value: 4 }"),
    ],
)
def test_actions(intervention: ng.Intervention, action: str) -> None:
    expect(
        intervention, f"selection {{ types {{ types: NEURON_TYPE_SPECIFIC }} }} {action} scope: SCOPE_LAST_PROMPT_TOKEN"
    )


@pytest.mark.parametrize("act", [ng.deactivate, ng.convert, ng.override, ng.scale, ng.add])
def test_where_an_intervention_acts(act) -> None:
    value = () if act in (ng.deactivate, ng.convert) else (1.0,)
    message = intervention_message(
        act(ng.SPECIFIC, *value, layers=range(1, 3), component="decoder", scope="all_tokens")
    )
    assert list(message.layers) == [1, 2]
    assert message.component == "decoder"
    assert message.scope == analysis_pb2.SCOPE_ALL_TOKENS


def test_every_scope_kind_and_type_of_the_contract_can_be_said() -> None:
    scopes = {intervention_message(ng.deactivate(ng.SPECIFIC, scope=scope)).scope for scope in ng.Scope}
    assert scopes == set(analysis_pb2.Scope.values()) - {analysis_pb2.SCOPE_UNSPECIFIED}
    kinds = {
        intervention_message(ng.deactivate(ng.control(ng.SPECIFIC, kind=kind))).selection.control.kind
        for kind in ng.ControlKind
    }
    assert kinds == set(analysis_pb2.ControlKind.values()) - {analysis_pb2.CONTROL_KIND_UNSPECIFIED}
    types = intervention_message(ng.deactivate(list(ng.NeuronType))).selection.types.types
    assert list(types) == [code + 1 for code in ng.NeuronType]


def test_what_is_wanted() -> None:
    expected = """
        thresholds: 0 thresholds: 0.5 type_map: true active_bitmaps: true contribution { top_fraction: 0.1 }
        effective_score { target: SCORE_TARGET_FIRST_GOLD_TOKEN } dead: true
        prediction { generate: true max_tokens: 7 }
        variants { name: "w/o" interventions {
            selection { types { types: NEURON_TYPE_SPECIFIC } } deactivate {} scope: SCOPE_LAST_PROMPT_TOKEN
        } }
    """
    message = analysis(
        thresholds=iter((0.0, 0.5)),
        active=True,
        contribution=0.1,
        effective_score=True,
        dead=True,
        max_tokens=7,
        variants={"w/o": ng.deactivate(ng.SPECIFIC)},
    )
    assert message == text_format.Parse(expected, analysis_pb2.Analysis())


def test_what_is_wanted_without_a_word() -> None:
    assert analysis() == analysis_pb2.Analysis(thresholds=[0], type_map=True)
    assert set(AnalysisKeywords.__annotations__) == set(AnalysisOptions.__dataclass_fields__)
    with pytest.raises(TypeError, match="unexpected keyword argument 'threshold'"):
        analysis(threshold=0.5)


def test_contribution_is_the_papers_or_a_share_or_as_the_options_say() -> None:
    assert not analysis().HasField("contribution")
    assert analysis(contribution=True).contribution.top_fraction == 0.05
    assert analysis(contribution=1).contribution.top_fraction == 1.0
    options = ng.ContributionOptions(top_count=7, raw=True, leading=3)
    assert analysis(contribution=options).contribution == analysis_pb2.Contribution(top_k=7, raw=True, neurons=3)
    for share in (0, 0.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="contribution must be True, a share of a layer's neurons above 0"):
            analysis(contribution=share)
    with pytest.raises(ValueError, match="top_count must be an integer of 1 or more, not 0"):
        ng.ContributionOptions(top_count=0)
    with pytest.raises(ValueError, match="leading must be an integer of 0 or more, not -1"):
        ng.ContributionOptions(leading=-1)


def test_effective_scores_are_of_the_tokens_that_the_options_name() -> None:
    assert not analysis().HasField("effective_score")
    targets = {analysis(effective_score=ng.EffectiveScoreOptions(one)).effective_score.target for one in ng.ScoreTarget}
    assert targets == set(analysis_pb2.ScoreTarget.values()) - {analysis_pb2.SCORE_TARGET_UNSPECIFIED}
    options = ng.EffectiveScoreOptions("gold_minus_distractor", leading=2)
    assert analysis(effective_score=options).effective_score == analysis_pb2.EffectiveScore(
        target=analysis_pb2.SCORE_TARGET_GOLD_MINUS_DISTRACTOR, neurons=2
    )
    with pytest.raises(
        ValueError, match="unknown target of effective scores 'silver': expected one of first_gold_token, all_"
    ):
        ng.EffectiveScoreOptions("silver")


def test_predictions_come_where_there_is_something_to_compare_with() -> None:
    answered, chosen = ng.Group({"en": "x"}, answers={"en": "y"}), ng.Group({"en": "x"}, choices={"en": ["y", "z"]})
    variants = {"v": ng.deactivate(ng.SPECIFIC)}
    assert not analysis().HasField("prediction")
    assert analysis(answered).HasField("prediction")
    assert analysis(chosen).HasField("prediction")
    assert analysis(variants=variants).HasField("prediction")
    assert analysis(predict=True).HasField("prediction")
    assert not analysis(answered, predict=False).HasField("prediction")
    assert not analysis(answered, generate=False).prediction.generate


def test_a_set_of_another_model_is_not_sent() -> None:
    def check(neurons: ng.NeuronSet) -> None:
        nested = ng.difference(ng.SPECIFIC, ng.control(ng.union(neurons)), Uploaded("u", neurons))
        AnalysisOptions(variants={"v": [ng.deactivate(ng.SPECIFIC), ng.deactivate(nested)]}).check_fits(MODEL)

    check(SET)
    check(SET.bound_to(""))
    elsewhere = ng.NeuronSet.from_mask(np.zeros((3, 12), dtype=np.bool_), component="encoder", source="hub/small")
    for other in (SET.bound_to("hub/other"), elsewhere):
        with pytest.raises(ng.InvalidSelectionError) as raised:
            check(other)
        assert f"variant 'v' has {other!r}, and 'small' is hub/small with encoder (2 x 12), decoder (3 x 5)" in str(
            raised.value
        )
        with pytest.raises(ng.InvalidSelectionError, match="variant 'v' has"):
            AnalysisOptions(variants={"v": ng.deactivate(Uploaded("u", other))}).check_fits(MODEL)


def test_uploads_are_found_however_deep() -> None:
    one, other = Uploaded("one", SET), Uploaded("other", ~SET)
    variants = {"a": [ng.deactivate(one), ng.scale(ng.control(ng.union(ng.SPECIFIC, other)), 0)], "b": ng.add(one, 1)}
    assert AnalysisOptions(variants=variants).uploads == (one, other)
    assert AnalysisOptions(variants={"v": ng.deactivate(SET)}).uploads == ()


FULL = np.array([[0, 1.5, 0, 0, 0], [9, 9, 9, 9, 9], [9, 9, 9, 9, -2]], dtype=np.float32)


@pytest.mark.parametrize("neurons", [SET, Uploaded("u", SET)])
@pytest.mark.parametrize(
    "numbers", [[1.5, -2], np.array([1.5, -2], dtype=np.float16), FULL, {(2, 4): -2, (0, 1): 1.5}], ids=type
)
def test_one_number_a_neuron_in_the_order_of_the_set(neurons: ng.NeuronSet, numbers: object) -> None:
    for act, field in ((ng.override, "override"), (ng.scale, "scale"), (ng.add, "add")):
        message = getattr(intervention_message(act(neurons, numbers)), field)
        assert message == type(message)(values=[1.5, -2])


def test_one_number_may_be_numpys() -> None:
    assert intervention_message(ng.override(ng.SPECIFIC, np.float32(0.5))).override == analysis_pb2.Override(value=0.5)


def test_a_prompt_by_itself() -> None:
    assert row_message("Hello") == group_pb2.Row(label="prompt", text="Hello")
    tokens = group_pb2.TokenIds(ids=[3, 1])
    assert row_message((3, 1)) == group_pb2.Row(label="prompt", token_ids=tokens)
    assert row_message(np.array([3, 1])) == group_pb2.Row(label="prompt", token_ids=tokens)
    for nothing in ("", []):
        with pytest.raises(ng.InvalidGroupError, match="the prompt is empty"):
            row_message(nothing)


def test_priorities() -> None:
    assert priority_message(None) == service_pb2.PRIORITY_UNSPECIFIED
    said = {priority_message(priority) for priority in ng.Priority} | {priority_message("bulk")}
    assert said == set(service_pb2.Priority.values()) - {service_pb2.PRIORITY_UNSPECIFIED}
    with pytest.raises(ValueError, match="unknown priority 'urgent': expected one of bulk, interactive"):
        priority_message("urgent")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ng.deactivate([]), "empty list of types"),
        (lambda: ng.deactivate(3), "3 selects no neurons: give a type"),
        (lambda: ng.deactivate("shared"), "'shared' is no type of neuron: the types are"),
        (lambda: ng.deactivate([(0, 1)]), r"\(0, 1\) is no type of neuron"),
        (lambda: ng.deactivate(ng.SPECIFIC, layers=[]), "names no layers to act in"),
        (lambda: ng.deactivate(ng.SPECIFIC, layers=[0, -1]), "names no layers to act in"),
        (lambda: ng.deactivate(ng.SPECIFIC, component=""), "component=''"),
        (
            lambda: ng.deactivate(ng.SPECIFIC, scope="everywhere"),
            "unknown scope 'everywhere': expected one of .*all_tokens",
        ),
        (lambda: ng.union(), "a union of nothing"),
        (
            lambda: ng.control(ng.SPECIFIC, kind="fair"),
            "unknown kind of control 'fair': expected one of random, random_active",
        ),
        (
            lambda: ng.control(ng.SPECIFIC, draw=-1),
            "the draw of a control must be an integer from 0 to 4294967295, not -1",
        ),
        (lambda: ng.control(ng.SPECIFIC, seed=2**64), "the seed of a control"),
        (lambda: ng.override(ng.SPECIFIC, math.nan), "must be a finite 32-bit float, not nan"),
        (lambda: ng.scale(ng.SPECIFIC, 1e39), "the factor of an intervention must be a finite 32-bit float, not 1e"),
        (lambda: ng.convert(ng.SPECIFIC, math.inf), "must be a finite 32-bit float, not inf"),
        (lambda: ng.convert(ng.SPECIFIC, 1.0, mean_of_active=True), "a value .1.0. or to the mean"),
        (lambda: ng.top_contribution(0), "the share of top contributors must be a number above 0 .*, not 0"),
        (lambda: ng.top_contribution(math.nan), "the share of top contributors must be .*, not nan"),
        (
            lambda: ng.top_contribution(count=0),
            "the count of top contributors must be an integer from 1 to 4294967295, not 0",
        ),
        (lambda: ng.top_contribution(0.1, count=3), "by a share .0.1. or by a number .3.: give one"),
        (lambda: ng.override(ng.SPECIFIC, [1, 2]), "one value a neuron needs neurons that are known one by one"),
        (
            lambda: ng.scale(SET, [1, 2, 3]),
            r"array of shape \[3\] is not one factor for each .* give \[2\], .* \[3, 5\]",
        ),
        (lambda: ng.add(SET, [1, math.nan]), "must be a finite 32-bit float, not nan"),
        (lambda: ng.add(SET, {(0, 1): 1.0}), r"a mapping with one value .* has none for \(2, 4\)"),
        (lambda: ng.add(SET, dict.fromkeys([*SET, (1, 1)], 0.0)), r"has one for \(1, 1\), which is not in the set"),
        (lambda: AnalysisOptions(variants={"v": []}), r"variant 'v' must be an intervention, .*, not \[\]"),
        (lambda: AnalysisOptions(variants={"v": ng.ALL_SHARED}), "variant 'v' must be .*ALL_SHARED"),
        (lambda: AnalysisOptions(variants={"v": [ng.ALL_SHARED]}), "must be an intervention, `deactivate"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message: str) -> None:
    with pytest.raises(ng.InvalidSelectionError, match=message):
        make()


def test_the_options_are_explicit_keywords_with_the_same_types_and_defaults_everywhere() -> None:
    options = {one.name: one for one in fields(AnalysisOptions)}
    for method in (ng.Model.analyze, ng.Model.analyze_many):
        parameters = inspect.signature(method).parameters
        assert not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        given = {name: one for name, one in parameters.items() if name in options}
        assert list(given) == list(options) == list(AnalysisKeywords.__annotations__)
        for name, one in given.items():
            if name != "variants":  # None in the signature: a dict is mutable
                assert (one.annotation, one.default) == (options[name].type, options[name].default)
            assert f" {name}: " in method.__doc__


def test_prompts_of_token_ids() -> None:
    group = ng.Group({"en": [3, 1], "de": np.array([2, 7]), "es": "x"})
    assert group.prompts == {"en": (3, 1), "de": (2, 7), "es": "x"}
    english, german, spanish = group_message(group, "own").rows
    assert (english.token_ids.ids, german.token_ids.ids, spanish.text) == ([3, 1], [2, 7], "x")
