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
"""The paper's prompt has the English words "Question:" and "Answer:", and so has its authors' code in all languages."""

TEMPLATES = 3
"""How the new fact is told and asked for: 0, as a solved question; 1, as the bare question and its answer; 2, as 0, but
asked for in MzsRE's other wording of the question. The paper leaves the form of its context open."""

_BARE, _REPHRASED = 1, 2


@cache
def words() -> Mapping[str, Mapping[str, str]]:
    """By language, how a solved question is `told` and an open one `asked`."""
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
    """`mzsre`: a new fact is told in one language and asked for in another.

    The fixed language has a row of its own, told and asked in it, as in the paper's Tables 4 and 5; name the others as
    `languages` to leave it out.

    Args:
        data: a folder with `mzsre_test_duplicate_AB.json` for pairs of languages, one such file, or a `.jsonl` file.
        languages: which ones to read; those of the paper that are there by default. Czech is `cs`, Dutch `nl`.
        direction: `en-all` (default): told in English, the rows are the languages asked in; `all-en`: asked in
            English, the rows are the languages told in; and so for any other language.
        template_language: `en` (default): "Question:" and "Answer:" in all languages; `own`: each language's words.
        templates: which forms of the context, 0 to 2 (see `TEMPLATES`); 0 by default.
        shots: solved examples in front of every prompt.
        seed: of their choice.
        skip_bad_data: leave out what is wrong in the files, instead of refusing them.

    Raises:
        AnalysisError: there is no such form, direction, or wording in a language.
        DataError: the files are not there, or something is wrong in them.
    """
    whose = chosen_template_language(template_language, TEMPLATE_LANGUAGE, "mzsre")
    chosen = chosen_templates(templates, TEMPLATES, (0,), "mzsre")
    goes = Direction.parse(direction)
    collector = Collector()
    present, edits = read_edits(Path(data), goes.fixed, languages, collector)
    problems = collector.problems(skip=skip_bad_data, left=len(edits))
    if whose == "own" and (without := [one for one in dict.fromkeys((goes.fixed, *present)) if one not in words()]):
        raise AnalysisError(
            f"task 'mzsre' has no wording in {', '.join(without)}: leave the language out, or ask with the English one "
            "(template_language='en')"
        )
    return Task(
        name="mzsre",
        title="MzsRE",
        kind="cross-lingual knowledge editing",
        data=f"MzsRE (Wang et al. 2023), {len(edits):,} edits of {Path(data).name}.",
        languages=present,
        groups=in_context(partial(_groups, edits, goes, whose, chosen), shots, seed),
        parameters={
            "direction": str(goes),
            "template_language": whose,
            "templates": numbers(chosen),
            **shots_chosen(shots, seed),
        },
        problems=problems,
    )


def _groups(
    edits: Sequence[Edit], goes: Direction, whose: str, templates: Sequence[int], languages: Sequence[str]
) -> Iterator[Group]:
    return (_group(edit, goes, whose, template, languages) for edit in edits for template in templates)


def _group(edit: Edit, goes: Direction, whose: str, template: int, languages: Sequence[str]) -> Group:
    """An edit as a group; its rows are the languages told in, or asked in."""
    told = {language: goes.fixed if goes.told else language for language in languages}
    asked = {language: language if goes.told else goes.fixed for language in languages}
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
