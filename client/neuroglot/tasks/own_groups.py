"""`jsonl`: custom groups, one a line, in the format of a run's `examples.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from neuroglot.errors import InvalidGroupError
from neuroglot.request.groups import Group
from neuroglot.tasks.chosen import chosen_languages
from neuroglot.tasks.problems import Collector
from neuroglot.tasks.reading import json_lines, require
from neuroglot.tasks.shots import in_context
from neuroglot.tasks.task import Task, shots_chosen

Value = TypeVar("Value")

WHAT = 'a file with a group a line, {"id": ..., "prompts": {"en": ..., "de": ...}, "answers": {...}}'

_BY_LANGUAGE = ("prompts", "answers", "separators", "choices", "distractors")
_SEVERAL = ("answers", "choices")  # a list of texts for each language; an answer may be a text alone


def jsonl(
    data: Path, *, languages: Sequence[str] = (), shots: int = 0, seed: int = 0, skip_bad_data: bool = False
) -> Task:
    """`jsonl`: groups from a file of JSON lines, each the fields of a `Group`.

    Args:
        data: the file; the `examples.jsonl` of a run is one.
        languages: languages to read; all by default.
        shots: number of in-context examples before every prompt.
        seed: seed of their choice.
        skip_bad_data: leave out erroneous lines instead of raising an error.

    Raises:
        DataError: the file does not exist, or has errors.
    """
    path = require(Path(data), WHAT)
    collector = Collector()
    records = _records(path, collector)
    if not records:
        collector.problems(skip=True, left=0)
    found = tuple(dict.fromkeys(language for record in records.values() for language in record["prompts"]))
    selected = chosen_languages(languages or found, found, path)
    groups = list(_groups(records, selected, path, collector))
    problems = collector.problems(skip=skip_bad_data, left=len(groups))
    return Task(
        name="jsonl",
        title=path.stem,
        kind="groups of one's own",
        data=f"{len(groups):,} groups of {path.name}.",
        languages=selected,
        groups=in_context(partial(_of, groups), shots, seed),
        parameters=shots_chosen(shots, seed),
        problems=problems,
    )


def _of(groups: Sequence[Group], languages: Sequence[str]) -> Iterator[Group]:
    return (_narrowed(group, languages) for group in groups)


def _narrowed(group: Group, languages: Sequence[str]) -> Group:
    """Restrict a group to some of its languages, in their order."""

    def of(values: Mapping[str, Value]) -> dict[str, Value]:
        return {language: values[language] for language in languages if language in values}

    return replace(
        group,
        prompts=of(group.prompts),
        answers=of(group.answers),
        separators=of(group.separators),
        choices=of(group.choices),
        distractors=of(group.distractors),
    )


def _records(path: Path, problems: Collector) -> dict[int, Mapping[str, Any]]:
    """Return the valid records by line number; a record without id gets its line number as id."""
    known = [one.name for one in fields(Group)]
    records: dict[int, Mapping[str, Any]] = {}
    lines: dict[str, int] = {}
    for line, record in json_lines(path, problems):
        record = {"id": str(line), **record}
        if unknown := [name for name in record if name not in known]:
            problems.add(
                "broken line", path, line, f"has an unknown field {unknown[0]!r}: there are {', '.join(known)}"
            )
        elif wrong := [name for name, value in record.items() if not _has_form(name, value)]:
            problems.add("broken line", path, line, f"{wrong[0]} is {record[wrong[0]]!r:.60}: give {_form(wrong[0])}")
        elif "prompts" not in record:
            problems.add("broken line", path, line, f"has no prompts: give {WHAT}")
        elif record["id"] in lines:
            problems.add("duplicate", path, line, f"id {record['id']!r} is in line {lines[record['id']]} already")
        else:
            lines[record["id"]] = line
            records[line] = record
    return records


def _has_form(name: str, value: object) -> bool:
    if name not in _BY_LANGUAGE:
        return isinstance(value, str)
    return isinstance(value, dict) and all(
        isinstance(one, str)
        or (name == "prompts" and isinstance(one, list) and all(type(token) is int for token in one))
        or (name in _SEVERAL and isinstance(one, list) and all(isinstance(text, str) for text in one))
        for one in value.values()
    )


def _form(name: str) -> str:
    if name not in _BY_LANGUAGE:
        return "a text"
    if name == "prompts":
        return "a text or a list of token ids by language"
    return "a list of texts by language" if name in _SEVERAL else "a text by language"


def _groups(
    records: Mapping[int, Mapping[str, Any]], languages: Sequence[str], path: Path, problems: Collector
) -> Iterator[Group]:
    """Yield the groups that are complete in all languages."""
    for line, record in records.items():
        if missing := _missing(record, languages):
            problems.add("missing language", path, line, f"group {record['id']!r} has no {missing}")
            continue
        try:
            yield _narrowed(Group(**record), languages)
        except InvalidGroupError as error:
            problems.add("empty" if "empty" in str(error) else "broken line", path, line, str(error))


def _missing(record: Mapping[str, Any], languages: Sequence[str]) -> str:
    """Return the fields that a group lacks in some languages, as text; separators have a default."""
    return ", ".join(
        f"{name.removesuffix('s')} in {language}"
        for name in ("prompts", "answers", "choices", "distractors")
        for language in languages
        if record.get(name) and language not in record[name]
    )
