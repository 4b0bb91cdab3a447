from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from neuroglot.v1 import analysis_pb2, group_pb2, result_pb2
from neuroglot_server import core
from neuroglot_server.adapter import requests, responses

TYPES = {
    analysis_pb2.NEURON_TYPE_NON_ACTIVATED: core.NeuronType.NON_ACTIVATED,
    analysis_pb2.NEURON_TYPE_SPECIFIC: core.NeuronType.SPECIFIC,
    analysis_pb2.NEURON_TYPE_PARTIAL_SHARED: core.NeuronType.PARTIAL_SHARED,
    analysis_pb2.NEURON_TYPE_ALL_SHARED: core.NeuronType.ALL_SHARED,
}


def by_type(kind: analysis_pb2.NeuronType.ValueType) -> analysis_pb2.Selection:
    return analysis_pb2.Selection(types=analysis_pb2.TypeSelection(types=[kind]))


def converted(intervention: analysis_pb2.Intervention) -> core.Intervention:
    variant = analysis_pb2.Variant(name="v", interventions=[intervention])
    (result,) = requests.analysis(analysis_pb2.Analysis(variants=[variant])).variants
    assert result.name == "v"
    return result.interventions[0]


def test_a_group_keeps_its_rows_and_what_they_leave_out() -> None:
    message = group_pb2.Group(
        id="g",
        rows=[
            group_pb2.Row(label="en", text="a", answers=["x", "y"], separator=""),
            group_pb2.Row(label="ids", token_ids=group_pb2.TokenIds(ids=[3, 1])),
            group_pb2.Row(label="es", text="b", separator=" "),
        ],
    )
    assert requests.group(message) == core.Group(
        "g",
        (
            core.Row("en", "a", ("x", "y"), ""),
            core.Row("ids", (3, 1), (), None),
            core.Row("es", "b", (), " "),
        ),
    )


def test_an_empty_analysis_asks_for_the_core_s_defaults() -> None:
    assert requests.analysis(analysis_pb2.Analysis()) == core.Analysis()


def test_zeros_mean_what_the_contract_says() -> None:
    message = analysis_pb2.Analysis(contribution=analysis_pb2.Contribution(), prediction=analysis_pb2.Prediction())
    analysis = requests.analysis(message)
    assert analysis.contribution == core.Contribution(0.05)
    assert analysis.prediction == core.Prediction(generate=False, max_tokens=16)


def test_an_analysis_keeps_everything_it_is_given() -> None:
    message = analysis_pb2.Analysis(
        thresholds=[0.5, -1.0],
        type_map=True,
        active_bitmaps=True,
        contribution=analysis_pb2.Contribution(top_fraction=0.25),
        prediction=analysis_pb2.Prediction(generate=True, max_tokens=3),
    )
    expected = core.Analysis((0.5, -1.0), True, True, core.Contribution(0.25), core.Prediction(True, 3))
    assert requests.analysis(message) == expected


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ({"deactivate": analysis_pb2.Deactivate()}, core.Deactivate()),
        ({"convert": analysis_pb2.Convert()}, core.Convert(None)),
        ({"convert": analysis_pb2.Convert(value=0.0)}, core.Convert(0.0)),
        ({"override": analysis_pb2.Override(value=2.0)}, core.Override(2.0)),
        ({"scale": analysis_pb2.Scale(factor=0.0)}, core.Scale(0.0)),
        ({"add": analysis_pb2.Add(value=-1.0)}, core.Add(-1.0)),
    ],
)
def test_each_action(action: dict[str, object], expected: core.Action) -> None:
    intervention = analysis_pb2.Intervention(selection=by_type(analysis_pb2.NEURON_TYPE_SPECIFIC), **action)
    assert converted(intervention).action == expected


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (analysis_pb2.SCOPE_UNSPECIFIED, core.Scope.LAST_PROMPT_TOKEN),
        (analysis_pb2.SCOPE_LAST_PROMPT_TOKEN, core.Scope.LAST_PROMPT_TOKEN),
        (analysis_pb2.SCOPE_ALL_PROMPT_TOKENS, core.Scope.ALL_PROMPT_TOKENS),
        (analysis_pb2.SCOPE_LAST_PROMPT_TOKEN_AND_GENERATED, core.Scope.LAST_PROMPT_TOKEN_AND_GENERATED),
        (analysis_pb2.SCOPE_ALL_TOKENS, core.Scope.ALL_TOKENS),
    ],
)
def test_where_an_intervention_acts(scope: analysis_pb2.Scope.ValueType, expected: core.Scope) -> None:
    intervention = analysis_pb2.Intervention(
        selection=by_type(analysis_pb2.NEURON_TYPE_SPECIFIC),
        deactivate=analysis_pb2.Deactivate(),
        layers=[2, 0],
        component="decoder",
        scope=scope,
    )
    assert converted(intervention) == core.Intervention(
        core.ByType((core.NeuronType.SPECIFIC,)), core.Deactivate(), (2, 0), "decoder", expected
    )


