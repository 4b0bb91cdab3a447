"""A file of messages: each after its length as a varint, the form that protobuf calls length-prefixed.

Such a file only grows, so a kill can tear no more than its last record. Reading drops a torn one, and `open_to_append`
cuts it off.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

from google.protobuf import proto
from google.protobuf.message import DecodeError, Message

from neuroglot.errors import RunError

if TYPE_CHECKING:
    from io import BytesIO  # what protobuf's stubs ask for; its functions take any buffered file

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


def open_to_append(path: Path, kind: type[Message]) -> BinaryIO:
    """The file, made if there is none, ready to be appended to: without a torn last record.

    Raises:
        RunError: a record before the last one is damaged.
    """
    path.touch()
    file = path.open("r+b")
    whole = max((end for _, end in _records(file, kind)), default=0)
    file.truncate(whole)
    file.seek(whole)
    return file


def append(file: BinaryIO, message: Message) -> None:
    """Write one record and hand it to the operating system, so that it outlives the process."""
    proto.serialize_length_prefixed(message, cast("BytesIO", file))
    file.flush()


def _records(file: BinaryIO, kind: type[AnyMessage]) -> Iterator[tuple[AnyMessage, int]]:
    """Whole records, each with the offset at which it ends."""
    while True:
        start = file.tell()
        try:
            message = proto.parse_length_prefixed(kind, cast("BytesIO", file))
        except (DecodeError, ValueError):
            if file.read(1):  # there is more behind it, so no kill has torn it
                raise RunError(f"{file.name} is damaged at byte {start}: run the analysis again") from None
            return
        if message is None:
            return
        yield message, file.tell()
