"""Request limits are checked before parsing, and every limit is in GetModel."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass

from neuroglot.v1 import service_pb2
from neuroglot_server.core import InvalidRequest, limits
from neuroglot_server.transport import wire
from tests.server.hostile_requests import HOSTILE, Hostile, delimited
from tests.server.live import load, said, serving

SERVICE = service_pb2.DESCRIPTOR.services_by_name["NeuroglotService"]


def kinds(kind: Descriptor, seen: set[str]) -> Iterator[Descriptor]:
    """Yield the descriptors of a message and its nested messages, each once."""
    if kind.full_name not in seen:
        seen.add(kind.full_name)
        yield kind
        for field in kind.fields:
            if field.message_type is not None:
                yield from kinds(field.message_type, seen)


def test_every_list_and_every_text_of_a_request_has_a_bound() -> None:
    seen: set[str] = set()
    for method in SERVICE.methods:
        for kind in kinds(method.input_type, seen):
            for field in kind.fields:
                message = GetMessageClass(kind)()
                if field.is_repeated and field.message_type is not None:
                    for _ in range(limits.FIELDS):
                        getattr(message, field.name).add()
                elif field.is_repeated:
                    value = "" if field.type == field.TYPE_STRING else 1
                    getattr(message, field.name).extend([value] * (limits.VALUES + 1))
                elif field.type == field.TYPE_STRING:
                    setattr(message, field.name, "x" * (limits.MESSAGE_BYTES + 1))
                else:
                    continue
                with pytest.raises(InvalidRequest) as caught:
                    wire.check(message)
                assert [wrong.field for wrong in caught.value.violations] == [field.name]
                assert "expected at most" in caught.value.violations[0].description


@pytest.mark.parametrize("count", [limits.FIELDS - 2, limits.FIELDS - 1])
def test_fields_are_counted_at_any_depth_before_they_are_parsed(count: int) -> None:
    raw = delimited(1, b"m") + delimited(3, b"\x10\x01" * count)  # `type_map`, repeatedly
    if 2 + count <= limits.FIELDS:
        assert wire.parse(service_pb2.AnalyzeGroupRequest, raw).analysis.type_map
    else:
        with pytest.raises(InvalidRequest, match=f"more than {limits.FIELDS} fields"):
            wire.parse(service_pb2.AnalyzeGroupRequest, raw)


@pytest.mark.parametrize(
    "raw", [b"\x0b\x0c", b"\x1a\x05\x10", b"\x80" * 20 + b"\x01", b"\x1a\x02\x2a\x05", b"\x0d\x00"]
)
def test_malformed_content_is_refused_by_the_count_as_by_protobuf(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"do not parse as neuroglot\.v1\.AnalyzeGroupRequest"):
        wire.parse(service_pb2.AnalyzeGroupRequest, raw)


@pytest.mark.parametrize("hostile", [one for one in HOSTILE if one.field], ids=lambda one: one.name)
def test_the_violation_names_the_field_that_is_too_large(bloom_bundle: Path, hostile: Hostile) -> None:
    async def ask() -> dict[str, str]:
        async with serving(load(bloom_bundle)) as live:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.channel.unary_stream(f"/neuroglot.v1.NeuroglotService/{hostile.method}")(
                    hostile.raw()
                ).read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            return said(caught.value).violations

    assert hostile.field in asyncio.run(ask())
