from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from neuroglot.v1 import analysis_pb2, group_pb2, result_pb2, service_pb2
from neuroglot_server import core
from neuroglot_server.core import limits
from neuroglot_server.transport import requests, responses

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


def test_a_group_keeps_its_rows_and_unset_fields() -> None:
    message = group_pb2.Group(
        id="g",
        rows=[
            group_pb2.Row(label="en", text="a", answers=["x", "y"], separator="", choices=["x", "z"], distractor="w"),
            group_pb2.Row(label="ids", token_ids=group_pb2.TokenIds(ids=[3, 1])),
            group_pb2.Row(label="es", text="b", separator=" "),
        ],
    )
    assert requests.group(message) == core.Group(
        "g",
        (
            core.Row("en", "a", ("x", "y"), "", ("x", "z"), "w"),
            core.Row("ids", (3, 1), (), None),
            core.Row("es", "b", (), " "),
        ),
    )


def test_an_empty_analysis_has_the_defaults_of_the_core() -> None:
    assert requests.analysis(analysis_pb2.Analysis()) == core.Analysis()


def test_zeros_mean_the_documented_defaults() -> None:
    message = analysis_pb2.Analysis(
        contribution=analysis_pb2.Contribution(),
        effective_score=analysis_pb2.EffectiveScore(),
        prediction=analysis_pb2.Prediction(),
    )
    analysis = requests.analysis(message)
    assert analysis.contribution == core.Contribution(0.05, top_k=0, raw=False, neurons=0)
    assert analysis.effective_score == core.EffectiveScore(core.ScoreTarget.FIRST_GOLD_TOKEN, 0)
    assert analysis.prediction == core.Prediction(generate=False, max_tokens=16)


def test_an_analysis_keeps_all_fields() -> None:
    message = analysis_pb2.Analysis(
        thresholds=[0.5, -1.0],
        type_map=True,
        active_bitmaps=True,
        contribution=analysis_pb2.Contribution(top_fraction=0.25, top_k=3, raw=True, neurons=4),
        effective_score=analysis_pb2.EffectiveScore(target=analysis_pb2.SCORE_TARGET_GOLD_MINUS_DISTRACTOR, neurons=5),
        dead=True,
        prediction=analysis_pb2.Prediction(generate=True, max_tokens=3),
    )
    assert len(message.ListFields()) == len(message.DESCRIPTOR.fields) - 1, "all but the variants"
    expected = core.Analysis(
        thresholds=(0.5, -1.0),
        type_map=True,
        active_bitmaps=True,
        contribution=core.Contribution(0.25, 3, True, 4),
        effective_score=core.EffectiveScore(core.ScoreTarget.GOLD_MINUS_DISTRACTOR, 5),
        dead=True,
        prediction=core.Prediction(True, 3),
    )
    assert requests.analysis(message) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (analysis_pb2.SCORE_TARGET_FIRST_GOLD_TOKEN, core.ScoreTarget.FIRST_GOLD_TOKEN),
        (analysis_pb2.SCORE_TARGET_ALL_GOLD_TOKENS, core.ScoreTarget.ALL_GOLD_TOKENS),
        (analysis_pb2.SCORE_TARGET_GOLD_MINUS_DISTRACTOR, core.ScoreTarget.GOLD_MINUS_DISTRACTOR),
    ],
)
def test_each_target_of_effective_scores(
    target: analysis_pb2.ScoreTarget.ValueType, expected: core.ScoreTarget
) -> None:
    message = analysis_pb2.Analysis(effective_score=analysis_pb2.EffectiveScore(target=target))
    assert requests.analysis(message).effective_score == core.EffectiveScore(expected)


def test_a_requests_priority_defaults_to_that_of_its_method() -> None:
    for unspecified in core.Priority:
        assert requests.priority(service_pb2.PRIORITY_UNSPECIFIED, unspecified) is unspecified
        assert requests.priority(service_pb2.PRIORITY_BULK, unspecified) is core.Priority.BULK
        assert requests.priority(service_pb2.PRIORITY_INTERACTIVE, unspecified) is core.Priority.INTERACTIVE


