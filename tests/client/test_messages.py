"""What the client sends, against the contract's text."""

from __future__ import annotations

import math

import numpy as np
import pytest
from google.protobuf import text_format

import neuroglot as ng
from neuroglot.messages import Wanted, as_variants, group_message, intervention_message
from neuroglot.v1 import analysis_pb2, group_pb2, model_pb2

MODEL = text_format.Parse(
    """
    name: "small" source: "hub/small"
    components { name: "encoder" layers: 2 neurons: 12 }
    components { name: "decoder" layers: 3 neurons: 5 }
    """,
    model_pb2.Model(),
)
SET = ng.NeuronSet.from_indices([(0, 1), (2, 4)], component="decoder", layers=3, neurons=5, source="hub/small")


def wanted(**changes: object) -> Wanted:
    fields = {
        "variants": {},
        "thresholds": (0.0,),
        "type_map": True,
        "active": False,
        "contribution": False,
        "predict": None,
        "generate": True,
        "max_tokens": 0,
    }
    return Wanted(**{**fields, **changes})


def expect(intervention: ng.Intervention, text: str) -> None:
    assert intervention_message(intervention) == text_format.Parse(text, analysis_pb2.Intervention())


def test_a_group() -> None:
    group = ng.Group({"en": "The capital is", "th": "เมืองหลวงคือ"}, answers={"th": ["ปารีส", "Paris"]}, id="own")
    expected = """
        id: "sent"
        rows { label: "en" text: "The capital is" separator: " " }
        rows { label: "th" text: "เมืองหลวงคือ" answers: "ปารีส" answers: "Paris" separator: "" }
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
    group = ng.Group({"en": "x"})
    expected = """
        thresholds: 0 thresholds: 0.5 type_map: true active_bitmaps: true contribution { top_fraction: 0.1 }
        prediction { generate: true max_tokens: 7 }
        variants { name: "w/o" interventions {
            selection { types { types: NEURON_TYPE_SPECIFIC } } deactivate {} scope: SCOPE_LAST_PROMPT_TOKEN
        } }
    """
    message = wanted(
        thresholds=(0.0, 0.5),
        active=True,
        contribution=0.1,
        max_tokens=7,
        variants=as_variants({"w/o": ng.deactivate(ng.SPECIFIC)}),
    ).message(group)
    assert message == text_format.Parse(expected, analysis_pb2.Analysis())


def test_contribution_is_the_servers_default_or_a_share() -> None:
    group = ng.Group({"en": "x"})
    assert not wanted().message(group).HasField("contribution")
    default = wanted(contribution=True).message(group)
    assert default.HasField("contribution")
    assert default.contribution.top_fraction == 0
    for share in (0.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="no share of a layer's neurons"):
            wanted(contribution=share)


def test_predictions_come_where_there_is_something_to_compare_with() -> None:
    plain, answered = ng.Group({"en": "x"}), ng.Group({"en": "x"}, answers={"en": "y"})
    variants = as_variants({"v": ng.deactivate(ng.SPECIFIC)})
    assert not wanted().message(plain).HasField("prediction")
    assert wanted().message(answered).HasField("prediction")
    assert wanted(variants=variants).message(plain).HasField("prediction")
    assert wanted(predict=True).message(plain).HasField("prediction")
    assert not wanted(predict=False).message(answered).HasField("prediction")
    assert not wanted(generate=False).message(answered).prediction.generate


def test_a_set_of_another_model_is_not_sent() -> None:
    def check(neurons: ng.NeuronSet) -> None:
        nested = ng.difference(ng.SPECIFIC, ng.control(ng.union(neurons)))
        wanted(variants=as_variants({"v": [ng.deactivate(ng.SPECIFIC), ng.deactivate(nested)]})).check_fits(MODEL)

    check(SET)
    check(SET.bound_to(""))
    elsewhere = ng.NeuronSet.from_mask(np.zeros((3, 12), dtype=np.bool_), component="encoder", source="hub/small")
    for other in (SET.bound_to("hub/other"), elsewhere):
        with pytest.raises(ng.InvalidSelectionError) as raised:
            check(other)
        assert f"variant 'v' has {other!r}, and 'small' is hub/small with encoder (2 x 12), decoder (3 x 5)" in str(
            raised.value
        )


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
        (lambda: ng.deactivate(ng.SPECIFIC, scope="everywhere"), "'everywhere' is no scope: .*all_tokens"),
        (lambda: ng.union(), "a union of nothing"),
        (lambda: ng.control(ng.SPECIFIC, kind="fair"), "'fair' is no kind of control: .* random, random_active"),
        (lambda: ng.control(ng.SPECIFIC, draw=-1), "the draw of a control is 0 to 4294967295, not -1"),
        (lambda: ng.control(ng.SPECIFIC, seed=2**64), "the seed of a control"),
        (lambda: ng.override(ng.SPECIFIC, math.nan), "finite 32-bit float, not nan"),
        (lambda: ng.scale(ng.SPECIFIC, 1e39), "the factor of an intervention is a finite 32-bit float"),
        (lambda: ng.convert(ng.SPECIFIC, math.inf), "finite 32-bit float"),
        (lambda: as_variants({"v": []}), r"variant 'v' is \[\]: give an intervention"),
        (lambda: as_variants({"v": ng.ALL_SHARED}), "variant 'v' is .*ALL_SHARED"),
        (lambda: as_variants({"v": [ng.ALL_SHARED]}), "give an intervention, `deactivate"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message: str) -> None:
    with pytest.raises(ng.InvalidSelectionError, match=message):
        make()
