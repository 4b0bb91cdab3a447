"""The files of XNLI: the official one, and a file for each language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from neuroglot.errors import DataError
from neuroglot.tasks.capital_prompts import Label
from neuroglot.tasks.chosen import chosen_languages
from neuroglot.tasks.problems import Collector
from neuroglot.tasks.reading import Placed, join, lines, require

OFFICIAL = "xnli.test.tsv"
WHAT = f"the official {OFFICIAL}, or a folder with it or with a test-LANGUAGE.tsv for each language"

_LABELS: Mapping[str, Label] = {"entailment": "true", "contradiction": "false", "neutral": "inconclusive"}


class _Columns(NamedTuple):
    """Names of the columns: example id; label, premise and hypothesis."""

    name: str
    required: tuple[str, str, str]


_OFFICIAL = _Columns("pairID", ("gold_label", "sentence1", "sentence2"))
_OWN = _Columns("id", ("gold_label", "premise", "hypothesis"))


class _Row(NamedTuple):
    """A row of a file by column; `whole` is False for a wrong number of columns."""

    file: Path
    line: int
    cells: Mapping[str, str]
    whole: bool


class Pair(NamedTuple):
    """A premise and a hypothesis in one language, and whether the one entails the other."""

    premise: str
    hypothesis: str
    label: Label


@dataclass(frozen=True)
class Example:
    """A pair in every language.

    Attributes:
        name: its id in the files, or its number from 0 where they have none.
        cluster: name of the first example with the same premise.
        pairs: the pair by language.
    """

    name: str
    cluster: str
    pairs: Mapping[str, Pair]


def read_examples(path: Path, languages: Sequence[str], problems: Collector) -> list[Example]:
    """Read the examples that are complete in all languages.

    Args:
        path: the official file, or a folder with it or with a file for each language.
        languages: languages to read; by default the paper's languages in the data.
        problems: collects data errors.

    Raises:
        DataError: the file does not exist, or a column or a language is missing.
    """
    require(path, WHAT)
    official = path / OFFICIAL if path.is_dir() else path
    if official.exists():
        rows, columns = _official(official, problems), _OFFICIAL
    else:
        rows, columns = _folder(path, languages, problems), _OWN
    selected = chosen_languages(languages, rows, path)
    entries = _entries({language: rows[language] for language in selected}, columns, path, problems)
    return list(_examples(join(entries, "example", problems), problems))


def _examples(joined: Mapping[str, Mapping[str, Placed[Pair]]], problems: Collector) -> Iterator[Example]:
    clusters: dict[str, str] = {}
    seen: dict[tuple[Pair, ...], str] = {}
    for name, places in joined.items():
        pairs = {language: place.entry for language, place in places.items() if place.entry is not None}
        first, reference = next(iter(pairs.items()))
        if different := [language for language in pairs if pairs[language].label != reference.label]:
            place = places[different[0]]
            what = f"example {name} is {pairs[different[0]].label} here and {reference.label} in {first}"
            problems.add("not parallel", place.file, place.line, what)
            continue
        cluster = clusters.setdefault(reference.premise, name)
        if (before := seen.setdefault(tuple(pairs.values()), name)) != name:
            place = places[first]
            problems.add("duplicate", place.file, place.line, f"example {name} is the same as example {before}")
            continue
        yield Example(name, cluster, pairs)


def _official(path: Path, problems: Collector) -> dict[str, list[_Row]]:
    """Read the rows of a file with all languages."""
    found: dict[str, list[_Row]] = {}
    for row in _rows(path, ("language", *_OFFICIAL.required), problems):
        found.setdefault(row.cells.get("language", ""), []).append(row)
    return found


def _folder(path: Path, languages: Sequence[str], problems: Collector) -> dict[str, list[_Row]]:
    """Read the rows of one file a language."""
    files = {file.stem.removeprefix("test-"): file for file in sorted(path.glob("test-*.tsv"))}
    if not files:
        raise DataError(f"{path} has neither {OFFICIAL} nor a test-LANGUAGE.tsv: give {WHAT}")
    selected = chosen_languages(languages, files, path)
    return {language: list(_rows(files[language], _OWN.required, problems)) for language in selected}


def _entries(
    rows: Mapping[str, Sequence[_Row]], columns: _Columns, path: Path, problems: Collector
) -> dict[str, dict[str, Placed[Pair]]]:
    """Return pairs by language and name: the id column if every row has it, else the index among the language's rows.

    Raises:
        DataError: there are no ids and the languages differ in their number of rows, so rows cannot be aligned.
    """
    named = all(row.cells.get(columns.name) for of_language in rows.values() for row in of_language)
    counts = {language: len(of_language) for language, of_language in rows.items()}
    if not named and len(set(counts.values())) > 1:
        told = ", ".join(f"{count:,} in {language}" for language, count in counts.items())
        raise DataError(
            f"{path} does not run parallel: it has {told}, and no {columns.name} in every row to tell which belong "
            "together"
        )
    found: dict[str, dict[str, Placed[Pair]]] = {}
    for language, of_language in rows.items():
        entries = found.setdefault(language, {})
        for number, row in enumerate(of_language):
            name = row.cells[columns.name] if named else str(number)
            if name in entries:
                problems.add("duplicate", row.file, row.line, f"example {name} is in line {entries[name].line} already")
            else:
                entries[name] = Placed(row.file, row.line, _pair(row, columns, problems) if row.whole else None)
    return found


def _pair(row: _Row, columns: _Columns, problems: Collector) -> Pair | None:
    label, premise, hypothesis = (row.cells[column].strip() for column in columns.required)
    if empty := [what for what, text in (("premise", premise), ("hypothesis", hypothesis)) if not text]:
        problems.add("empty", row.file, row.line, f"the {' and the '.join(empty)} is empty")
    elif label not in _LABELS:
        problems.add("broken line", row.file, row.line, f"{label!r} is no label: those are {', '.join(_LABELS)}")
    else:
        return Pair(premise, hypothesis, _LABELS[label])
    return None


def _rows(path: Path, required: Sequence[str], problems: Collector) -> Iterator[_Row]:
    """Yield the rows of a tab-separated file; quotes have no special meaning.

    Raises:
        DataError: the file is empty, or lacks one of the columns.
    """
    content = lines(path, problems)
    _, header = next(content, (0, ""))
    names = header.split("\t")
    if missing := [column for column in required if column not in names]:
        raise DataError(
            f"{path} has no column {', '.join(missing)}: its first line should name them, separated by tabs, and it is "
            f"{header[:60]!r}"
        )
    for line, text in content:
        cells = text.split("\t")
        if len(cells) != len(names):
            problems.add("broken line", path, line, f"has {len(cells)} columns instead of {len(names)}")
        yield _Row(path, line, dict(zip(names, cells, strict=False)), len(cells) == len(names))