@pytest.mark.parametrize("kind", TYPES)
def test_each_type(kind: analysis_pb2.NeuronType.ValueType) -> None:
    intervention = analysis_pb2.Intervention(selection=by_type(kind), deactivate=analysis_pb2.Deactivate())
    assert converted(intervention).selection == core.ByType((TYPES[kind],))
    assert TYPES[kind] == kind - 1  # the codes of packed maps


def test_selections_within_selections() -> None:
    chosen = analysis_pb2.NeuronSet(component="decoder", layers=2, neurons=9, bits=b"\x01\x00\x02\x00")
    neurons = analysis_pb2.Selection(neurons=chosen)
    specific, shared = (
        by_type(kind) for kind in (analysis_pb2.NEURON_TYPE_SPECIFIC, analysis_pb2.NEURON_TYPE_ALL_SHARED)
    )
    union = analysis_pb2.Selection(union=analysis_pb2.SelectionList(selections=[specific, neurons]))
    both = analysis_pb2.Selection(intersection=analysis_pb2.SelectionList(selections=[union]))
    rest = analysis_pb2.Selection(difference=analysis_pb2.SelectionList(selections=[both, shared]))
    control = analysis_pb2.Control(of=rest, kind=analysis_pb2.CONTROL_KIND_RANDOM, draw=4, seed=2**63)
    intervention = analysis_pb2.Intervention(
        selection=analysis_pb2.Selection(control=control), deactivate=analysis_pb2.Deactivate()
    )
    expected_union = core.Union(
        (core.ByType((core.NeuronType.SPECIFIC,)), core.ByNeuron("decoder", 2, 9, b"\x01\x00\x02\x00"))
    )
    expected = core.Control(
        core.Difference((core.Intersection((expected_union,)), core.ByType((core.NeuronType.ALL_SHARED,)))),
        core.ControlKind.RANDOM,
        4,
        2**63,
    )
    assert converted(intervention).selection == expected


def test_a_random_active_control() -> None:
    control = analysis_pb2.Control(
        of=by_type(analysis_pb2.NEURON_TYPE_SPECIFIC), kind=analysis_pb2.CONTROL_KIND_RANDOM_ACTIVE
    )
    intervention = analysis_pb2.Intervention(
        selection=analysis_pb2.Selection(control=control), deactivate=analysis_pb2.Deactivate()
    )
    selection = converted(intervention).selection
    assert selection == core.Control(core.ByType((core.NeuronType.SPECIFIC,)), core.ControlKind.RANDOM_ACTIVE)


DESCRIPTION = core.ModelDescription(
    name="tiny",
    family="bloom",
    source="org/tiny",
    source_revision="abc",
    bundle_identity="f" * 64,
    components=(
        core.ComponentDescription("encoder", 1, 2, 3, "relu", gated=False),
        core.ComponentDescription("decoder", 4, 5, 6, "gelu", gated=True),
    ),
    vocabulary_size=7,
    dtype="float32",
    limits=core.Limits(8, 9, 10, 11),
)


