"""Parses request bytes and refuses what protobuf would accept.

Sizes are bounded first. The number of fields and the length of packed lists are checked on the raw bytes: an empty
message takes two bytes on the wire and more than a hundred once parsed. The length of other lists and of texts is
checked before their content.

Protobuf ignores unknown fields, keeps enum numbers without a name, and accepts a oneof without a set field. Each could
turn a newer client's intervention into the baseline, so each is a violation here. The core checks the values
themselves, such as whether a layer exists.
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
"""Required submessages, by message type."""

_ENUMS_WITH_DEFAULT = frozenset(
    enum.DESCRIPTOR.full_name for enum in (analysis_pb2.Scope, analysis_pb2.ScoreTarget, service_pb2.Priority)
)
"""Enums whose `_UNSPECIFIED` stands for a default in the contract."""


_MAX_ENTRIES = {
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
"""Maximum number of entries of each list in a request."""

_MAX_BYTES = {
    "neuroglot.v1.TokenizeRequest.texts": limits.TEXTS_BYTES,
    "neuroglot.v1.Row.text": limits.MESSAGE_BYTES,  # each model has its own limit
    "neuroglot.v1.Row.answers": limits.ANSWER_BYTES,
    "neuroglot.v1.Row.choices": limits.ANSWER_BYTES,
    "neuroglot.v1.Row.distractor": limits.ANSWER_BYTES,
}
"""Maximum size of each text in a request, in bytes of UTF-8; other texts are names, with `limits.NAME_BYTES`."""

_VARINT, _FIXED_64, _DELIMITED, _FIXED_32 = 0, 1, 2, 5
"""Wire types of fields; the contract has none of proto2's groups."""


def parse(kind: type[_Request], raw: bytes) -> _Request:
    """Parse a request.

    Raises:
        InvalidRequest: the bytes are not a valid message of this type, or have too many fields.
    """
    try:
        _require_few_fields(cast(Descriptor, kind.DESCRIPTOR), raw)
        return kind.FromString(raw)
    except (DecodeError, IndexError):
        name = kind.DESCRIPTOR.full_name
        wrong = f"is {len(raw)} bytes that do not parse as {name}: generate the client from the contract"
        raise InvalidRequest([Violation("request", wrong)]) from None


def _require_few_fields(kind: Descriptor, raw: bytes) -> None:
    """Count the fields of a serialized message and of its submessages, and measure its packed lists.

    Raises:
        InvalidRequest: there are too many fields, a packed list is too long, or messages are nested too deeply.
        DecodeError: the bytes are not a message.
        IndexError: the bytes end within a field.
    """
    outer: list[tuple[int, Mapping[int, _Delimited], str]] = []
    offset, end, delimited, path = 0, len(raw), _delimited_in(kind), ""
    fields = 0
    while True:
        while offset >= end:
            if offset > end:
                raise DecodeError
            if not outer:
                return
            end, delimited, path = outer.pop()
        fields += 1
        if fields > limits.FIELDS:
            wrong = f"has more than {limits.FIELDS} fields, expected at most that many: split the request"
            raise InvalidRequest([Violation("request", wrong)])
        tag, offset = _varint(raw, offset)
        wire_type = tag & 7
        if wire_type == _DELIMITED:
            length, offset = _varint(raw, offset)
            field = delimited.get(tag >> 3)
            if field is None:
                offset += length
                continue
            if field.message is None:
                if length > field.bytes:
                    wrong = f"has {length} bytes of numbers, expected at most {field.bytes}: send fewer"
                    raise InvalidRequest([Violation(path + field.name, wrong)])
                offset += length
                continue
            if len(outer) >= limits.DEPTH:
                wrong = f"nests messages more than {limits.DEPTH} deep, expected at most that: simplify the request"
                raise InvalidRequest([Violation("request", wrong)])
            outer.append((end, delimited, path))
            if offset + length > end:
                raise DecodeError
            end, delimited, path = offset + length, _delimited_in(field.message), f"{path}{field.name}."
        elif wire_type == _VARINT:
            _, offset = _varint(raw, offset)
        elif wire_type == _FIXED_32:
            offset += 4
        elif wire_type == _FIXED_64:
            offset += 8
        else:
            raise DecodeError


