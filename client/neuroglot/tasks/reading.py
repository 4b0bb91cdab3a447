"""Reading a task's files: lines with their numbers, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from neuroglot.errors import DataError
from neuroglot.tasks.problems import Collector

Entry = TypeVar("Entry")


class Placed(NamedTuple, Generic[Entry]):
    """An entry and where it is; None in place of one that could not be read, which is noted already."""

    file: Path
    line: int
    entry: Entry | None


def require(path: Path, what: str) -> Path:
    """The path, if it is there.

    Raises:
        DataError: it is not; `what` says what should be.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist: give {what}")
    return path


def content(path: Path) -> bytes:
    """What a file holds.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def lines(path: Path, problems: Collector) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers from 1, without line ends; empty ones are left out.

    Only a line feed ends a line: the texts of many languages hold other characters that Unicode counts as line ends.

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
    """The objects of a file that has one a line, with their lines' numbers."""
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
    """The objects of a file that is one JSON array, each with the number of the line where it begins.

    An element that is no object is noted and comes as None, for it has its place. What stands behind a syntax error
    cannot be told apart, so the error is noted and ends the file.

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
        raise DataError(f"{path} is no JSON array: it begins with {text[at : at + 20]!r}")
    at = _skip(text, at + 1)
    line, counted = 1, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            found, at = decoder.raw_decode(text, at)
        except ValueError as error:
            problems.add("broken line", path, line, f"is not JSON: {error}; nothing behind it is read")
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
    """The next place that is no space."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def join(
    by_language: Mapping[str, Mapping[str, Placed[Entry]]], what: str, problems: Collector
) -> dict[str, dict[str, Placed[Entry]]]:
    """Bring together what has the same key in all languages; what a language lacks is noted.

    Args:
        by_language: the entries by language and key.
        what: an entry in a word: `example`.
        problems: takes the keys that are not in every language.

    Returns:
        By key, in the order of the first language and what the next ones have beyond it, the entries by language.
        Keys that a language lacks, or whose entry could not be read in one, are left out.
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
