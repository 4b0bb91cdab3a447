"""A file of messages: each after its length as a varint, the form that protobuf calls length-prefixed.

Such a file only grows, so a kill can tear no more than its last record. Reading drops a torn one, and `open_to_append`
cuts it off.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from google.protobuf import proto
from google.protobuf.message import DecodeError, Message

from neuroglot.errors import RunError

AnyMessage = TypeVar("AnyMessage", bound=Message)


def read(path: Path, kind: type[AnyMessage]) -> Iterator[AnyMessage]:
    """The whole records of a file, in their order; none where there is no file.

    Raises:
        RunError: a record before the last one is damaged.
    """
    if path.exists():
        with path.open("rb") as file:
            for message, _ in _records(file, kind):
                yield message


def open_to_append(path: Path, kind: type[Message]) -> RawIOBase:
    """The file, made if there is none, ready for `append`: without a torn last record.

    Raises:
        RunError: a record before the last one is damaged.
    """
    path.touch()
    with path.open("rb") as file:
        whole = max((end for _, end in _records(file, kind)), default=0)
    # Unbuffered: what a full disk does not take is not kept back, to be written behind a later record.
    appended = path.open("r+b", buffering=0)
    appended.truncate(whole)
    appended.seek(whole)
    return appended


def append(file: RawIOBase, message: Message) -> None:
    """Write one record and hand it to the operating system, so that it outlives the process.

    Raises:
        OSError: it cannot be written, as on a full disk; the file is as it was before.
    """
    record = BytesIO()
    proto.serialize_length_prefixed(message, record)
    start = file.tell()
    left = record.getbuffer()
    try:
        while left:
            left = left[file.write(left) or 0 :]
    except OSError:
        file.truncate(start)
        file.seek(start)
        raise


def _records(file: BinaryIO, kind: type[AnyMessage]) -> Iterator[tuple[AnyMessage, int]]:
    """Whole records, each with the offset at which it ends."""
    while True:
        start = file.tell()
        try:
            # protobuf's stubs ask for a BytesIO; its function takes any buffered file
            message = proto.parse_length_prefixed(kind, cast("BytesIO", file))
        except (DecodeError, ValueError):
            if file.read(1):  # there is more behind it, so no kill has torn it
                raise RunError(f"{file.name} is damaged at byte {start}: run the analysis again") from None
            return
        if message is None:
            return
        yield message, file.tell()
