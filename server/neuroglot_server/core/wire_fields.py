"""Counts the fields of a serialised protobuf message before it is parsed.

Parsing turns a field of two bytes into an object of more than a hundred, and holds the GIL until it is done. Counting
takes no memory, and lets other threads run.
"""

from __future__ import annotations

from typing import Any

_MAX_VARINT_BYTES = 10


def count_fields(content: bytes, descriptor: Any, limit: int) -> int:
    """Count the fields of a message, including those of nested messages.

    Args:
        content: the serialized message.
        descriptor: protobuf descriptor of its type.
        limit: number of fields at which to stop.

    Returns:
        The number of fields, or `limit + 1` if there are more.

    Raises:
        ValueError: the content is not a valid message.
    """
    count = 0
    messages: dict[str, dict[int, Any]] = {}
    stack = [(0, len(content), descriptor)]
    while stack:
        offset, end, kind = stack.pop()
        if kind.full_name not in messages:
            messages[kind.full_name] = {field.number: field.message_type for field in kind.fields if field.message_type}
        inner = messages[kind.full_name]
        while offset < end:
            count += 1
            if count > limit:
                return count
            tag, offset = _varint(content, offset)
            match tag & 7:
                case 2:  # length-delimited
                    length, offset = _varint(content, offset)
                    if tag >> 3 in inner:
                        stack.append((offset, offset + length, inner[tag >> 3]))
                    offset += length
                case 0:  # a varint
                    _, offset = _varint(content, offset)
                case 1:  # eight bytes
                    offset += 8
                case 5:  # four bytes
                    offset += 4
                case _:
                    raise ValueError("a field is of no known wire type")
        if offset > end:
            raise ValueError("a field goes beyond its message")
    return count


def _varint(content: bytes, offset: int) -> tuple[int, int]:
    """Decode the varint at an offset; return it and the offset after it."""
    if offset < len(content) and content[offset] < 128:  # the usual case
        return content[offset], offset + 1
    value = 0
    for shift, byte in enumerate(content[offset : offset + _MAX_VARINT_BYTES]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, offset + shift + 1
    raise ValueError("a number does not end")
