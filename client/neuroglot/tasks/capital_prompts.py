"""Capitals in ten languages: fact probing, cross-lingual knowledge editing and natural language inference.

One table of 130 sovereign states and their capitals, named in every language by Unicode CLDR, gives three tasks that
have the form of the paper's (its Appendix A.2), with prompts short enough for a model of a million parameters:

    fact        The capital of France is|                                                      Paris
    edit        The capital of France is Tokyo. La capital de Francia es|                       Tokio
    inference   The capital of France is Tokyo. Claim: The capital city of France is Rome. The claim is|   false

`groups`, `edits` and `inferences` yield parallel groups, ready to be analysed. The functions on single rows below them
(`fact`, `edit`, `inference`) are what the embedded models are trained on, so there is one wording of every prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import islice
from typing import Literal, NamedTuple, get_args

from neuroglot.request.groups import Group, default_separator

LANGUAGES = ("en", "de", "es", "fr", "pt", "ru", "th", "tr", "vi", "zh")
"""The languages of the paper, in its order."""

SAME_NAME = frozenset({"DJ", "LU", "MC", "SG"})
"""States with the name of their capital in every language, left out because copying the name would be right."""

Label = Literal["true", "false", "inconclusive"]
LABELS: tuple[Label, ...] = get_args(Label)

_FULL_STOPS = {"th": "", "zh": "。"}  # every other language ends a statement with "."

_PREMISE_TEMPLATE = 0
_HYPOTHESIS_TEMPLATE = 1  # another wording than the premise's, so that "true" is not a copy of it

HELD_OUT_EDITS = 1000
_HELD_OUT_SEED = "neuroglot capitals 1"


@dataclass(frozen=True)
class State:
    """A sovereign state and its capital.

    Attributes:
        territory: two-letter ISO 3166 code, the key of the state and of its capital.
        country: the state's name by language.
        capital: the capital's name by language.
    """

    territory: str
    country: Mapping[str, str]
    capital: Mapping[str, str]


class Row(NamedTuple):
    """A prompt in one language and the answer that should follow it, after the separator."""

    prompt: str
    separator: str
    answer: str


class Edit(NamedTuple):
    """A counterfactual stated in one language and questioned in another.

    Attributes:
        country: territory code of the state.
        city: territory code of the state whose capital replaces the true one.
        context: language of the counterfactual statement.
        question: language of the question and of its answer.
        template: index of the wording of the question.
    """

    country: str
    city: str
    context: str
    question: str
    template: int


@cache
def states() -> Mapping[str, State]:
    """Every state, by territory code."""
    records = map(json.loads, task_file("capitals.jsonl").splitlines())
    return {r["territory"]: State(r["territory"], r["country"], r["capital"]) for r in records}


@cache
def templates() -> Mapping[str, tuple[str, ...]]:
    """The wordings of the question by language; `{X}` stands for the country and the answer follows the end."""
    return {language: tuple(wordings) for language, wordings in json.loads(task_file("templates.json")).items()}


@cache
def _inference_prompts() -> Mapping[str, str]:
    """The prompt of an inference by language, with `{premise}` and `{hypothesis}`."""
    return {language: form["prompt"] for language, form in json.loads(task_file("inferences.json")).items()}


@cache
def label_words(language: str) -> Mapping[Label, str]:
    """Return the words of a language for the three labels of an inference.

    >>> label_words("de")["inconclusive"]
    'ungewiss'
    """
    labels: Mapping[Label, str] = json.loads(task_file("inferences.json"))[language]["labels"]
    return labels


def task_file(name: str) -> str:
    """Read a packaged data file of the tasks."""
    return (resources.files("neuroglot.tasks") / "data" / name).read_text(encoding="utf-8")


def fact(country: str, language: str, template: int = 0) -> Row:
    """Ask for the capital of a state.

    >>> fact("FR", "es")
    Row(prompt='La capital de Francia es', separator=' ', answer='París')
    """
    return _question(country, country, language, template)


def edit(country: str, city: str, context: str, question: str, template: int = 0) -> Row:
    """Tell a counterfactual in one language, then ask for it in another.

    >>> edit("FR", "JP", "en", "es")
    Row(prompt='The capital of France is Tokyo. La capital de Francia es', separator=' ', answer='Tokio')
    """
    told = statement(country, city, context, _PREMISE_TEMPLATE)
    asked = _question(country, city, question, template)
    # Chinese closes a sentence with a full-width stop and no space; Thai has no stop and parts sentences by a space.
    gap = "" if context == "zh" else " "
    return Row(told + gap + asked.prompt, asked.separator, asked.answer)


def inference(premise: tuple[str, str], hypothesis: tuple[str, str], language: str) -> Row:
    """Ask whether a hypothesis follows from a premise, both of them pairs of a country and a city (territory codes).

    >>> inference(("FR", "JP"), ("FR", "IT"), "en").prompt
    'The capital of France is Tokyo. Claim: The capital city of France is Rome. The claim is'
    """
    prompt = _inference_prompts()[language].format(
        premise=statement(*premise, language, _PREMISE_TEMPLATE),
        hypothesis=statement(*hypothesis, language, _HYPOTHESIS_TEMPLATE),
    )
    return Row(prompt, default_separator(language), label_words(language)[label(premise, hypothesis)])


def label(premise: tuple[str, str], hypothesis: tuple[str, str]) -> Label:
    """Return whether the hypothesis follows from the premise; premises about other states are inconclusive."""
    if premise[0] != hypothesis[0]:
        return "inconclusive"
    return "true" if premise[1] == hypothesis[1] else "false"


def distractor(right: Label) -> Label:
    """Return the wrong label to compare with: the cyclically next one, so that each label is as often wrong as right.

    >>> [distractor(label) for label in LABELS]
    ['false', 'inconclusive', 'true']
    """
    return LABELS[(LABELS.index(right) + 1) % len(LABELS)]


def statement(country: str, city: str, language: str, template: int = 0) -> str:
    """A sentence that names a city as the capital of a state.

    >>> statement("FR", "JP", "zh")
    '法国的首都是东京。'
    """
    asked = _question(country, city, language, template)
    return asked.prompt + asked.separator + asked.answer + _FULL_STOPS.get(language, ".")


def _question(country: str, city: str, language: str, template: int) -> Row:
    prompt = templates()[language][template].replace("{X}", states()[country].country[language])
    return Row(prompt, default_separator(language), states()[city].capital[language])


@cache
def held_out_edits() -> tuple[Edit, ...]:
    """The 1,000 fixed edits that no embedded model was trained on, in any pair of languages.

    Each has its own pair of country and city. The draw orders all pairs by a hash rather than by a random generator,
    so that it is the same under every version of Python.
    """
    territories = tuple(states())
    pairs = sorted(
        (_draw(country, city), country, city) for country in territories for city in territories if country != city
    )
    return tuple(_held_out_edit(number, country, city) for number, country, city in pairs[:HELD_OUT_EDITS])


def _held_out_edit(number: int, country: str, city: str) -> Edit:
    number = _draw(country, city, str(number))
    number, context = divmod(number, len(LANGUAGES))
    number, step = divmod(number, len(LANGUAGES) - 1)
    question = LANGUAGES[(context + 1 + step) % len(LANGUAGES)]
    return Edit(country, city, LANGUAGES[context], question, number % len(templates()[question]))


def _draw(*key: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join((_HELD_OUT_SEED, *key)).encode()).digest()[:8], "big")


@cache
def held_out_pairs() -> frozenset[tuple[str, str]]:
    """The pairs of country and city of the held-out edits: no training prompt contains one."""
    return frozenset((held_out.country, held_out.city) for held_out in held_out_edits())


def groups(
    languages: Sequence[str] = LANGUAGES,
    limit: int | None = None,
    templates: Sequence[int] | None = None,
    skip: Collection[str] = SAME_NAME,
) -> Iterator[Group]:
    """Fact probing: one group for each state and wording, with the id `FR/0` and the cluster `FR`.

    Args:
        languages: languages of every group, in this order.
        limit: maximum number of groups; None for all.
        templates: indices of the wordings; all by default.
        skip: states to leave out.
    """
    wordings = range(_wordings(languages)) if templates is None else templates
    return islice(_facts(languages, wordings, skip), limit)


def _facts(languages: Sequence[str], wordings: Sequence[int], skip: Collection[str]) -> Iterator[Group]:
    for territory in states():
        if territory not in skip:
            for template in wordings:
                rows = {language: fact(territory, language, template) for language in languages}
                yield _group(rows, f"{territory}/{template}", territory)


def edits(
    context: str | None = "en",
    question: str | None = None,
    languages: Sequence[str] = LANGUAGES,
    limit: int | None = None,
) -> Iterator[Group]:
    """Cross-lingual knowledge editing with the held-out pairs of country and city, one group for each.

    Either the language of the context is fixed, with one row a language of the question (the paper's EN -> ALL), or
    the language of the question is fixed, with one row a language of the context (ALL -> EN). The fixed language has no
    row. The true capital is the distractor.

    Args:
        context: language of the counterfactual; None where `question` is given.
        question: language of the question; None where `context` is given.
        languages: the rows, in this order.
        limit: maximum number of groups; None for all.

    Raises:
        ValueError: both or neither of the languages are given.
    """
    if (context is None) == (question is None):
        raise ValueError(f"give either the context's language or the question's, got {context!r} and {question!r}")
    return islice(_edits(context, question, languages), limit)


def _edits(context: str | None, question: str | None, languages: Sequence[str]) -> Iterator[Group]:
    for country, city, _, _, template in held_out_edits():
        rows = {
            language: edit(country, city, context or language, question or language, template)
            for language in languages
            if language not in (context, question)
        }
        true = states()[country].capital
        distractors = {language: true[question or language] for language in rows}
        yield replace(_group(rows, f"{country}>{city}/{template}", country), distractors=distractors)


def inferences(languages: Sequence[str] = LANGUAGES, limit: int | None = None) -> Iterator[Group]:
    """Natural language inference: premises are the held-out pairs, labels alternate, and each row is in one language.

    The labels are the choices, and the distractor is the label after the right one (`distractor`).
    """
    return islice(_inferences(languages), limit)


def _inferences(languages: Sequence[str]) -> Iterator[Group]:
    for premise, hypothesis in held_out_inferences():
        rows = {language: inference(premise, hypothesis, language) for language in languages}
        wrong = distractor(label(premise, hypothesis))
        yield replace(
            _group(rows, f"{'>'.join(premise)}:{'>'.join(hypothesis)}", premise[0]),
            choices={language: tuple(label_words(language).values()) for language in languages},
            distractors={language: label_words(language)[wrong] for language in languages},
        )


@cache
def held_out_inferences() -> tuple[tuple[tuple[str, str], tuple[str, str]], ...]:
    """Premise and hypothesis of one inference for each held-out pair: true, false and inconclusive in turn."""
    held_out = held_out_edits()
    found = []
    for i, (country, city, *_) in enumerate(held_out):
        other = next(e for e in held_out[i + 1 :] + held_out if e.country != country and e.city != city)
        wrong = country if i % 2 else other.city  # half of the false claims are true in the world
        hypothesis = ((country, city), (country, wrong), (other.country, other.city))[i % len(LABELS)]
        found.append(((country, city), hypothesis))
    return tuple(found)


def _wordings(languages: Sequence[str]) -> int:
    return min(len(templates()[language]) for language in languages)


def _group(rows: Mapping[str, Row], name: str, cluster: str) -> Group:
    return Group(
        {language: row.prompt for language, row in rows.items()},
        {language: row.answer for language, row in rows.items()},
        name,
        {language: row.separator for language, row in rows.items()},
        cluster,
    )
