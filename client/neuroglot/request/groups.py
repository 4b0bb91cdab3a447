"""Parallel groups: an example in several languages, the unit of every analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from neuroglot import arguments
from neuroglot.errors import InvalidGroupError

UNSPACED_LANGUAGES = frozenset({"th", "zh"})
"""Languages written without spaces: their answers follow the prompt directly."""

_LARGEST_TOKEN_ID = 2**32 - 1


def default_separator(language: str) -> str:
    """Return the separator between prompt and answer: a space, or the empty string for Thai and Chinese."""
    return "" if language.split("-")[0].lower() in UNSPACED_LANGUAGES else " "


@dataclass(frozen=True)
class Group:
    """A parallel group: one example in L languages, one row per language.

    >>> Group({"en": "The capital of France is", "es": "La capital de Francia es"},
    ...       answers={"en": "Paris", "es": ["París", "Paris"]}).languages
    ('en', 'es')

    Attributes:
        prompts: prompt of each language: text, or token ids, which are used unchanged. A group of one language is
            valid, but its neurons have no types.
        answers: accepted answers of each language, the gold answer first. A string is a single answer.
        id: id of the group's result; unique within a stream. Draws of random controls depend on it.
        separators: text between prompt and answer of each language, `" "` or `""`; by default `default_separator`.
        cluster: name shared by examples that are not independent of each other (three templates of one fact).
        choices: candidate answers of each language, which are ranked by likelihood (`true` and `false`).
        distractors: a wrong answer of each language, for effective scores relative to it.

    Raises:
        InvalidGroupError: an argument has the wrong type; there is no prompt; a prompt, answer, choice or distractor is
            empty; one of these or a separator is given for a language without a prompt; or a separator is neither a
            space nor the empty string.
    """

    prompts: Mapping[str, str | Sequence[int]]
    answers: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    id: str = ""
    separators: Mapping[str, str] = field(default_factory=dict)
    cluster: str = ""
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    distractors: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the group before it is sent, and normalise its fields."""
        arguments.text("the id of a group", self.id, InvalidGroupError)
        name = f"group {self.id!r}" if self.id else "the group"
        arguments.text(f"the cluster of {name}", self.cluster, InvalidGroupError)
        prompts = self._by_language("prompts", "{'en': 'The capital of France is'}")
        if not prompts:
            raise InvalidGroupError(f"{name} has no prompts: give at least one, {{'en': 'The capital of France is'}}")
        prompts = {
            language: prompt_of(f"{name}: the prompt of {language!r}", given) for language, given in prompts.items()
        }
        answers = {
            language: _answers(f"{name}: an answer of {language!r}", given)
            for language, given in self._of_prompts("answers", "{'en': 'Paris'}").items()
        }
        choices = {
            language: _choices(f"{name}: the choices of {language!r}", given)
            for language, given in self._of_prompts("choices", "{'en': ['true', 'false']}").items()
        }
        distractors = {
            language: _word(f"{name}: the distractor of {language!r}", given)
            for language, given in self._of_prompts("distractors", "{'en': 'London'}").items()
        }
        given_separators = self._of_prompts("separators", "{'en': ' '}")
        for language, separator in given_separators.items():
            if not isinstance(separator, str) or separator not in ("", " "):
                raise arguments.refuse(
                    f"{name}: the separator of {language!r}", separator, "' ' or ''", InvalidGroupError
                )
        separators = {language: given_separators.get(language, default_separator(language)) for language in prompts}
        object.__setattr__(self, "prompts", prompts)
        object.__setattr__(self, "answers", answers)
        object.__setattr__(self, "separators", separators)
        object.__setattr__(self, "choices", choices)
        object.__setattr__(self, "distractors", distractors)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the group, in the order of its rows."""
        return tuple(self.prompts)

    def _by_language(self, what: str, example: str) -> dict[str, object]:
        """Return a field as a dict by language."""
        name = f"group {self.id!r}" if self.id else "the group"
        expected = f"a mapping from language to text, {example}"
        return dict(arguments.mapping(f"{what} of {name}", getattr(self, what), expected, InvalidGroupError))

    def _of_prompts(self, what: str, example: str) -> dict[str, object]:
        """Return a field as a dict by language; every language must have a prompt."""
        given = self._by_language(what, example)
        for language in given:
            if language not in self.prompts:
                name = f"group {self.id!r}" if self.id else "the group"
                raise InvalidGroupError(
                    f"{name} has {what} for {language!r} but no prompt in it: its languages are "
                    f"{', '.join(self.prompts)}"
                )
        return given


def prompt_of(name: str, value: object) -> str | tuple[int, ...]:
    """Check a prompt: text, or token ids.

    Args:
        name: name of the prompt, for the error message.
        value: the argument.

    Raises:
        InvalidGroupError: the value is neither text nor token ids, or is empty.
    """
    expected = "text or a list of token ids"
    if isinstance(value, str):
        if not value:
            raise InvalidGroupError(f"{name} is empty: give at least one character or one token id")
        return arguments.text(name, value, InvalidGroupError)
    ids = arguments.integers(name, value, expected, InvalidGroupError)
    if not ids:
        raise InvalidGroupError(f"{name} is empty: give at least one character or one token id")
    for token in ids:
        if not 0 <= token <= _LARGEST_TOKEN_ID:
            raise InvalidGroupError(f"{name} has the token id {token}: ids are 0 to {_LARGEST_TOKEN_ID}")
    return ids


def _answers(name: str, value: object) -> tuple[str, ...]:
    aliases = (
        (value,) if isinstance(value, str) else arguments.items(name, value, "a word or several", InvalidGroupError)
    )
    if not aliases:
        raise InvalidGroupError(f"{name} is empty: give a word or leave it out")
    return tuple(_word(name, alias) for alias in aliases)


def _choices(name: str, value: object) -> tuple[str, ...]:
    expected = "a list of words, ['true', 'false']"
    choices = arguments.texts(name, value, expected, InvalidGroupError)
    if not choices or not all(choices):
        raise arguments.refuse(name, value, expected, InvalidGroupError)
    return choices


def _word(name: str, value: object) -> str:
    word = arguments.text(name, value, InvalidGroupError)
    if not word:
        raise InvalidGroupError(f"{name} is empty: give a word or leave it out")
    return word
