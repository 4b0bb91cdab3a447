"""Requests that try to cost more than they are charged; each must be refused, or charged for its cost.

`HOSTILE` is open for additions: a test sends each repeatedly while it measures the latency of health checks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2
from tests.server.live import NAME, PROMPTS

_MIB = 2**20
_MAX_DEPTH = 5
"""Maximum depth of submessages in `generated`."""


class Hostile(NamedTuple):
    """A hostile request.

    Attributes:
        name: id of the test.
        method: method of the service.
        raw: builds its bytes.
        field: the violated field that it is refused for; empty where it is answered, or refused for another reason.
    """

    name: str
    method: str
    raw: Callable[[], bytes]
    field: str = ""


def delimited(field: int, content: bytes) -> bytes:
    """Serialize a length-delimited field: a message, a text or a packed list."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _analysis(intervention: bytes) -> bytes:
    """Serialize an AnalyzeGroupRequest with one variant of one intervention."""
    return _request() + delimited(3, delimited(5, b"") + delimited(6, delimited(1, b"v") + delimited(2, intervention)))


def _request(**row: object) -> bytes:
    rows = [group_pb2.Row(**{"label": label, "text": text, **row}) for label, text in PROMPTS.items()]
    return service_pb2.AnalyzeGroupRequest(model=NAME, group={"id": "h", "rows": rows}).SerializeToString()


def _many_choices(rows: int, choices: int) -> bytes:
    """Prompts of 900 tokens, each tokenized again with every choice."""
    texts = [f"{number}" for number in range(choices)]
    group = group_pb2.Group(
        id="h", rows=[group_pb2.Row(label=f"l{row}", text="a " * 450, choices=texts) for row in range(rows)]
    )
    return service_pb2.AnalyzeGroupRequest(model=NAME, group=group, analysis={"prediction": {}}).SerializeToString()


def _of(message: Message) -> Callable[[], bytes]:
    return message.SerializeToString


def _tokenize(*texts: str) -> Callable[[], bytes]:
    return lambda: service_pb2.TokenizeRequest(model=NAME, texts=texts).SerializeToString()


def _nested(depth: int) -> bytes:
    selection = analysis_pb2.Selection(types={"types": [analysis_pb2.NEURON_TYPE_SPECIFIC]}).SerializeToString()
    for _ in range(depth):
        selection = delimited(4, delimited(1, selection))
    return _analysis(delimited(1, selection) + delimited(2, b""))


def _controls(rows: int) -> bytes:
    """511 controls of equal mass in one selection, for a group of `rows` rows."""
    shared = analysis_pb2.Selection(types={"types": [analysis_pb2.NEURON_TYPE_ALL_SHARED]})
    mass = analysis_pb2.CONTROL_KIND_RANDOM_MASS
    controls = [analysis_pb2.Selection(control={"of": shared, "kind": mass, "draw": draw}) for draw in range(511)]
    union = analysis_pb2.Selection(union={"selections": controls})
    variant = analysis_pb2.Variant(name="v", interventions=[{"selection": union, "deactivate": {}}])
    group = group_pb2.Group(id="h", rows=[group_pb2.Row(label=f"l{row}", text="a b c") for row in range(rows)])
    analysis = analysis_pb2.Analysis(variants=[variant], prediction={})
    return service_pb2.AnalyzeGroupRequest(model=NAME, group=group, analysis=analysis).SerializeToString()


