"""The files of mParaRel: patterns and tuples of a relation, a folder for each language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neuroglot.errors import DataError
from neuroglot.request.groups import UNSPACED_LANGUAGES
from neuroglot.tasks.chosen import chosen_languages
from neuroglot.tasks.problems import Collector
from neuroglot.tasks.reading import Placed, join, json_lines, require

WHAT = "the folder of mParaRel, with patterns/LANGUAGE/RELATION.jsonl and tuples/LANGUAGE/RELATION.jsonl"

_FOLDERS = {"zh": "zh-hans"}  # every other language has its own name


class Pattern(NamedTuple):
    """A wording that ends where the answer begins.

    Attributes:
        prompt: text with `[X]` as placeholder of the subject.
        separator: text between prompt and answer.
    """

    prompt: str
    separator: str


class Fact(NamedTuple):
    """A subject and its object in one language, and the entities that they name."""

    subject: str
    object: str
    entities: tuple[str, str]


class Relation(NamedTuple):
    """A relation in every language.

    Attributes:
        name: `P36`.
        patterns: the wordings by language, those that were checked by a person first.
        facts: by line id, the fact by language.
    """

    name: str
    patterns: Mapping[str, tuple[Pattern, ...]]
    facts: Mapping[str, Mapping[str, Fact]]


def languages_of(folder: Path, relations: Sequence[str], asked: Sequence[str]) -> tuple[str, ...]:
    """Return the languages with patterns and tuples of all relations, in the order of `chosen_languages`.

    Raises:
        DataError: the folder is not one of mParaRel, or a requested language lacks a relation.
    """
    require(folder, WHAT)
    labels = {name: label for label, name in _FOLDERS.items()}
    found = [
        labels.get(one.name, one.name)
        for one in sorted(folder.glob("patterns/*"))
        if all(_file(folder, kind, one.name, name).exists() for kind in ("patterns", "tuples") for name in relations)
    ]
    return chosen_languages(asked, found, f"{folder} for {', '.join(relations)}")


def read_relation(folder: Path, name: str, languages: Sequence[str], problems: Collector) -> Relation:
    """Read a relation with the facts that are complete in all languages.

    Args:
        folder: the folder of mParaRel.
        name: `P36`.
        languages: languages that have its files.
        problems: collects data errors.

    Raises:
        DataError: a language has no pattern that ends in `[Y]`.
    """
    folders = {language: _FOLDERS.get(language, language) for language in languages}
    patterns = {
        language: _patterns(_file(folder, "patterns", one, name), language, problems)
        for language, one in folders.items()
    }
    facts = {language: _facts(_file(folder, "tuples", one, name), problems) for language, one in folders.items()}
    return Relation(name, patterns, _parallel(join(facts, "lineid", problems), problems))


def _file(folder: Path, kind: str, language: str, relation: str) -> Path:
    return folder / kind / language / f"{relation}.jsonl"


def _patterns(path: Path, language: str, problems: Collector) -> tuple[Pattern, ...]:
    checked: dict[Pattern, bool] = {}
    for line, record in json_lines(path, problems):
        text = record.get("pattern")
        if not isinstance(text, str) or (text.count("[X]"), text.count("[Y]")) != (1, 1):
            problems.add("broken line", path, line, f"has no pattern with one [X] and one [Y], but {text!r:.60}")
        elif pattern := _ending_in_the_answer(text, language):
            checked[pattern] = checked.get(pattern, False) or bool(record.get("checked-by-human"))
    if not checked:
        raise DataError(f"{path} has no pattern that ends in [Y]: leave {language} out")
    return tuple(sorted(checked, key=lambda one: not checked[one]))


def _ending_in_the_answer(text: str, language: str) -> Pattern | None:
    """Return the part before `[Y]` if only punctuation follows it; a decoder cannot fill in the middle of a text."""
    before, after = text.split("[Y]")
    if any(not one.isspace() and not unicodedata.category(one).startswith("P") for one in after) or "[X]" in after:
        return None
    if language in UNSPACED_LANGUAGES:  # spaces around the placeholders are left from aligning them
        return Pattern(re.sub(r"\s*\[X\]\s*", "[X]", before).strip(), "")
    return Pattern(before.strip(), " " if before[-1:].isspace() else "")


def _facts(path: Path, problems: Collector) -> dict[str, Placed[Fact]]:
    facts: dict[str, Placed[Fact]] = {}
    for line, record in json_lines(path, problems):
        name = record.get("lineid")
        if not isinstance(name, int | str) or isinstance(name, bool):
            problems.add("broken line", path, line, "has no lineid")
        elif str(name) in facts:
            problems.add("duplicate", path, line, f"lineid {name} is in line {facts[str(name)].line} already")
        else:
            facts[str(name)] = Placed(path, line, _fact(record, path, line, problems))
    return facts


def _fact(record: Mapping[str, Any], path: Path, line: int, problems: Collector) -> Fact | None:
    texts = {key: record.get(key, "") for key in ("sub_label", "obj_label", "sub_uri", "obj_uri")}
    if wrong := [key for key, text in texts.items() if not isinstance(text, str)]:
        problems.add("broken line", path, line, f"{' and '.join(wrong)} should be text")
    elif empty := [key for key in ("sub_label", "obj_label") if not texts[key].strip()]:
        problems.add("empty", path, line, f"{' and '.join(empty)} is empty")
    else:
        return Fact(texts["sub_label"].strip(), texts["obj_label"].strip(), (texts["sub_uri"], texts["obj_uri"]))
    return None


def _parallel(joined: Mapping[str, Mapping[str, Placed[Fact]]], problems: Collector) -> dict[str, dict[str, Fact]]:
    """Return the facts with the same two entities in every language, each pair of entities once."""
    found: dict[str, dict[str, Fact]] = {}
    seen: dict[tuple[str, str], str] = {}
    for name, places in joined.items():
        facts = {language: place.entry for language, place in places.items() if place.entry is not None}
        first, reference = next(iter(facts.items()))
        if different := [language for language in facts if facts[language].entities != reference.entities]:
            what = f"lineid {name} is of {facts[different[0]].entities} here and of {reference.entities} in {first}"
            problems.add("not parallel", places[different[0]].file, places[different[0]].line, what)
        elif any(reference.entities) and seen.setdefault(reference.entities, name) != name:
            what = f"lineid {name} is the same fact as lineid {seen[reference.entities]}"
            problems.add("duplicate", places[first].file, places[first].line, what)
        else:
            found[name] = facts
    return found
