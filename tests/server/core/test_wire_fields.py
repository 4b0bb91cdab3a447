"""Counting the fields of a serialised message agrees with protobuf."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from google.protobuf.message import Message

from neuroglot_server.core.wire_fields import count_fields
from tests.checkpoints import RandomModel


def counted(message: Message) -> int:
    """The fields of a parsed message that has no packed numbers."""
    count = 0
    for _, value in message.ListFields():
        values = [value] if isinstance(value, str | bytes | int | float | Message) else list(value)
        count += len(values) + sum(counted(part) for part in values if isinstance(part, Message))
    return count


@pytest.mark.parametrize("family", ["bloom", "mt0"])
def test_the_fields_of_a_graph_are_counted(family: str, random_model: Callable[[str], RandomModel]) -> None:
    content = (random_model(family).bundle / "decoder.onnx").read_bytes()
    expected = counted(onnx.ModelProto.FromString(content))
    assert count_fields(content, onnx.ModelProto.DESCRIPTOR, 2**20) == expected
    assert count_fields(content, onnx.ModelProto.DESCRIPTOR, 100) == 101


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 20,
        b"\x3a\x05\x0a",
        b"\x0b\x0c",
        b"\x09\x00",
        b"\x3a\x03\x0a\x05\x00",
        b"\x08",
        b"\x3a\xff\xff\xff\xff",
    ],
)
def test_malformed_messages_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|number"):
        count_fields(content, onnx.ModelProto.DESCRIPTOR, 2**20)
