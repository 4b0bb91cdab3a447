"""Reads a request from the wire and refuses what protobuf would let pass.

A request is bounded before anything is made of it. How many fields it has, and how long its lists of numbers are, is
seen on the wire: two bytes of an empty message become a hundred and more once they are parsed. How many entries other
lists have, and how long texts are, is asked before they are looked into.

Protobuf drops fields that it does not know, keeps enum numbers that it has no name for, and accepts a oneof in which
nothing is set. Each could turn a newer client's intervention into the baseline, so each is a violation here. What the
values mean (is there such a layer?) is for the core to check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple, TypeVar, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from neuroglot.errors import Violation
from neuroglot.v1 import analysis_pb2, service_pb2
from neuroglot_server.core import InvalidRequest, limits
from neuroglot_server.intake.validation import refuse

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


_MOST_ENTRIES = {
    "neuroglot.v1.TokenizeRequest.texts": limits.TEXTS,
    "neuroglot.v1.CaptureActivationsRequest.layers": limits.LAYERS,
    "neuroglot.v1.CaptureActivationsRequest.neurons": limits.NEURONS,
    "neuroglot.v1.CaptureActivationsRequest.positions": limits.POSITIONS,
    "neuroglot.v1.GenerateRequest.interventions": limits.SELECTIONS,
    "neuroglot.v1.Group.rows": limits.ROWS,
    "neuroglot.v1.Row.answers": limits.ANSWERS,
    "neuroglot.v1.Row.choices": limits.CHOICES,
    "neuroglot.v1.TokenIds.ids": limits.TOKEN_IDS,
    "neuroglot.v1.Analysis.thresholds": limits.THRESHOLDS,
    "neuroglot.v1.Analysis.variants": limits.VARIANTS,
    "neuroglot.v1.Variant.interventions": limits.SELECTIONS,
    "neuroglot.v1.Intervention.layers": limits.LAYERS,
    "neuroglot.v1.Override.values": limits.VALUES,
    "neuroglot.v1.Scale.values": limits.VALUES,
    "neuroglot.v1.Add.values": limits.VALUES,
    "neuroglot.v1.TypeSelection.types": limits.TYPES,
    "neuroglot.v1.SelectionList.selections": limits.SELECTIONS,
}
"""How long the lists of requests may be; each has its bound here."""

_MOST_BYTES = {
    "neuroglot.v1.TokenizeRequest.texts": limits.TEXTS_BYTES,
    "neuroglot.v1.Row.text": limits.MESSAGE_BYTES,  # a model bounds it
    "neuroglot.v1.Row.answers": limits.ANSWER_BYTES,
    "neuroglot.v1.Row.choices": limits.ANSWER_BYTES,
    "neuroglot.v1.Row.distractor": limits.ANSWER_BYTES,
}
"""How long texts of requests may be that are no names, in bytes."""

_VARINT, _FIXED_64, _DELIMITED, _FIXED_32 = 0, 1, 2, 5
"""Types of a field on the wire; groups, of the second version of protobuf, are not in the contract."""


def parse(kind: type[_Request], raw: bytes) -> _Request:
    """Parse a request.

    Raises:
        InvalidRequest: the bytes are no message of this kind, or one of too many fields.
    """
    try:
        _require_few_fields(cast(Descriptor, kind.DESCRIPTOR), raw)
        return kind.FromString(raw)
    except (DecodeError, IndexError):
        wrong = f"is {len(raw)} bytes that are no {kind.DESCRIPTOR.full_name}: generate the client from the contract"
        raise InvalidRequest([Violation("request", wrong)]) from None


def _require_few_fields(kind: Descriptor, raw: bytes) -> None:
    """Count the fields of a message as it came, and of those inside of it, and measure its packed lists.

    Raises:
        InvalidRequest: there are too many, a list is far too long, or they are too deep inside of each other.
        DecodeError: the bytes are no message.
        IndexError: they end too early.
    """
    outer: list[tuple[int, Mapping[int, _Delimited], str]] = []
    place, end, inside, path = 0, len(raw), _delimited_in(kind), ""
    fields = 0
    while True:
        while place >= end:
            if place > end:
                raise DecodeError
            if not outer:
                return
            end, inside, path = outer.pop()
        fields += 1
        if fields > limits.FIELDS:
            wrong = f"has more than {limits.FIELDS} fields, expected at most that many: send less of it at once"
            raise InvalidRequest([Violation("request", wrong)])
        tag, place = _varint(raw, place)
        wire_type = tag & 7
        if wire_type == _DELIMITED:
            length, place = _varint(raw, place)
            within = inside.get(tag >> 3)
            if within is None:
                place += length
                continue
            if within.message is None:
                if length > within.bytes:
                    wrong = f"has {length} bytes of numbers, expected at most {within.bytes}: send fewer"
                    raise InvalidRequest([Violation(path + within.name, wrong)])
                place += length
                continue
            if len(outer) >= limits.DEPTH:
                wrong = f"has messages inside of messages more than {limits.DEPTH} deep, expected at most that"
                raise InvalidRequest([Violation("request", wrong)])
            outer.append((end, inside, path))
            if place + length > end:
                raise DecodeError
            end, inside, path = place + length, _delimited_in(within.message), f"{path}{within.name}."
        elif wire_type == _VARINT:
            _, place = _varint(raw, place)
        elif wire_type == _FIXED_32:
            place += 4
        elif wire_type == _FIXED_64:
            place += 8
        else:
            raise DecodeError


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    """A number that takes as many bytes as it needs, and where it ends."""
    byte = raw[place]
    if byte < 0x80:
        return byte, place + 1
    number, shift = byte & 0x7F, 7
    while byte >= 0x80:
        place += 1
        byte = raw[place]
        number |= (byte & 0x7F) << shift
        shift += 7
        if shift > 7 * _LONGEST_VARINT_BYTES:
            raise DecodeError
    return number, place + 1


_LONGEST_VARINT_BYTES, _FLOAT_BYTES = 10, 4


class _Delimited(NamedTuple):
    """A field that holds messages, or a packed list of numbers.

    Attributes:
        name: its name.
        message: which messages it holds; None where it holds numbers.
        bytes: how long the packed list may be.
    """

    name: str
    message: Descriptor | None
    bytes: int = 0


@cache
def _delimited_in(kind: Descriptor) -> Mapping[int, _Delimited]:
    """The fields of a message that hold messages or packed numbers, by their numbers on the wire."""
    found = {}
    for field in kind.fields:
        if field.message_type is not None:
            found[field.number] = _Delimited(field.name, field.message_type)
        elif field.is_repeated and field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            size = _FLOAT_BYTES if field.type == FieldDescriptor.TYPE_FLOAT else _LONGEST_VARINT_BYTES
            found[field.number] = _Delimited(field.name, None, size * _entries(field))
    return found


def _entries(field: FieldDescriptor) -> int:
    """How many entries a list may have."""
    return _MOST_ENTRIES.get(field.full_name, limits.FIELDS)


def check(request: Message) -> None:
    """Refuse, at any depth, what is too long, unknown fields, unknown or unspecified enum values and unset oneofs.

    Raises:
        InvalidRequest: names every field that is wrong, up to a limit.
    """
    refuse(_in_message(request))


def _in_message(message: Message) -> Iterator[Violation]:
    """What is wrong in a message and in those inside of it."""
    rules = _rules(cast(Descriptor, message.DESCRIPTOR))  # the stubs allow for another implementation of the class
    too_long = [wrong for bounded in rules.bounded for wrong in _too_long(bounded, getattr(message, bounded.name))]
    if too_long:
        yield from too_long
        return
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


class _Bounded(NamedTuple):
    """A field that is a list, a text or both.

    Attributes:
        name: its name.
        entries: how many it may have; None where it is no list.
        bytes: how long a text of it may be; None where it has none.
    """

    name: str
    entries: int | None
    bytes: int | None


def _too_long(bounded: _Bounded, value: str | Sequence[str]) -> Iterator[Violation]:
    """A list of too many entries, or texts that are too long."""
    if bounded.entries is None:
        texts = [(bounded.name, cast(str, value))]
    elif len(value) > bounded.entries:
        yield Violation(bounded.name, f"has {len(value)} entries, expected at most {bounded.entries}: send fewer")
        return
    elif bounded.bytes is not None:
        texts = [(f"{bounded.name}[{place}]", text) for place, text in enumerate(value)]
    else:
        return
    for field, text in texts:
        # At most four bytes a character: most texts need not be encoded to know that they are short.
        if bounded.bytes is not None and 4 * len(text) > bounded.bytes and len(text.encode()) > bounded.bytes:
            yield Violation(field, f"has {len(text.encode())} bytes, expected at most {bounded.bytes}: shorten it")


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
        bounded: its lists and texts.
        oneofs: those of which a field must be set, each with the names of its fields.
        must_be_set: other fields that must be.
        looked_into: fields that hold enums or messages.
    """

    message: str
    bounded: Sequence[_Bounded]
    oneofs: Sequence[tuple[str, str]]
    must_be_set: Sequence[str]
    looked_into: Sequence[_Field]


@cache
def _rules(kind: Descriptor) -> _Rules:
    """Worked out once for each kind of message: asking a descriptor takes longer than all else here."""
    return _Rules(
        message=kind.full_name,
        bounded=[
            _Bounded(
                field.name,
                _entries(field) if field.is_repeated else None,
                _MOST_BYTES.get(field.full_name, limits.NAME_BYTES)
                if field.type == FieldDescriptor.TYPE_STRING
                else None,
            )
            for field in kind.fields
            if field.is_repeated or field.type == FieldDescriptor.TYPE_STRING
        ],
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
