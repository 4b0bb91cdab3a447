"""Readers of a task's files: lines with their numbers, and their data errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from neuroglot.errors import DataError
from neuroglot.tasks.problems import Collector

Entry = TypeVar("Entry")


class Placed(NamedTuple, Generic[Entry]):
    """An entry with its file and line; None for an entry that could not be read and is recorded as a problem."""

    file: Path
    line: int
    entry: Entry | None


def require(path: Path, what: str) -> Path:
    """Return the path if it exists.

    Raises:
        DataError: it does not exist; `what` describes the expected path.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist: give {what}")
    return path


def content(path: Path) -> bytes:
    """Read a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def lines(path: Path, problems: Collector) -> Iterator[tuple[int, str]]:
    """Yield the non-empty lines of a UTF-8 file with their numbers from 1, without line ends.

    Only a line feed ends a line, because texts of many languages contain other Unicode line separators.

    Raises:
        DataError: the file cannot be read.
    """
    for number, line in enumerate(content(path).split(b"\n"), 1):
        try:
            text = line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            problems.add("broken line", path, number, f"is not UTF-8: {error.reason} at byte {error.start}")
            continue
        if text.strip():
            yield number, text


def json_lines(path: Path, problems: Collector) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the objects of a JSON-lines file with their line numbers."""
    for number, text in lines(path, problems):
        try:
            found = json.loads(text)
        except ValueError as error:
            problems.add("broken line", path, number, f"is not JSON: {error}")
            continue
        if isinstance(found, dict):
            yield number, found
        else:
            problems.add("broken line", path, number, f"is not a JSON object but {text[:40]}")


def json_array(path: Path, problems: Collector) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """Yield the objects of a JSON array file, each with the number of its first line.

    An element that is not an object is recorded as a problem and yielded as None, which keeps indices aligned. A syntax
    error is recorded and ends the file, because elements after it cannot be separated.

    Raises:
        DataError: the file cannot be read, or is not an array, or not UTF-8.
    """
    try:
        text = content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None
    decoder = json.JSONDecoder()
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        raise DataError(f"{path} is not a JSON array: it begins with {text[at : at + 20]!r}")
    at = _skip(text, at + 1)
    line, counted = 1, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            found, at = decoder.raw_decode(text, at)
        except ValueError as error:
            problems.add("broken line", path, line, f"is not JSON: {error}; the rest of the file is not read")
            return
        if isinstance(found, dict):
            yield line, found
        else:
            problems.add("broken line", path, line, f"is not a JSON object but {found!r:.40}")
            yield line, None
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            problems.add("broken line", path, line, "is not followed by a comma or the end of the array")
            return


def _skip(text: str, at: int) -> int:
    """Return the next index that is not whitespace."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def join(
    by_language: Mapping[str, Mapping[str, Placed[Entry]]], what: str, problems: Collector
) -> dict[str, dict[str, Placed[Entry]]]:
    """Join the entries of all languages by key; record keys that are missing in a language.

    Args:
        by_language: entries by language and key.
        what: noun for an entry: `example`.
        problems: collects the keys that are not in every language.

    Returns:
        Entries by key and language, keys in the order of their first appearance. Keys that are missing or unreadable in
        a language are left out.
    """
    joined = {}
    for key in dict.fromkeys(key for entries in by_language.values() for key in entries):
        found = {language: entries[key] for language, entries in by_language.items() if key in entries}
        if missing := [language for language in by_language if language not in found]:
            place = next(iter(found.values()))
            problems.add("missing language", place.file, place.line, f"{what} {key} has no {', '.join(missing)}")
        elif all(place.entry is not None for place in found.values()):
            joined[key] = found
    return joined
