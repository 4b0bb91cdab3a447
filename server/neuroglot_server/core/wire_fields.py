"""Counts the fields of a serialised protobuf message before it is parsed.

A field of two bytes becomes an object of a hundred and more, and parsing holds the interpreter until it is done.
Counting takes no memory, and lets other threads go on.
"""

from __future__ import annotations

from typing import Any

_LONGEST_VARINT = 10
"""In bytes."""


def count_fields(content: bytes, descriptor: Any, limit: int) -> int:
    """How many fields a message has, those of the messages inside it included.

    Args:
        content: the message.
        descriptor: protobuf's, of its type.
        limit: how far to count.

    Returns:
        Their number, or `limit + 1` if there are more.

    Raises:
        ValueError: it is no such message.
    """
    count = 0
    messages: dict[str, dict[int, Any]] = {}
    rest = [(0, len(content), descriptor)]
    while rest:
        place, end, kind = rest.pop()
        if kind.full_name not in messages:
            messages[kind.full_name] = {field.number: field.message_type for field in kind.fields if field.message_type}
        inner = messages[kind.full_name]
        while place < end:
            count += 1
            if count > limit:
                return count
            tag, place = _varint(content, place)
            match tag & 7:
                case 2:  # a length, and so many bytes
                    length, place = _varint(content, place)
                    if tag >> 3 in inner:
                        rest.append((place, place + length, inner[tag >> 3]))
                    place += length
                case 0:  # a varint
                    _, place = _varint(content, place)
                case 1:  # eight bytes
                    place += 8
                case 5:  # four bytes
                    place += 4
                case _:
                    raise ValueError("a field is of no known wire type")
        if place > end:
            raise ValueError("a field goes beyond its message")
    return count


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    if place < len(content) and content[place] < 128:  # as most are
        return content[place], place + 1
    value = 0
    for shift, byte in enumerate(content[place : place + _LONGEST_VARINT]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, place + shift + 1
    raise ValueError("a number does not end")
