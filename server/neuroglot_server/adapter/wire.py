"""Reads a request from the wire and refuses what protobuf would let pass.

Protobuf drops fields that it does not know, keeps enum numbers that it has no name for, and accepts a oneof in which
nothing is set. Each could turn a newer client's intervention into the baseline, so each is a violation here. What the
values mean (is there such a layer?) is for the core to check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple, TypeVar, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from neuroglot.errors import Violation
from neuroglot.v1 import analysis_pb2, service_pb2
from neuroglot_server.core import InvalidRequest
from neuroglot_server.validation import refuse

_Request = TypeVar("_Request", bound=Message)

_MUST_BE_SET = {
    analysis_pb2.Intervention.DESCRIPTOR.full_name: ("selection",),
    analysis_pb2.Control.DESCRIPTOR.full_name: ("of",),
    service_pb2.CaptureActivationsRequest.DESCRIPTOR.full_name: ("row",),
    service_pb2.GenerateRequest.DESCRIPTOR.full_name: ("row",),
    service_pb2.UploadNeuronSetRequest.DESCRIPTOR.full_name: ("neurons",),
}
"""Messages inside of messages that have no meaning when left out."""

_ZERO_HAS_A_MEANING = frozenset(
    enum.DESCRIPTOR.full_name for enum in (analysis_pb2.Scope, analysis_pb2.ScoreTarget, service_pb2.Priority)
)
"""Enums whose `_UNSPECIFIED` the contract gives a meaning."""


def parse(kind: type[_Request], raw: bytes) -> _Request:
    """Parse a request.

    Raises:
        InvalidRequest: the bytes are no message of this kind.
    """
    try:
        return kind.FromString(raw)
    except DecodeError:
        wrong = f"is {len(raw)} bytes that are no {kind.DESCRIPTOR.full_name}: generate the client from the contract"
        raise InvalidRequest([Violation("request", wrong)]) from None


def check(request: Message) -> None:
    """Refuse unknown fields, unknown or unspecified enum values and unset oneofs, at any depth.

    Raises:
        InvalidRequest: names every field that is wrong, up to a limit.
    """
    refuse(_in_message(request))


def _in_message(message: Message) -> Iterator[Violation]:
    """What is wrong in a message and in those inside of it."""
    rules = _rules(cast(Descriptor, message.DESCRIPTOR))  # the stubs allow for another implementation of the class
    unknown = UnknownFieldSet(message)
    for index in range(len(unknown)):
        wrong = f"is a field that {rules.message} does not have here: leave it out, or ask a server that knows it"
        yield Violation(str(unknown[index].field_number), wrong)
    for name, choices in rules.oneofs:
        if message.WhichOneof(name) is None:
            yield Violation(name, f"is not set, expected one of {choices}")
    for name in rules.must_be_set:
        if not message.HasField(name):
            yield Violation(name, "is not set, and there is no default")
    for name, has_presence, enum in rules.looked_into:
        if has_presence and not message.HasField(name):
            continue
        value = getattr(message, name)
        if enum is not None:
            yield from _in_enum(enum, value, name)
        elif isinstance(value, Message):
            for field, wrong in _in_message(value):
                yield Violation(f"{name}.{field}", wrong)
        else:
            for place, item in _messages(value):
                for field, wrong in _in_message(item):
                    yield Violation(f"{name}[{place}].{field}", wrong)


def _messages(value: Iterable[Message]) -> Iterable[tuple[str | int, Message]]:
    """The messages that a field holds, each with its place in the field's path: `2`, or `"en"`."""
    if isinstance(value, Mapping):
        return [(f'"{key}"', item) for key, item in value.items() if isinstance(item, Message)]
    return enumerate(value)


class _Field(NamedTuple):
    """A field that holds enums or messages.

    Attributes:
        name: its name.
        has_presence: whether it may be there or not.
        enum: which enum it holds; None where it holds messages.
    """

    name: str
    has_presence: bool
    enum: EnumDescriptor | None


class _Rules(NamedTuple):
    """What is checked of each message of a kind.

    Attributes:
        message: its name.
        oneofs: those of which a field must be set, each with the names of its fields.
        must_be_set: other fields that must be.
        looked_into: fields that hold enums or messages.
    """

    message: str
    oneofs: Sequence[tuple[str, str]]
    must_be_set: Sequence[str]
    looked_into: Sequence[_Field]


@cache
def _rules(kind: Descriptor) -> _Rules:
    """Worked out once for each kind of message: asking a descriptor takes longer than all else here."""
    return _Rules(
        message=kind.full_name,
        # To protobuf a field that is `optional` is a oneof of its own, with a name that starts with an underscore.
        oneofs=[
            (oneof.name, ", ".join(field.name for field in oneof.fields))
            for oneof in kind.oneofs
            if not oneof.name.startswith("_")
        ],
        must_be_set=_MUST_BE_SET.get(kind.full_name, ()),
        looked_into=[
            _Field(field.name, field.has_presence, field.enum_type)
            for field in kind.fields
            if field.enum_type is not None or field.message_type is not None
        ],
    )


@cache
def _allowed(enum: EnumDescriptor) -> Sequence[int]:
    """The numbers of an enum that have a meaning."""
    return [number for number in enum.values_by_number if number != 0 or enum.full_name in _ZERO_HAS_A_MEANING]


def _in_enum(enum: EnumDescriptor, value: int | Iterable[int], path: str) -> Iterator[Violation]:
    """The numbers in an enum field that have no name or no meaning."""
    allowed = _allowed(enum)
    numbers = [("", value)] if isinstance(value, int) else ((f"[{i}]", number) for i, number in enumerate(value))
    for place, number in numbers:
        if number not in allowed:
            names = ", ".join(f"{enum.values_by_number[known].name} = {known}" for known in allowed)
            yield Violation(f"{path}{place}", f"is {number}, expected one of {names}")
