"""Parallel groups: one example in several languages, the unit of every analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from neuroglot.errors import InvalidGroupError

UNSPACED_LANGUAGES = frozenset({"th", "zh"})
"""Languages written without spaces: their answers follow the prompt directly."""


def default_separator(language: str) -> str:
    """What stands between a prompt and its answer: a space, or nothing before Thai and Chinese answers."""
    return "" if language.split("-")[0].lower() in UNSPACED_LANGUAGES else " "


def _aliases(answer: str | Sequence[str]) -> tuple[str, ...]:
    return (answer,) if isinstance(answer, str) else tuple(answer)


@dataclass(frozen=True)
class Group:
    """One example in L languages, a row each.

    >>> Group({"en": "The capital of France is", "es": "La capital de Francia es"},
    ...       answers={"en": "Paris", "es": ["París", "Paris"]}).languages
    ('en', 'es')

    Attributes:
        prompts: the prompt of each language. One language is legal, but a neuron then has no type.
        answers: for each language the accepted answers, the gold one first. A string counts as one answer.
        id: the name under which the answer comes back; unique within a stream. Draws of random controls depend on it.
        separators: what stands between prompt and answer, by language; `default_separator` where none is given.
        cluster: examples that are not independent of each other share a cluster (three templates of one fact).
        choices: for each language the answers among which the most likely one is found (`true` and `false`).
        distractors: for each language a wrong answer, for effective scores relative to it.

    Raises:
        InvalidGroupError: no prompt, an empty prompt, answer, choice or distractor, one of these or a separator for a
            language without a prompt, or a separator that is neither a space nor nothing.
    """

    prompts: Mapping[str, str]
    answers: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    id: str = ""
    separators: Mapping[str, str] = field(default_factory=dict)
    cluster: str = ""
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    distractors: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the group before it costs a round trip, and bring answers and separators into one shape."""
        name = f"group {self.id!r}" if self.id else "the group"
        if not self.prompts:
            raise InvalidGroupError(f"{name} has no prompts: give at least one, {{'en': 'The capital of France is'}}")
        for language, prompt in self.prompts.items():
            if not prompt:
                raise InvalidGroupError(f"{name}: the prompt of {language!r} is empty: give at least one character")
        for what, by_language in (
            ("an answer", self.answers),
            ("a separator", self.separators),
            ("choices", self.choices),
            ("a distractor", self.distractors),
        ):
            for language in by_language:
                if language not in self.prompts:
                    raise InvalidGroupError(
                        f"{name} has {what} for {language!r} but no prompt in it: its languages are "
                        f"{', '.join(self.prompts)}"
                    )
        answers = {language: _aliases(answer) for language, answer in self.answers.items()}
        for language, aliases in answers.items():
            if not aliases or not all(aliases):
                raise InvalidGroupError(f"{name}: an answer of {language!r} is empty: give a word or leave it out")
        for language, choices in self.choices.items():
            if isinstance(choices, str) or not choices or not all(choices):
                raise InvalidGroupError(
                    f"{name}: the choices of {language!r} are {choices!r}: give a list of words, ['true', 'false']"
                )
        for language, distractor in self.distractors.items():
            if not distractor:
                raise InvalidGroupError(f"{name}: the distractor of {language!r} is empty: give a word or leave it out")
        for language, separator in self.separators.items():
            if separator not in ("", " "):
                raise InvalidGroupError(f"{name}: the separator of {language!r} is {separator!r}: give ' ' or ''")
        separators = {language: self.separators.get(language, default_separator(language)) for language in self.prompts}
        object.__setattr__(self, "prompts", dict(self.prompts))
        object.__setattr__(self, "answers", answers)
        object.__setattr__(self, "separators", separators)
        object.__setattr__(self, "choices", {language: tuple(choices) for language, choices in self.choices.items()})
        object.__setattr__(self, "distractors", dict(self.distractors))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the group, in the order of its rows."""
        return tuple(self.prompts)
