"""`mzsre`: cross-lingual knowledge editing (MzsRE, Wang et al. 2023) in the paper's wording (Appendix A.2)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from neuroglot.errors import AnalysisError
from neuroglot.request.groups import Group, default_separator
from neuroglot.tasks.capital_prompts import task_file
from neuroglot.tasks.chosen import chosen_template_language, chosen_templates
from neuroglot.tasks.directions import Direction
from neuroglot.tasks.editing_files import Edit, read_edits
from neuroglot.tasks.problems import Collector
from neuroglot.tasks.shots import in_context
from neuroglot.tasks.task import Task, numbers, shots_chosen

TEMPLATE_LANGUAGE = "en"
"""The paper's prompt uses the English words "Question:" and "Answer:", as does its released code in all languages."""

TEMPLATES = 3
"""Number of forms of the context: 0, the edit as a solved question; 1, the bare question and its answer; 2, as 0, with
the open question in MzsRE's rephrased wording. The paper does not specify the form of its context."""

_BARE, _REPHRASED = 1, 2


@cache
def words() -> Mapping[str, Mapping[str, str]]:
    """Return the formats of a solved question (`told`) and an open question (`asked`) by language."""
    found: Mapping[str, Mapping[str, str]] = json.loads(task_file("editing.json"))
    return found


def mzsre(
    data: Path,
    *,
    languages: Sequence[str] = (),
    direction: str = "",
    template_language: str = "",
    templates: Sequence[int] = (),
    shots: int = 0,
    seed: int = 0,
    skip_bad_data: bool = False,
) -> Task:
    """`mzsre`: a new fact is stated in one language and questioned in another.

    The fixed language has a row of its own, stated and questioned in it, as in the paper's Tables 4 and 5; name the
    other `languages` to leave it out.

    Args:
        data: a folder with `mzsre_test_duplicate_AB.json` for pairs of languages, one such file, or a `.jsonl` file.
        languages: languages to read; by default the paper's languages in the data. Czech is `cs`, Dutch `nl`.
        direction: `en-all` (default): stated in English, with one row a language of the question; `all-en`: questioned
            in English, with one row a language of the statement; likewise for other languages.
        template_language: `en` (default): "Question:" and "Answer:" in all languages; `own`: each language's words.
        templates: forms of the context, 0 to 2 (see `TEMPLATES`); 0 by default.
        shots: number of in-context examples before every prompt.
        seed: seed of their choice.
        skip_bad_data: leave out erroneous entries of the files instead of raising an error.

    Raises:
        AnalysisError: a form or direction does not exist, or a language has no wording.
        DataError: the files do not exist, or have errors.
    """
    whose = chosen_template_language(template_language, TEMPLATE_LANGUAGE, "mzsre")
    chosen = chosen_templates(templates, TEMPLATES, (0,), "mzsre")
    parsed_direction = Direction.parse(direction)
    collector = Collector()
    present, edits = read_edits(Path(data), parsed_direction.fixed, languages, collector)
    problems = collector.problems(skip=skip_bad_data, left=len(edits))
    if whose == "own" and (
        without := [one for one in dict.fromkeys((parsed_direction.fixed, *present)) if one not in words()]
    ):
        raise AnalysisError(
            f"task 'mzsre' has no wording in {', '.join(without)}: leave the language out, or use the English wording "
            "(template_language='en')"
        )
    return Task(
        name="mzsre",
        title="MzsRE",
        kind="cross-lingual knowledge editing",
        data=f"MzsRE (Wang et al. 2023), {len(edits):,} edits of {Path(data).name}.",
        languages=present,
        groups=in_context(partial(_groups, edits, parsed_direction, whose, chosen), shots, seed),
        parameters={
            "direction": str(parsed_direction),
            "template_language": whose,
            "templates": numbers(chosen),
            **shots_chosen(shots, seed),
        },
        problems=problems,
    )


def _groups(
    edits: Sequence[Edit], direction: Direction, whose: str, templates: Sequence[int], languages: Sequence[str]
) -> Iterator[Group]:
    return (_group(edit, direction, whose, template, languages) for edit in edits for template in templates)


def _group(edit: Edit, direction: Direction, whose: str, template: int, languages: Sequence[str]) -> Group:
    """Convert an edit to a group; its rows are the languages of the statement or of the question."""
    told = {language: direction.fixed if direction.told else language for language in languages}
    asked = {language: language if direction.told else direction.fixed for language in languages}
    worded = {language: asked[language] if whose == "own" else whose for language in languages}
    return Group(
        {
            language: f"{_told(edit, told[language], whose, template)} {_asked(edit, asked[language], whose, template)}"
            for language in languages
        },
        answers={language: edit.asked[asked[language]].answer for language in languages},
        id=f"{edit.name}/{template}",
        separators={language: default_separator(worded[language]) for language in languages},
        cluster=edit.cluster,
    )


def _told(edit: Edit, language: str, whose: str, template: int) -> str:
    fact = edit.asked[language]
    if template == _BARE:
        return f"{fact.question} {fact.answer}"
    told = words()[language if whose == "own" else whose]["told"]
    return told.format(question=fact.question, answer=fact.answer)


def _asked(edit: Edit, language: str, whose: str, template: int) -> str:
    fact = edit.asked[language]
    asked = words()[language if whose == "own" else whose]["asked"]
    return asked.format(question=fact.rephrased if template == _REPHRASED else fact.question)
