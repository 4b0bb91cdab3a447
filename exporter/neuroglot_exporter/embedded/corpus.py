"""Training data of the embedded models: the tokenizer's texts and the rows of three tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from neuroglot.request.groups import default_separator
from neuroglot.tasks import capital_prompts as capitals
from neuroglot.tasks.capital_prompts import LANGUAGES, Edit, Row

_UNSHARED = frozenset({"ru", "th", "zh"})
_UNSHARED_WEIGHT = 2

TASKS = ("facts", "edits", "inferences")


def tokenizer_texts() -> Iterator[str]:
    """The pieces of all facts, each by itself, so that no token spans the end of a wording and the start of a name.

    Languages whose names no other language shares come more often, or they would be cut into the shortest tokens.
    """
    for language in LANGUAGES:
        for wording in capitals.templates()[language]:
            head, tail = wording.split("{X}")
            space = " " if head.endswith(" ") else ""
            for state in capitals.states().values():
                names = (space + state.country[language], default_separator(language) + state.capital[language])
                yield from names * _UNSHARED_WEIGHT if language in _UNSHARED else names
                yield from (head.rstrip(), " " + head.rstrip(), tail)
        for label in capitals.label_words(language).values():
            yield from 40 * (default_separator(language) + label,)
        yield from 40 * (capitals.inference(("FR", "FR"), ("FR", "FR"), language).prompt,)


class Corpus:
    """An endless stream of training rows; it never names a held-out pair of country and city."""

    def __init__(self, seed: str) -> None:
        """Start the stream that belongs to a seed."""
        self._random = Random(seed)
        self._territories = tuple(capitals.states())

    def rows(self, task: str, count: int) -> list[Row]:
        """The next rows of a task, one of `TASKS`."""
        draws: dict[str, Callable[[], Row]] = {
            "facts": lambda: capitals.fact(*self.fact()),
            "edits": lambda: capitals.edit(*self.edit()),
            "inferences": lambda: capitals.inference(*self.inference()),
        }
        return [draws[task]() for _ in range(count)]

    def fact(self) -> tuple[str, str, int]:
        """Draw a state, a language and a wording."""
        language = self._language()
        return self._territory(), language, self._template(language)

    def edit(self) -> Edit:
        """Draw a counterfactual, a language to tell it in and another to ask in."""
        context, question = self._random.sample(LANGUAGES, 2)
        country, city = self._counterfactual()
        return Edit(country, city, context, question, self._template(question))

    def inference(self) -> tuple[tuple[str, str], tuple[str, str], str]:
        """Draw a premise, a hypothesis for one of the labels, and a language.

        Half of the premises are true in the world, and so are half of the false hypotheses about other premises: only
        the premise tells.
        """
        country, city = self._counterfactual()
        if self._random.random() < 0.5:
            city = country
        label = self._random.choice(capitals.LABELS)
        hypothesis = (country, city)
        while capitals.label((country, city), hypothesis) != label or hypothesis in capitals.held_out_pairs():
            hypothesis = self._hypothesis(country, label)
        return (country, city), hypothesis, self._language()

    def _hypothesis(self, country: str, label: str) -> tuple[str, str]:
        if label == "inconclusive":
            return self._territory(), self._territory()
        return country, country if self._random.random() < 0.5 else self._territory()

    def _counterfactual(self) -> tuple[str, str]:
        pair = self._territory(), self._territory()
        while pair[0] == pair[1] or pair in capitals.held_out_pairs():
            pair = self._territory(), self._territory()
        return pair

    def _territory(self) -> str:
        return self._random.choice(self._territories)

    def _language(self) -> str:
        return self._random.choice(LANGUAGES)

    def _template(self, language: str) -> int:
        return self._random.randrange(len(capitals.templates()[language]))