def _varint(raw: bytes, offset: int) -> tuple[int, int]:
    """Decode the varint at an offset; return it and the offset after it."""
    byte = raw[offset]
    if byte < 0x80:
        return byte, offset + 1
    number, shift = byte & 0x7F, 7
    while byte >= 0x80:
        offset += 1
        byte = raw[offset]
        number |= (byte & 0x7F) << shift
        shift += 7
        if shift > 7 * _MAX_VARINT_BYTES:
            raise DecodeError
    return number, offset + 1


_MAX_VARINT_BYTES, _FLOAT_BYTES = 10, 4


class _Delimited(NamedTuple):
    """A length-delimited field: messages, or a packed list of numbers.

    Attributes:
        name: name of the field.
        message: type of its messages; None for numbers.
        bytes: maximum size of the packed list.
    """

    name: str
    message: Descriptor | None
    bytes: int = 0


@cache
def _delimited_in(kind: Descriptor) -> Mapping[int, _Delimited]:
    """Return the fields of a message type that hold messages or packed numbers, by field number."""
    found = {}
    for field in kind.fields:
        if field.message_type is not None:
            found[field.number] = _Delimited(field.name, field.message_type)
        elif field.is_repeated and field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            size = _FLOAT_BYTES if field.type == FieldDescriptor.TYPE_FLOAT else _MAX_VARINT_BYTES
            found[field.number] = _Delimited(field.name, None, size * _entries(field))
    return found


def _entries(field: FieldDescriptor) -> int:
    """Return the maximum number of entries of a list."""
    return _MAX_ENTRIES.get(field.full_name, limits.FIELDS)


def check(request: Message) -> None:
    """Check a message and its submessages: sizes, unknown fields, unknown or unspecified enum values, unset oneofs.

    Raises:
        InvalidRequest: names every invalid field, up to a limit.
    """
    refuse(_in_message(request))


def _in_message(message: Message) -> Iterator[Violation]:
    """Find the violations in a message and its submessages."""
    rules = _rules(cast(Descriptor, message.DESCRIPTOR))  # the stubs also allow another implementation of the class
    too_long = [wrong for bounded in rules.bounded for wrong in _too_long(bounded, getattr(message, bounded.name))]
    if too_long:
        yield from too_long
        return
    unknown = UnknownFieldSet(message)
    for index in range(len(unknown)):
        wrong = f"is no field of {rules.message} on this server: leave it out, or use a server that supports it"
        yield Violation(str(unknown[index].field_number), wrong)
    for name, choices in rules.oneofs:
        if message.WhichOneof(name) is None:
            yield Violation(name, f"is not set, expected one of {choices}")
    for name in rules.must_be_set:
        if not message.HasField(name):
            yield Violation(name, "is not set, and there is no default")
    for name, has_presence, enum in rules.nested:
        if has_presence and not message.HasField(name):
            continue
        value = getattr(message, name)
        if enum is not None:
            yield from _in_enum(enum, value, name)
        elif isinstance(value, Message):
            for field, wrong in _in_message(value):
                yield Violation(f"{name}.{field}", wrong)
        else:
            for key, item in _messages(value):
                for field, wrong in _in_message(item):
                    yield Violation(f"{name}[{key}].{field}", wrong)


def _messages(value: Iterable[Message]) -> Iterable[tuple[str | int, Message]]:
    """Return the messages in a repeated or map field, each with its index or key in the path: `2`, or `"en"`."""
    if isinstance(value, Mapping):
        return [(f'"{key}"', item) for key, item in value.items() if isinstance(item, Message)]
    return enumerate(value)