def test_a_capture_keeps_all_fields() -> None:
    message = service_pb2.CaptureActivationsRequest(
        model="m",
        row=group_pb2.Row(label="en", text="a"),
        component="encoder",
        layers=[1, 2],
        neurons=[7],
        positions=[-1, 0],
        coefficients=True,
    )
    assert len(message.ListFields()) == len(message.DESCRIPTOR.fields)
    assert requests.capture(message) == core.Capture("encoder", (1, 2), (7,), (-1, 0), True)
    assert requests.row(message.row) == core.Row("en", "a")


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ({"deactivate": analysis_pb2.Deactivate()}, core.Deactivate()),
        ({"convert": analysis_pb2.Convert()}, core.Convert(None)),
        ({"convert": analysis_pb2.Convert(value=0.0)}, core.Convert(0.0)),
        ({"convert": analysis_pb2.Convert(mean_of_active=True)}, core.Convert(mean_of_active=True)),
        ({"override": analysis_pb2.Override(value=2.0)}, core.Override(2.0)),
        ({"override": analysis_pb2.Override(values=[2.0, 0.5])}, core.Override(0.0, (2.0, 0.5))),
        ({"scale": analysis_pb2.Scale(values=[3.0])}, core.Scale(0.0, (3.0,))),
        ({"add": analysis_pb2.Add(values=[-3.0])}, core.Add(0.0, (-3.0,))),
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


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (analysis_pb2.CONTROL_KIND_RANDOM, core.ControlKind.RANDOM),
        (analysis_pb2.CONTROL_KIND_RANDOM_ACTIVE, core.ControlKind.RANDOM_ACTIVE),
        (analysis_pb2.CONTROL_KIND_RANDOM_MASS, core.ControlKind.RANDOM_MASS),
    ],
)
def test_each_kind_of_control(kind: analysis_pb2.ControlKind.ValueType, expected: core.ControlKind) -> None:
    control = analysis_pb2.Control(of=by_type(analysis_pb2.NEURON_TYPE_SPECIFIC), kind=kind)
    intervention = analysis_pb2.Intervention(
        selection=analysis_pb2.Selection(control=control), deactivate=analysis_pb2.Deactivate()
    )
    selection = converted(intervention).selection
    assert selection == core.Control(core.ByType((core.NeuronType.SPECIFIC,)), expected)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (analysis_pb2.Selection(uploaded="abc"), core.ByUpload("abc")),
        (
            analysis_pb2.Selection(top_contribution=analysis_pb2.TopContribution()),
            core.ByContribution(0.05, 0),
        ),
        (
            analysis_pb2.Selection(top_contribution=analysis_pb2.TopContribution(fraction=0.5, top_k=3)),
            core.ByContribution(0.5, 3),
        ),
    ],
)
def test_selections_beside_types_and_neurons(message: analysis_pb2.Selection, expected: core.Selection) -> None:
    intervention = analysis_pb2.Intervention(selection=message, deactivate=analysis_pb2.Deactivate())
    assert converted(intervention).selection == expected


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
    queue_tokens=12,
)


def test_a_model_description_has_all_fields() -> None:
    model = responses.model(DESCRIPTION, quota=core.Quota(13, 14, 16), request_bytes=17, result_bytes=15)
    for name in ("name", "family", "source", "source_revision", "bundle_identity", "vocabulary_size", "dtype"):
        assert getattr(model, name) == getattr(DESCRIPTION, name)
    for component, given in zip(model.components, DESCRIPTION.components, strict=True):
        assert {field.name: getattr(component, field.name) for field in component.DESCRIPTOR.fields} == (
            dataclasses.asdict(given)
        )
    described_limits = {field.name: getattr(model.limits, field.name) for field in model.limits.DESCRIPTOR.fields}
    assert described_limits == {
        **dataclasses.asdict(DESCRIPTION.limits),
        "queue_tokens": 12,
        "result_bytes": 15,
        "tenant_queue_tokens": 13,
        "tenant_tokens_per_minute": 14,
        "tenant_calls": 16,
        "request_bytes": 17,
        "request_fields": limits.FIELDS,
        "text_bytes": 8 * limits.BYTES_A_TOKEN,
        "answers_per_row": limits.ANSWERS,
        "choices_per_row": limits.CHOICES,
        "answer_bytes": limits.ANSWER_BYTES,
        "encoded_bytes_per_group": limits.ENCODED_BYTES,
        "name_bytes": limits.NAME_BYTES,
        "thresholds": limits.THRESHOLDS,
        "selections": limits.SELECTIONS,
        "selection_depth": limits.SELECTION_DEPTH,
        "values_per_intervention": limits.VALUES,
        "texts": limits.TEXTS,
        "texts_bytes": limits.TEXTS_BYTES,
        "token_ids": limits.TOKEN_IDS,
        "layers": limits.LAYERS,
        "neurons": limits.NEURONS,
        "positions": limits.POSITIONS,
    }
    unbounded = responses.model(DESCRIPTION, quota=core.Quota(), request_bytes=17, result_bytes=15).limits
    assert (unbounded.tenant_queue_tokens, unbounded.tenant_tokens_per_minute) == (0, 0)


def floats(*shape: int, start: float = 0.0) -> np.ndarray:
    return (start + np.arange(math.prod(shape), dtype=np.float32)).reshape(shape)


def leading(rows: int, layers: int, count: int, start: int) -> core.LeadingNeurons:
    shape = (rows, layers, count)
    size = math.prod(shape)
    return core.LeadingNeurons(
        start + np.arange(size).reshape(shape),
        floats(*shape, start=start + 0.5),
        (np.arange(size) % 4).astype(np.uint8).reshape(shape),
    )


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


