"""Prompts of given lengths: what random weights are asked is of no weight, how long it is is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

import neuroglot as ng

LANGUAGES = ("en", "de", "es", "fr", "pt", "ru", "th", "tr", "vi", "zh")

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
INFERENCE = {
    "en": (35, 39, 44, 52, 63, 70, 90),
    "de": (32, 40, 45, 53, 63, 70, 97),
    "es": (34, 38, 43, 51, 60, 69, 96),
    "fr": (32, 42, 49, 58, 70, 79, 102),
    "pt": (34, 38, 43, 51, 60, 69, 96),
    "ru": (33, 39, 45, 53, 63, 72, 99),
    "th": (30, 48, 57, 68, 84, 97, 135),
    "tr": (31, 36, 40, 45, 53, 58, 85),
    "vi": (38, 42, 47, 56, 70, 79, 102),
    "zh": (27, 31, 34, 37, 41, 45, 60),
}
"""Tokens of XNLI's test prompts in the paper's template, by quantile.

Of the first 300 examples, under a byte-level BPE of 16,384 tokens trained on them, which makes them a little shorter
than BLOOM's own does. XNLI has no Portuguese: it is taken to be as long as Spanish.
"""
TEMPLATE = 6
"""Tokens that begin every inference prompt: `Take the following as truth:`."""
FACT = (6, 16)
"""Tokens of a fact's prompt, least and most."""
EXAMPLE = 25
"""Tokens of one in-context example of an edit."""
EDIT = (24, 36)
"""Tokens of an edit and its question."""


class Prompter:
    """Makes texts of exactly so many tokens, for a bundle's tokenizer."""

    def __init__(self, bundle: Path, seed: int = 0) -> None:
        """Read the tokenizer; the same seed gives the same texts."""
        self._random = np.random.default_rng(seed)
        tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        spelled = (tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size()))
        words = [word for word in spelled if word.startswith(" ") and word.strip().isalpha()]
        self._words = [word for word in words if len(tokenizer.encode(word * 2).ids) == 2]

    def text(self, tokens: int) -> str:
        """A text of so many tokens."""
        return "".join(self._random.choice(self._words, tokens))

    def group(self, name: str, lengths: Sequence[int], beginnings: Sequence[str] | None = None) -> ng.Group:
        """A group whose rows have so many tokens after their beginnings, and an answer of one token each."""
        first = beginnings or [""] * len(lengths)
        labels = [LANGUAGES[row] if row < len(LANGUAGES) else f"row{row}" for row in range(len(lengths))]
        return ng.Group(
            {label: begin + self.text(n) for label, begin, n in zip(labels, first, lengths, strict=True)},
            answers={label: self.text(1).strip() for label in labels},
            separators=dict.fromkeys(labels, " "),  # so that an answer is one token in every language
            id=name,
        )

    def inferences(self, count: int) -> list[ng.Group]:
        """Groups of XNLI's lengths: parallel sentences are long or short together."""
        beginning = self.text(TEMPLATE)
        groups = []
        for index, place in enumerate(self._random.uniform(size=count)):
            near = np.clip(place + self._random.normal(0, 0.1, len(LANGUAGES)), 0, 1)
            lengths = [
                round(float(np.interp(one, QUANTILES, INFERENCE[language]))) - TEMPLATE
                for one, language in zip(near, LANGUAGES, strict=True)
            ]
            groups.append(self.group(f"inference-{index}", lengths, [beginning] * len(LANGUAGES)))
        return groups

    def facts(self, count: int) -> list[ng.Group]:
        """Groups of short prompts."""
        return [self.group(f"fact-{index}", self._lengths(FACT)) for index in range(count)]

    def edits(self, count: int, examples: int) -> list[ng.Group]:
        """Groups whose rows begin with in-context examples, the same for every group."""
        contexts = [self.text(EXAMPLE * examples) for _ in LANGUAGES]
        return [self.group(f"edit-{index}", self._lengths(EDIT), contexts) for index in range(count)]

    def endless_facts(self) -> Iterator[ng.Group]:
        """Short groups for as long as somebody takes them."""
        index = 0
        while True:
            yield self.group(f"endless-{index}", self._lengths(FACT))
            index += 1

    def _lengths(self, least_and_most: tuple[int, int]) -> list[int]:
        least, most = least_and_most
        return [int(n) for n in self._random.integers(least, most, len(LANGUAGES), endpoint=True)]