class _Bounded(NamedTuple):
    """A field with a maximum size: a list, a text or a list of texts.

    Attributes:
        name: name of the field.
        entries: maximum number of entries; None for a single text.
        bytes: maximum size of each text; None for a list of other values.
    """

    name: str
    entries: int | None
    bytes: int | None


def _too_long(bounded: _Bounded, value: str | Sequence[str]) -> Iterator[Violation]:
    """Find the violations of a field's maximum size."""
    if bounded.entries is None:
        texts = [(bounded.name, cast(str, value))]
    elif len(value) > bounded.entries:
        yield Violation(bounded.name, f"has {len(value)} entries, expected at most {bounded.entries}: send fewer")
        return
    elif bounded.bytes is not None:
        texts = [(f"{bounded.name}[{index}]", text) for index, text in enumerate(value)]
    else:
        return
    for field, text in texts:
        # UTF-8 has at most four bytes per character, so that most texts need not be encoded to know that they fit.
        if bounded.bytes is not None and 4 * len(text) > bounded.bytes and len(text.encode()) > bounded.bytes:
            yield Violation(field, f"has {len(text.encode())} bytes, expected at most {bounded.bytes}: shorten it")


class _Field(NamedTuple):
    """A field of enum values or messages.

    Attributes:
        name: name of the field.
        has_presence: whether an unset field is distinct from its default.
        enum: type of its enum values; None for messages.
    """

    name: str
    has_presence: bool
    enum: EnumDescriptor | None


class _Rules(NamedTuple):
    """Checks for all messages of a type.

    Attributes:
        message: full name of the type.
        bounded: lists and texts with a maximum size.
        oneofs: oneofs, each with the names of its fields; one of them must be set.
        must_be_set: other required fields.
        nested: fields of enum values or messages.
    """

    message: str
    bounded: Sequence[_Bounded]
    oneofs: Sequence[tuple[str, str]]
    must_be_set: Sequence[str]
    nested: Sequence[_Field]


@cache
def _rules(kind: Descriptor) -> _Rules:
    """Return the checks for a message type, cached: reading descriptors takes longer than the checks themselves."""
    return _Rules(
        message=kind.full_name,
        bounded=[
            _Bounded(
                field.name,
                _entries(field) if field.is_repeated else None,
                _MAX_BYTES.get(field.full_name, limits.NAME_BYTES)
                if field.type == FieldDescriptor.TYPE_STRING
                else None,
            )
            for field in kind.fields
            if field.is_repeated or field.type == FieldDescriptor.TYPE_STRING
        ],
        # Protobuf represents an `optional` field as a oneof whose name starts with an underscore.
        oneofs=[
            (oneof.name, ", ".join(field.name for field in oneof.fields))
            for oneof in kind.oneofs
            if not oneof.name.startswith("_")
        ],
        must_be_set=_MUST_BE_SET.get(kind.full_name, ()),
        nested=[
            _Field(field.name, field.has_presence, field.enum_type)
            for field in kind.fields
            if field.enum_type is not None or field.message_type is not None
        ],
    )


@cache
def _allowed(enum: EnumDescriptor) -> Sequence[int]:
    """Return the valid numbers of an enum."""
    return [number for number in enum.values_by_number if number != 0 or enum.full_name in _ENUMS_WITH_DEFAULT]


def _in_enum(enum: EnumDescriptor, value: int | Iterable[int], path: str) -> Iterator[Violation]:
    """Find the invalid numbers in an enum field."""
    allowed = _allowed(enum)
    numbers = [("", value)] if isinstance(value, int) else ((f"[{i}]", number) for i, number in enumerate(value))
    for index, number in numbers:
        if number not in allowed:
            names = ", ".join(f"{enum.values_by_number[known].name} = {known}" for known in allowed)
            yield Violation(f"{path}{index}", f"is {number}, expected one of {names}")
