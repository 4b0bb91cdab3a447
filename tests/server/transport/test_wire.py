from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from neuroglot.v1 import analysis_pb2, service_pb2
from neuroglot_server.core import InvalidRequest
from neuroglot_server.intake.validation import MOST_VIOLATIONS
from neuroglot_server.transport.wire import check, parse
from tests.server.live import deactivate, group

UNKNOWN = b"\x88\x7d\x01"  # field 2001, a varint


def request() -> service_pb2.AnalyzeGroupRequest:
    """A request with every message type that the contract allows in one."""
    union = analysis_pb2.Selection()
    for kind in (analysis_pb2.NEURON_TYPE_SPECIFIC, analysis_pb2.NEURON_TYPE_ALL_SHARED):
        union.union.selections.add().types.types.append(kind)
    control = analysis_pb2.Control(of=union, kind=analysis_pb2.CONTROL_KIND_RANDOM_ACTIVE)
    analysis = analysis_pb2.Analysis(
        contribution=analysis_pb2.Contribution(),
        effective_score=analysis_pb2.EffectiveScore(),
        prediction=analysis_pb2.Prediction(),
        variants=[
            analysis_pb2.Variant(
                interventions=[
                    deactivate(analysis_pb2.NEURON_TYPE_ALL_SHARED),
                    analysis_pb2.Intervention(
                        selection=analysis_pb2.Selection(control=control), convert=analysis_pb2.Convert()
                    ),
                ]
            )
        ],
    )
    whole = service_pb2.AnalyzeGroupRequest(model="m", group=group(), analysis=analysis)
    whole.group.rows.add(label="ids").token_ids.ids.append(1)
    return whole


def violations(message: Message) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        check(message)
    return dict(caught.value.violations)


def test_a_complete_request_passes() -> None:
    check(request())
    check(service_pb2.ListModelsRequest())


@pytest.mark.parametrize(
    ("part_of", "field"),
    [
        (lambda r: r, "2001"),
        (lambda r: r.group, "group.2001"),
        (lambda r: r.group.rows[1], "group.rows[1].2001"),
        (lambda r: r.group.rows[3].token_ids, "group.rows[3].token_ids.2001"),
        (lambda r: r.analysis, "analysis.2001"),
        (lambda r: r.analysis.contribution, "analysis.contribution.2001"),
        (lambda r: r.analysis.variants[0].interventions[0], "analysis.variants[0].interventions[0].2001"),
        (
            lambda r: r.analysis.variants[0].interventions[0].deactivate,
            "analysis.variants[0].interventions[0].deactivate.2001",
        ),
        (
            lambda r: r.analysis.variants[0].interventions[1].selection.control.of.union.selections[1].types,
            "analysis.variants[0].interventions[1].selection.control.of.union.selections[1].types.2001",
        ),
    ],
)
def test_an_unknown_field_is_found_at_any_depth(part_of: Callable[[Message], Message], field: str) -> None:
    wrong = request()
    part_of(wrong).MergeFromString(UNKNOWN)
    # As the server receives it.
    assert list(violations(parse(service_pb2.AnalyzeGroupRequest, wrong.SerializeToString()))) == [field]


def test_an_unknown_field_of_an_otherwise_empty_message_is_found() -> None:
    wrong = service_pb2.AnalyzeGroupRequest.FromString(b"\x1a\x03" + UNKNOWN)  # analysis, of three bytes
    assert list(violations(wrong)) == ["analysis.2001"]


def test_an_action_of_a_newer_contract_is_an_unknown_field_and_an_unset_oneof() -> None:
    wrong = request()
    intervention = wrong.analysis.variants[0].interventions[0]
    intervention.ClearField("deactivate")
    intervention.MergeFromString(UNKNOWN)
    path = "analysis.variants[0].interventions[0]"
    found = violations(wrong)
    assert list(found) == [f"{path}.2001", f"{path}.action"]
    assert found[f"{path}.action"] == "is not set, expected one of deactivate, convert, override, scale, add"


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda r: r.group.rows[0].ClearField("text"), "group.rows[0].prompt"),
        (lambda r: r.analysis.variants[0].interventions[1].ClearField("convert"), "interventions[1].action"),
        (lambda r: r.analysis.variants[0].interventions[0].ClearField("selection"), "interventions[0].selection"),
        (lambda r: r.analysis.variants[0].interventions[0].selection.ClearField("types"), "selection.by"),
        (lambda r: r.analysis.variants[0].interventions[1].selection.control.ClearField("of"), "control.of"),
        (lambda r: r.analysis.variants[0].interventions[1].selection.control.ClearField("kind"), "control.kind"),
        (
            lambda r: r.analysis.variants[0].interventions[0].selection.types.types.append(0),
            "selection.types.types[1]",
        ),
        (
            lambda r: r.analysis.variants[0].interventions[0].selection.types.types.extend([1, 5]),
            "selection.types.types[2]",
        ),
        (lambda r: setattr(r.analysis.variants[0].interventions[0], "scope", 5), "interventions[0].scope"),
        (lambda r: setattr(r.analysis.effective_score, "target", 4), "effective_score.target"),
        (lambda r: setattr(r, "priority", 3), "priority"),
        (
            lambda r: setattr(r.analysis.variants[0].interventions[1].selection.control, "kind", -1),
            "control.kind",
        ),
    ],
)
def test_unset_fields_and_unnamed_enum_values_are_refused(spoil: Callable[[Message], None], field: str) -> None:
    wrong = request()
    spoil(wrong)
    (found,) = violations(wrong)
    assert found.endswith(field)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (service_pb2.CaptureActivationsRequest(model="m"), "row"),
        (service_pb2.GenerateRequest(model="m"), "row"),
        (service_pb2.UploadNeuronSetRequest(model="m"), "neurons"),
    ],
)
def test_required_submessages_must_be_set(message: Message, field: str) -> None:
    assert violations(message) == {field: "is not set, and there is no default"}


def test_a_violation_lists_the_allowed_values() -> None:
    wrong = request()
    wrong.analysis.variants[0].interventions[1].selection.control.kind = 7
    (description,) = violations(wrong).values()
    kinds = "CONTROL_KIND_RANDOM = 1, CONTROL_KIND_RANDOM_ACTIVE = 2, CONTROL_KIND_RANDOM_MASS = 3"
    assert description == f"is 7, expected one of {kinds}"


def test_maps_are_checked_too() -> None:
    message = Struct()
    message["deep"] = {"deeper": 1}
    check(message)
    message.fields["deep"].struct_value.fields["deeper"].MergeFromString(UNKNOWN)
    assert list(violations(message)) == ['fields["deep"].struct_value.fields["deeper"].2001']


def test_checking_stops_at_the_maximum_number_of_violations() -> None:
    wrong = service_pb2.AnalyzeGroupRequest()
    for _ in range(10 * MOST_VIOLATIONS):
        wrong.group.rows.add()
    assert len(violations(wrong)) == MOST_VIOLATIONS


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xc3\x28", b"\x12\x7f"])
def test_bytes_that_do_not_parse_are_refused(raw: bytes) -> None:
    message = rf"request: is {len(raw)} bytes that do not parse as neuroglot\.v1\.GetModelReq"
    with pytest.raises(InvalidRequest, match=message):
        parse(service_pb2.GetModelRequest, raw)
