"""The files of MzsRE: a list of edits in two languages for each pair of them, or edits in all languages, one a line."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from neuroglot.errors import DataError
from neuroglot.tasks.chosen import chosen_languages
from neuroglot.tasks.problems import Collector
from neuroglot.tasks.reading import Placed, join, json_array, json_lines, require

WHAT = "a folder with mzsre_test_duplicate_AB.json for pairs of languages A and B, one such file, or a .jsonl file"

_NAMES = {"cz": "cs", "du": "nl", "zh-cn": "zh", "zh-hans": "zh"}
"""Language codes of the files that differ from ISO 639: Czech, Dutch, Chinese."""

_CODE = r"([a-z]{2}(?:-[a-z]+)?)"
_PAIR = re.compile(f"mzsre_test_duplicate_{_CODE}{_CODE}\\.json")


class Asked(NamedTuple):
    """An edit in one language: a question, another wording of it, and the new answer."""

    question: str
    rephrased: str
    answer: str


@dataclass(frozen=True)
class Edit:
    """An edit in every language.

    Attributes:
        name: its id, or its number from 0 where it has none.
        cluster: name of the first edit of the same question.
        asked: the edit by language.
    """

    name: str
    cluster: str
    asked: Mapping[str, Asked]


Found = dict[str, dict[str, Placed[Asked]]]
"""Edits by language and name."""


def read_edits(
    path: Path, fixed: str, languages: Sequence[str], problems: Collector
) -> tuple[tuple[str, ...], list[Edit]]:
    """Return the languages to ask in, and the edits that are complete in all of them and in the fixed language.

    Args:
        path: a folder of files of pairs, one such file, or a file of JSON lines.
        fixed: the language that every file of a pair must have; the others are aligned by it.
        languages: further languages to read; by default the paper's languages in the data.
        problems: collects data errors.

    Raises:
        DataError: the file does not exist, or a language is missing.
    """
    require(path, WHAT)
    read = _lines if path.suffix == ".jsonl" else _pairs
    selected, found = read(path, fixed, languages, problems)
    joined = join({language: found[language] for language in dict.fromkeys((fixed, *selected))}, "edit", problems)
    return selected, list(_edits(joined, fixed, problems))


def _choose(languages: Sequence[str], found: Collection[str], fixed: str, path: Path) -> tuple[str, ...]:
    if fixed not in found:
        raise DataError(f"{path} has no {fixed}, the fixed language: its languages are {', '.join(sorted(found))}")
    return chosen_languages(languages, found, path)


def _edits(joined: Mapping[str, Mapping[str, Placed[Asked]]], fixed: str, problems: Collector) -> Iterator[Edit]:
    clusters: dict[str, str] = {}
    seen: dict[tuple[str, str], str] = {}
    for name, places in joined.items():
        asked = {language: place.entry for language, place in places.items() if place.entry is not None}
        question, _, answer = asked[fixed]
        if (before := seen.setdefault((question, answer), name)) != name:
            place = places[fixed]
            problems.add("duplicate", place.file, place.line, f"edit {name} is the same as edit {before}")
            continue
        yield Edit(name, clusters.setdefault(question, name), asked)


def _lines(path: Path, fixed: str, languages: Sequence[str], problems: Collector) -> tuple[tuple[str, ...], Found]:
    """Read edits of the form `{"id": ..., "langs": {language: {...}}}`, one a line."""
    records: dict[str, tuple[int, Mapping[str, object]]] = {}
    for line, record in json_lines(path, problems):
        by_language, name = record.get("langs"), str(record.get("id", line - 1))
        if not isinstance(by_language, dict):
            problems.add(
                "broken line", path, line, 'is not {"id": ..., "langs": {"en": {"src": ..., "alt": ...}, ...}}'
            )
        elif name in records:
            problems.add("duplicate", path, line, f"id {name} is in line {records[name][0]} already")
        else:
            records[name] = line, _by_language(by_language)
    if not records:
        problems.problems(skip=True, left=0)
    there = dict.fromkeys(language for _, by_language in records.values() for language in by_language)
    selected = _choose(languages, there, fixed, path)
    return selected, {
        language: {
            name: Placed(path, line, _asked(by_language[language], language, path, line, problems))
            for name, (line, by_language) in records.items()
            if language in by_language
        }
        for language in dict.fromkeys((fixed, *selected))
    }


def _pairs(path: Path, fixed: str, languages: Sequence[str], problems: Collector) -> tuple[tuple[str, ...], Found]:
    """Read edits from files of language pairs, which all have the same list in the fixed language."""
    files = {file: names for file in ([path] if path.is_file() else sorted(path.iterdir())) if (names := _names(file))}
    if not files:
        raise DataError(f"{path} has no MzsRE files: give {WHAT}")
    # If both orders of a pair exist, they hold the same edits: use the file that begins with the fixed language.
    others = {
        (b if a == fixed else a): file
        for file, (a, b) in sorted(files.items(), key=lambda one: one[1][0] == fixed)
        if fixed in (a, b)
    }
    there = {name for names in files.values() for name in names} if not others else {fixed, *others}
    selected = _choose(languages, there, fixed, path)
    found: Found = {fixed: {}}
    for other in (one for one in selected if one != fixed):
        found[other] = {}
        for number, (line, record) in enumerate(json_array(others[other], problems)):
            if record is not None:
                _take(record, str(number), fixed, other, Placed(others[other], line, None), found, problems)
    return selected, found


def _take(
    record: Mapping[str, object],
    name: str,
    fixed: str,
    other: str,
    place: Placed[Asked],
    found: Found,
    problems: Collector,
) -> None:
    """Add one element of a pair's list, if its part in the fixed language equals that in the other files."""
    by_language = _by_language(record)
    if missing := [language for language in (fixed, other) if language not in by_language]:
        problems.add("missing language", place.file, place.line, f"edit {name} has no {', '.join(missing)}")
        return
    anchor, asked = (
        _asked(by_language[language], language, place.file, place.line, problems) for language in (fixed, other)
    )
    known = found[fixed].setdefault(name, place._replace(entry=anchor))
    if known.entry and anchor and (known.entry.question, known.entry.answer) != (anchor.question, anchor.answer):
        here, there = (f"{one.question} {one.answer}" for one in (anchor, known.entry))
        what = f"edit {name} is {here!r} here and {there!r} in {known.file.name}, line {known.line}"
        problems.add("not parallel", place.file, place.line, what)
        asked = None
    found[other][name] = place._replace(entry=asked)


def _by_language(record: Mapping[str, object]) -> dict[str, object]:
    return {_NAMES.get(language, language): entry for language, entry in record.items()}


def _names(path: Path) -> tuple[str, str] | None:
    match = _PAIR.fullmatch(path.name)
    return (_NAMES.get(match[1], match[1]), _NAMES.get(match[2], match[2])) if match else None


def _asked(entry: object, language: str, path: Path, line: int, problems: Collector) -> Asked | None:
    if not isinstance(entry, dict):
        problems.add("broken line", path, line, f'{language} is not {{"src": ..., "rephrase": ..., "alt": ...}}')
        return None
    texts = {key: entry.get(key, "") for key in ("src", "rephrase", "alt")}
    if wrong := [key for key, text in texts.items() if not isinstance(text, str)]:
        problems.add("broken line", path, line, f"{' and '.join(wrong)} of {language} should be text")
    elif empty := [key for key, text in texts.items() if not text.strip()]:
        problems.add("empty", path, line, f"{' and '.join(empty)} of {language} is empty")
    else:
        return Asked(*(text.strip() for text in texts.values()))
    return None