def _bytes_of(text: str, size: int) -> str:
    return text * (size // len(text.encode()))


_RANDOM = "".join(random.Random(5).choices([chr(code) for code in range(1, 0x3000)], k=20_000))
_MODEL = service_pb2.TokenizeRequest(model=NAME).SerializeToString()

HOSTILE = [
    Hostile("tokenize 3 MiB", "Tokenize", _tokenize("a" * (3 * _MIB)), "texts[0]"),
    Hostile("tokenize 60 KiB of one letter", "Tokenize", _tokenize("a" * 60_000)),
    Hostile("tokenize 60 KiB of marks", "Tokenize", _tokenize(_bytes_of("\u0301", 60_000))),
    Hostile("tokenize 40 KiB of anything", "Tokenize", _tokenize(_RANDOM)),
    Hostile("tokenize 4 x 60 KiB", "Tokenize", _tokenize(*["b" * 60_000] * 4), "texts"),
    Hostile("tokenize 2 million empty texts", "Tokenize", lambda: _MODEL + b"\x12\x00" * (2 * _MIB - 100), "request"),
    Hostile("tokenize 8,000 empty texts", "Tokenize", lambda: _MODEL + b"\x12\x00" * 8000, "texts"),
    Hostile("tokenize 1,000 empty texts", "Tokenize", lambda: _MODEL + b"\x12\x00" * 1000),
    Hostile("a prompt of 1 MiB", "AnalyzeGroup", lambda: _request(text="word " * 200_000), "group.rows[0].text"),
    Hostile("prompts of 20 KiB", "AnalyzeGroup", lambda: _request(text="word " * 4000), "group.rows[0].text"),
    Hostile(
        "answers of 1 MiB of dots", "AnalyzeGroup", lambda: _request(answers=["." * _MIB]), "group.rows[0].answers[0]"
    ),
    Hostile(
        "answers of 4 KiB of dots", "AnalyzeGroup", lambda: _request(answers=["." * 4000]), "group.rows[0].answers[0]"
    ),
    Hostile("256 choices after 30 long prompts", "AnalyzeGroup", lambda: _many_choices(30, 256), "group"),
    Hostile("64 choices after long prompts", "AnalyzeGroup", lambda: _many_choices(3, 64)),
    Hostile(
        "a million empty variants",
        "AnalyzeGroup",
        lambda: _request() + delimited(3, delimited(6, b"") * (_MIB)),
        "request",
    ),
    Hostile(
        "8,000 empty variants",
        "AnalyzeGroup",
        lambda: _request() + delimited(3, delimited(6, b"") * 8000),
        "analysis.variants",
    ),
    Hostile(
        "2 million rows",
        "AnalyzeGroup",
        lambda: _request() + delimited(2, delimited(2, b"") * (2 * _MIB - 100)),
        "request",
    ),
    Hostile("8,000 rows", "AnalyzeGroup", lambda: _request() + delimited(2, delimited(2, b"") * 8000), "group.rows"),
    Hostile(
        "4 million enum values",
        "AnalyzeGroup",
        lambda: _analysis(delimited(1, delimited(1, delimited(1, b"\x01" * (4 * _MIB - 500)))) + delimited(2, b"")),
        "analysis.variants.interventions.selection.types.types",
    ),
    Hostile(
        "a million override values",
        "AnalyzeGroup",
        lambda: _analysis(
            delimited(1, delimited(1, delimited(1, b"\x01"))) + delimited(4, delimited(2, bytes(4 * _MIB - 500)))
        ),
        "analysis.variants.interventions.override.values",
    ),
    Hostile(
        "half a million override values",
        "AnalyzeGroup",
        lambda: _analysis(
            delimited(1, delimited(1, delimited(1, b"\x01"))) + delimited(4, delimited(2, bytes(2 * _MIB - 500)))
        ),
        "analysis.variants[0].interventions[0].override.values",
    ),
    Hostile(
        "4 million token ids",
        "AnalyzeGroup",
        lambda: _request() + delimited(2, delimited(2, delimited(3, delimited(1, b"\x01" * (4 * _MIB - 500))))),
        "group.rows.token_ids.ids",
    ),
    Hostile(
        "60,000 token ids",
        "AnalyzeGroup",
        lambda: _request() + delimited(2, delimited(2, b"\x0a\x01x" + delimited(3, delimited(1, b"\x01" * 60_000)))),
        "group.rows[3].token_ids.ids",
    ),
    Hostile("8,000 unknown fields", "AnalyzeGroup", lambda: _request() + b"\x98\x06\x00" * 8000, "99"),
    Hostile("a million analyses", "AnalyzeGroup", lambda: _request() + delimited(3, b"") * _MIB, "request"),
    Hostile("selections 20 deep", "AnalyzeGroup", lambda: _nested(20), "analysis.variants"),
    Hostile("selections 40 deep", "AnalyzeGroup", lambda: _nested(40), "request"),
    Hostile("511 controls", "AnalyzeGroup", lambda: _controls(2)),
    Hostile("511 controls of 15 rows", "AnalyzeGroup", lambda: _controls(15)),
    Hostile(
        "a million layers",
        "CaptureActivations",
        _of(service_pb2.CaptureActivationsRequest(model=NAME, row={"text": "x"}, layers=[1] * _MIB)),
        "layers",
    ),
    Hostile("a number without an end", "AnalyzeGroup", lambda: _request() + b"\x80" * (3 * _MIB), "request"),
]


def generated() -> Iterator[Hostile]:
    """For every method and every list in its request, at any depth: requests with a short and with too long a list."""
    for method in service_pb2.DESCRIPTOR.services_by_name["NeuroglotService"].methods:
        if method.name in ("LoadModel", "UnloadModel", "AnalyzeGroups"):
            continue
        model = delimited(1, NAME.encode())
        for name, field, around in _lists(method.input_type, "", []):
            entry = delimited(field.number, b"")
            for count in (50, 4000, _MIB):
                if field.message_type is None and field.type != field.TYPE_STRING:
                    content = delimited(field.number, bytes(count))
                else:
                    content = entry * count
                for number in reversed(around):
                    content = delimited(number, content)
                yield Hostile(f"{method.name} {name} x {count}", method.name, lambda raw=model + content: raw)


def _lists(kind: Descriptor, path: str, around: list[int]) -> Iterator[tuple[str, FieldDescriptor, list[int]]]:
    """Yield the lists in a message type, each with the numbers of its enclosing fields."""
    for field in kind.fields:
        if field.is_repeated:
            yield path + field.name, field, around
        if field.message_type is not None and len(around) < _MAX_DEPTH:
            yield from _lists(field.message_type, f"{path}{field.name}.", [*around, field.number])