def test_leading_neurons_effective_scores_and_dead_neurons_keep_their_arrays_row_major() -> None:
    full = dataclasses.replace(
        threshold(3),
        contribution=core.ContributionResult(
            2,
            np.arange(24).reshape(3, 2, 4),
            floats(3, 2, 4),
            leading(3, 2, 2, start=10),
            (b"\x07", b"\x08", b"\x09"),
        ),
        effective_score=core.EffectiveScoreResult(
            floats(3, 2, 4, start=1), floats(3, 2, 4, start=2), floats(3, 2, 4, start=3), leading(3, 2, 3, start=30)
        ),
        dead_counts=np.arange(6).reshape(2, 3),
        dead_bitmaps=(b"\x04", b"\x05", b"\x06"),
    )
    result = core.GroupResult("g", (), (core.ComponentResult("decoder", 2, 9, (full,)),), (), 0, 0)
    (message,) = responses.group_result(result, DESCRIPTION).components[0].thresholds
    assert len(message.ListFields()) == len(message.DESCRIPTOR.fields)
    assert message.contribution.leading == result_pb2.LeadingNeurons(
        count=2, neurons=range(10, 22), values=[10.5 + n for n in range(12)], codes=bytes(n % 4 for n in range(12))
    )
    assert list(message.contribution.top_bitmaps) == [b"\x07", b"\x08", b"\x09"]
    assert message.effective_score == result_pb2.EffectiveScoreResult(
        maxima=range(1, 25),
        minima=range(2, 26),
        sums=range(3, 27),
        leading=result_pb2.LeadingNeurons(
            count=3, neurons=range(30, 48), values=[30.5 + n for n in range(18)], codes=bytes(n % 4 for n in range(18))
        ),
    )
    assert list(message.dead_counts) == list(range(6))
    assert list(message.dead_bitmaps) == [b"\x04", b"\x05", b"\x06"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_captured_layer_is_a_tensor_of_little_endian_numbers(dtype: type[np.floating]) -> None:
    values = np.array([[1, -2, 0.5], [0, 3, 4]], dtype=dtype)
    for byte_order in "<>":
        layer = core.CapturedLayer(3, np.array([0, 5]), values.astype(values.dtype.newbyteorder(byte_order)))
        message = responses.captured_layer(layer, responses.provenance(DESCRIPTION))
        assert (message.layer, list(message.positions)) == (3, [0, 5])
        assert message.provenance.model == "tiny"
        box = message.values
        assert (list(box.shape), box.dtype) == ([2, 3], np.dtype(dtype).name)
        little_endian = np.dtype(dtype).newbyteorder("<")
        assert (np.frombuffer(box.data, little_endian).reshape(box.shape) == values).all()
    assert not responses.captured_layer(layer).HasField("provenance")


def test_a_generated_token() -> None:
    message = responses.generated_token(core.GeneratedToken(7, " x", -0.5))
    assert message == service_pb2.GenerateResponse(token_id=7, text=" x", log_probability=-0.5)
    first = responses.generated_token(core.GeneratedToken(7, " x", -0.5), responses.provenance(DESCRIPTION))
    assert first.provenance.bundle_identity == DESCRIPTION.bundle_identity


def test_a_result_keeps_its_arrays_row_major_and_has_its_provenance() -> None:
    contribution = core.ContributionResult(
        2, np.arange(24).reshape(3, 2, 4), np.linspace(0, 1, 24, dtype=np.float32).reshape(3, 2, 4)
    )
    result = core.GroupResult(
        group_id="g",
        rows=(core.RowResult("en", 5, 9, (1, 2), True), core.RowResult("th", 6, 8, (), False)),
        components=(core.ComponentResult("decoder", 2, 9, (threshold(3, contribution), threshold(1))),),
        variants=(
            core.VariantResult(
                "baseline",
                (
                    core.RowPrediction("", True, -0.5, (4,), "París", True, True, 0, 0),
                    core.RowPrediction(exact=False, matches=False, choice_log_probabilities=(-1.0, -2.0)),
                    core.RowPrediction(error="overflow", selected_neurons=2, selected_active_neurons=1),
                ),
            ),
        ),
        queue_time_ms=1.5,
        compute_time_ms=2.5,
    )
    message = responses.group_result(result, DESCRIPTION)
    assert message.group_id == "g"
    assert list(message.rows) == [
        result_pb2.RowResult(label="en", prompt_tokens=5, last_token_id=9, gold_token_ids=[1, 2], gold_is_joint=True),
        result_pb2.RowResult(label="th", prompt_tokens=6, last_token_id=8),
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
    for absent in ("contribution", "effective_score"):
        assert not second.HasField(absent)
    assert not second.dead_counts
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
    assert list(wrong.choice_log_probabilities) == [-1.0, -2.0]
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
    # Every provenance field of the contract is set.
    assert len(message.provenance.ListFields()) == len(message.provenance.DESCRIPTOR.fields)
