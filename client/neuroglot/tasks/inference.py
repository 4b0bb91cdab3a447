"""`xnli`: natural language inference in the paper's wording (Appendix A.2)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from neuroglot.errors import AnalysisError
from neuroglot.request.groups import Group, default_separator
from neuroglot.tasks.capital_prompts import distractor, label_words, task_file
from neuroglot.tasks.chosen import chosen_template_language, chosen_templates
from neuroglot.tasks.inference_files import Example, read_examples
from neuroglot.tasks.problems import Collector
from neuroglot.tasks.shots import in_context
from neuroglot.tasks.task import Task, numbers, shots_chosen

TEMPLATE_LANGUAGE = "en"
"""The paper gives an English prompt only, and its released code uses it around the texts of every language."""


@cache
def wordings() -> Mapping[str, tuple[str, ...]]:
    """Return the prompts by language, the paper's first, with placeholders for premise, hypothesis and three labels."""
    return {language: tuple(prompts) for language, prompts in json.loads(task_file("xnli.json")).items()}


def xnli(
    data: Path,
    *,
    languages: Sequence[str] = (),
    template_language: str = "",
    templates: Sequence[int] = (),
    shots: int = 0,
    seed: int = 0,
    skip_bad_data: bool = False,
) -> Task:
    """`xnli`: whether a hypothesis is true, false or inconclusive given a premise.

    Args:
        data: the official `xnli.test.tsv`, or a folder with it or with a `test-LANGUAGE.tsv` for each language.
        languages: languages to read; by default the paper's languages in the data.
        template_language: `en` (default) for the English wording and labels around the texts of every language; `own`
            for each language's wording and labels.
        templates: indices of the wordings: 0 (the paper's, the default), 1 and 2.
        shots: number of in-context examples before every prompt, with alternating labels.
        seed: seed of their choice.
        skip_bad_data: leave out erroneous entries of the files instead of raising an error.

    Raises:
        AnalysisError: a wording does not exist, or a language has none.
        DataError: the files do not exist, or have errors.
    """
    whose = chosen_template_language(template_language, TEMPLATE_LANGUAGE, "xnli")
    chosen = chosen_templates(templates, len(wordings()["en"]), (0,), "xnli")
    collector = Collector()
    examples = read_examples(Path(data), languages, collector)
    problems = collector.problems(skip=skip_bad_data, left=len(examples))
    present = tuple(examples[0].pairs)
    if whose == "own" and (without := [one for one in present if one not in wordings()]):
        raise AnalysisError(
            f"task 'xnli' has no wording in {', '.join(without)}: leave the language out, or use the English wording "
            "(template_language='en')"
        )
    return Task(
        name="xnli",
        title="XNLI",
        kind="natural language inference",
        data=f"XNLI (Conneau et al. 2018; CC BY-NC 4.0), {len(examples):,} examples of {Path(data).name}.",
        languages=present,
        groups=in_context(partial(_groups, examples, whose, chosen), shots, seed),
        parameters={"template_language": whose, "templates": numbers(chosen), **shots_chosen(shots, seed)},
        problems=problems,
    )


def _groups(
    examples: Sequence[Example], whose: str, templates: Sequence[int], languages: Sequence[str]
) -> Iterator[Group]:
    worded = {language: language if whose == "own" else whose for language in languages}
    return (_group(example, template, worded) for example in examples for template in templates)


def _group(example: Example, template: int, worded: Mapping[str, str]) -> Group:
    """Convert an example to a group; `worded` is the language of each row's wording."""
    labels = {language: label_words(wording) for language, wording in worded.items()}
    pairs = example.pairs
    right = next(iter(pairs.values())).label
    prompts = {
        language: wordings()[wording][template].format(
            premise=pairs[language].premise,
            hypothesis=pairs[language].hypothesis,
            true=labels[language]["true"],
            false=labels[language]["false"],
            inconclusive=labels[language]["inconclusive"],
        )
        for language, wording in worded.items()
    }
    return Group(
        prompts,
        answers={language: words[right] for language, words in labels.items()},
        id=f"{example.name}/{template}",
        separators={language: default_separator(wording) for language, wording in worded.items()},
        cluster=example.cluster,
        choices={language: tuple(words.values()) for language, words in labels.items()},
        distractors={language: words[distractor(right)] for language, words in labels.items()},
    )