def test_a_model_says_all_that_it_is() -> None:
    model = responses.model(DESCRIPTION)
    for name in ("name", "family", "source", "source_revision", "bundle_identity", "vocabulary_size", "dtype"):
        assert getattr(model, name) == getattr(DESCRIPTION, name)
    for component, given in zip(model.components, DESCRIPTION.components, strict=True):
        assert {field.name: getattr(component, field.name) for field in component.DESCRIPTOR.fields} == (
            dataclasses.asdict(given)
        )
    limits = {field.name: getattr(model.limits, field.name) for field in model.limits.DESCRIPTOR.fields}
    assert limits == dataclasses.asdict(DESCRIPTION.limits)


def threshold(rows: int, contribution: core.ContributionResult | None = None) -> core.ThresholdResult:
    return core.ThresholdResult(
        threshold=0.5,
        type_counts=np.arange(8).reshape(2, 4) if rows > 1 else None,
        active_counts=np.arange(2 * rows).reshape(2, rows),
        near_threshold=3,
        type_map=b"\x01\x02",
        active_bitmaps=(b"\x03",) * rows,
        contribution=contribution,
    )


def test_a_result_keeps_its_arrays_row_major_and_says_what_made_it() -> None:
    contribution = core.ContributionResult(
        2, np.arange(24).reshape(3, 2, 4), np.linspace(0, 1, 24, dtype=np.float32).reshape(3, 2, 4)
    )
    result = core.GroupResult(
        group_id="g",
        rows=(core.RowResult("en", 5, (1, 2), True), core.RowResult("th", 6, (), False)),
        components=(core.ComponentResult("decoder", 2, 9, (threshold(3, contribution), threshold(1))),),
        variants=(
            core.VariantResult(
                "baseline",
                (
                    core.RowPrediction("", True, -0.5, (4,), "París", True, True, 0, 0),
                    core.RowPrediction(exact=False, matches=False),
                    core.RowPrediction(error="overflow", selected_neurons=2, selected_active_neurons=1),
                ),
            ),
        ),
        queue_time_ms=1.5,
        compute_time_ms=2.5,
    )
    message = responses.group_result(result, DESCRIPTION)
    assert message.group_id == "g"
    assert [(row.label, row.prompt_tokens, list(row.gold_token_ids), row.gold_is_joint) for row in message.rows] == [
        ("en", 5, [1, 2], True),
        ("th", 6, [], False),
    ]
    (component,) = message.components
    assert (component.component, component.layers, component.neurons) == ("decoder", 2, 9)
    first, second = component.thresholds
    assert first == result_pb2.ThresholdResult(
        threshold=0.5,
        type_counts=range(8),
        active_counts=range(6),
        near_threshold=3,
        type_map=b"\x01\x02",
        active_bitmaps=[b"\x03"] * 3,
        contribution=result_pb2.ContributionResult(
            top_k=2, top_counts=range(24), sums=np.linspace(0, 1, 24, dtype=np.float32)
        ),
    )
    assert not second.type_counts
    assert not second.HasField("contribution")
    (variant,) = message.variants
    right, wrong, broken = variant.predictions
    assert variant.name == "baseline"
    assert right == result_pb2.RowPrediction(
        exact=True, gold_log_probability=-0.5, token_ids=[4], text="París", matches=True, starts_with_answer=True
    )
    assert (wrong.HasField("exact"), wrong.exact, wrong.HasField("matches"), wrong.matches) == (
        True,
        False,
        True,
        False,
    )
    assert not wrong.HasField("gold_log_probability")
    assert broken == result_pb2.RowPrediction(error="overflow", selected_neurons=2, selected_active_neurons=1)
    made_by = {field.name: value for field, value in message.provenance.ListFields()}
    assert made_by.pop("server_version")
    assert made_by == {
        "model": "tiny",
        "bundle_identity": "f" * 64,
        "queue_time_ms": 1.5,
        "compute_time_ms": 2.5,
        "source": "org/tiny",
    }
    # Whatever the contract says of what made an answer is said.
    assert len(message.provenance.ListFields()) == len(message.provenance.DESCRIPTOR.fields)
