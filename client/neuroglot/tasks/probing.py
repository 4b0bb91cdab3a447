"""`mpararel`: facts in several wordings and languages (mParaRel, Fierro and Søgaard 2022)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from neuroglot import arguments
from neuroglot.errors import AnalysisError
from neuroglot.request.groups import Group
from neuroglot.tasks.chosen import chosen_templates
from neuroglot.tasks.probing_files import Fact, Relation, languages_of, read_relation
from neuroglot.tasks.problems import Collector
from neuroglot.tasks.shots import in_context
from neuroglot.tasks.task import Task, numbers, shots_chosen

CAPITAL_OF = "P36"
"""The relation that the paper probes."""

PARAPHRASES = 3
"""Default number of wordings, if every language has that many: "at least three" in the paper."""


def mpararel(
    data: Path,
    *,
    languages: Sequence[str] = (),
    relations: Sequence[str] = (),
    templates: Sequence[int] = (),
    shots: int = 0,
    seed: int = 0,
    skip_bad_data: bool = False,
) -> Task:
    """`mpararel`: the object of a fact.

    Wordings are those of the patterns that end in `[Y]`, in each language's own order, those first that a person has
    checked: the same number is not the same paraphrase in two languages.

    Args:
        data: the folder of mParaRel, with `patterns/` and `tuples/`.
        languages: which ones to read; by default those of the paper that have the relations. Chinese is `zh`.
        relations: by name; `P36`, capitals, by default.
        templates: indices of the wordings; by default the first three, or all if a language has fewer.
        shots: number of in-context examples before every prompt.
        seed: seed of their choice.
        skip_bad_data: leave out erroneous entries, and facts that a language lacks, instead of raising an error.

    Raises:
        AnalysisError: a wording does not exist.
        DataError: the files do not exist, or have errors.
    """
    relations = arguments.texts("relations", relations, "a list of relations, ['P36']", AnalysisError)
    folder, names = Path(data), tuple(dict.fromkeys(relations)) or (CAPITAL_OF,)
    chosen_languages = languages_of(folder, names, languages)
    collector = Collector()
    read = [read_relation(folder, name, chosen_languages, collector) for name in names]
    facts = sum(len(relation.facts) for relation in read)
    problems = collector.problems(skip=skip_bad_data, left=facts)
    wordings = min(len(patterns) for relation in read for patterns in relation.patterns.values())
    chosen = chosen_templates(templates, wordings, range(min(wordings, PARAPHRASES)), "mpararel")
    return Task(
        name="mpararel",
        title="mParaRel",
        kind="fact probing",
        data=f"mParaRel (Fierro and Søgaard 2022), {facts:,} facts of {', '.join(names)}.",
        languages=chosen_languages,
        groups=in_context(partial(_groups, read, chosen), shots, seed),
        parameters={"relations": ", ".join(names), "templates": numbers(chosen), **shots_chosen(shots, seed)},
        problems=problems,
    )


def _groups(relations: Sequence[Relation], templates: Sequence[int], languages: Sequence[str]) -> Iterator[Group]:
    for relation in relations:
        accepted = _accepted(relation.facts)
        names = list(relation.facts)
        for index, name in enumerate(names):
            following = (relation.facts[other] for other in (*names[index + 1 :], *names[:index]))
            other = next((facts for facts in following if _differs(facts, accepted[name])), None)
            for template in templates:
                yield _group(relation, name, template, languages, accepted[name], other)


def _accepted(facts: Mapping[str, Mapping[str, Fact]]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return all objects of a fact's subject by line id and language, the fact's own first."""
    objects: dict[tuple[str, str], list[str]] = defaultdict(list)
    for by_language in facts.values():
        for language, fact in by_language.items():
            objects[language, fact.subject].append(fact.object)
    return {
        name: {
            language: tuple(dict.fromkeys((fact.object, *objects[language, fact.subject])))
            for language, fact in by_language.items()
        }
        for name, by_language in facts.items()
    }


def _differs(facts: Mapping[str, Fact], accepted: Mapping[str, Sequence[str]]) -> bool:
    return all(fact.object not in accepted[language] for language, fact in facts.items())


def _group(
    relation: Relation,
    name: str,
    template: int,
    languages: Sequence[str],
    accepted: Mapping[str, Sequence[str]],
    other: Mapping[str, Fact] | None,
) -> Group:
    """Convert a fact in one wording to a group; a wrong object of another fact is the distractor, if there is one."""
    facts = relation.facts[name]
    patterns = {language: relation.patterns[language][template] for language in languages}
    subject = facts[languages[0]].entities[0] or name
    return Group(
        {language: pattern.prompt.replace("[X]", facts[language].subject) for language, pattern in patterns.items()},
        answers={language: accepted[language] for language in languages},
        id=f"{relation.name}/{name}/{template}",
        separators={language: pattern.separator for language, pattern in patterns.items()},
        cluster=f"{relation.name}/{subject}",
        distractors={language: other[language].object for language in languages} if other else {},
    )
