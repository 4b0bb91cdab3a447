"""Record files: length-prefixed protobuf messages, each after its length as a varint.

A record file is append-only, so a kill can truncate only its last record. `read` skips a truncated record, and
`open_to_append` cuts it off.
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
    """Yield the complete records of a file in order; none if the file does not exist.

    Raises:
        RunError: a record before the last one is damaged.
    """
    if path.exists():
        with path.open("rb") as file:
            for message, _ in _records(file, kind):
                yield message


def open_to_append(path: Path, kind: type[Message]) -> RawIOBase:
    """Open a record file for `append`; create it if missing, and cut off a truncated last record.

    Raises:
        RunError: a record before the last one is damaged.
    """
    path.touch()
    with path.open("rb") as file:
        whole = max((end for _, end in _records(file, kind)), default=0)
    # Unbuffered: bytes that a full disk rejects must not stay in a buffer and be written after a later record.
    appended = path.open("r+b", buffering=0)
    appended.truncate(whole)
    appended.seek(whole)
    return appended


def append(file: RawIOBase, message: Message) -> None:
    """Write a record and flush it to the operating system, so that it survives the process.

    Raises:
        OSError: the record cannot be written, as on a full disk; the file is unchanged.
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
    """Yield complete records, each with its end offset in bytes."""
    while True:
        start = file.tell()
        try:
            # protobuf's type stubs require a BytesIO; the function accepts any buffered file
            message = proto.parse_length_prefixed(kind, cast("BytesIO", file))
        except (DecodeError, ValueError):
            if file.read(1):  # more data follows, so the record is damaged, not truncated by a kill
                raise RunError(f"{file.name} is damaged at byte {start}: run the analysis again") from None
            return
        if message is None:
            return
        yield message, file.tell()
