"""Keys and values of a prompt's first tokens, which depend on nothing else in a causal model: known in blocks.

A block is known by its own tokens and all before them, so prompts that begin alike share their first blocks: those of a
task's template, or of its examples. The tokens after the last whole block are a block of their own, which only the same
tokens share. Of the block in which prompts part, those that come later take the first tokens, as far as they are alike.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import pairwise, takewhile
from typing import NamedTuple

from neuroglot_server.cache.step_cache import Continuation, Key, Link, Whole
from neuroglot_server.engine.steps import BLOCK, NO_TOKENS, KeyValues, RowStep, StepResult


class Prefix(NamedTuple):
    """The first tokens of a prompt, without its last one and without any intervention."""

    tokens: tuple[int, ...]
    cache: str = "prefix"

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Where its blocks begin and end."""
        return list(pairwise((*range(0, len(self.tokens), BLOCK), len(self.tokens))))

    @property
    def links(self) -> Sequence[Link]:
        """Its blocks; the key of each is a hash of all tokens up to its end."""
        found: list[Link] = []
        digest, before = blake2b(digest_size=16), None
        for start in range(0, len(self.tokens), BLOCK):
            ids = self.tokens[start : start + BLOCK]
            digest.update(array("q", ids))
            key = digest.digest()
            found.append(Link(key, len(ids), None if before is None else Continuation(before, ids)))
            before = key
        return found

    def rest(self, found: Sequence[StepResult], begun: KeyValues = NO_TOKENS) -> RowStep:
        """The step over the tokens after those that were found."""
        past = joined(found).extended(begun)
        new = self.tokens[past.length :]
        return RowStep(new, past=past, focus=len(new), keep=True)

    def split(
        self, result: StepResult, found: Sequence[StepResult], begun: KeyValues = NO_TOKENS
    ) -> Sequence[StepResult]:
        """The new blocks, each by itself, so that one of them does not hold on to the others."""
        assert result.kept is not None
        kept = begun.copied().extended(result.kept)
        bounds = self.bounds[len(found) :]
        first = bounds[0][0]
        return [StepResult(True, kept=kept.part(start - first, stop - first)) for start, stop in bounds]

    def worth_waiting(self, running: int, left: int) -> bool:
        """Where it spares at least half of what is left: a step of its own would take about as long as the wait."""
        return 2 * running >= left


class Opening(NamedTuple):
    """The first tokens of a prompt as a `Prefix`, and in the same pass the step with which its answer begins.

    Attributes:
        prefix: what is to be known by itself.
        unread: those of the prompt between the prefix and its last token.
        answer: a step without a past, whose first token is the prompt's last and its focus.
    """

    prefix: Prefix
    unread: tuple[int, ...]
    answer: Whole
    cache: str = "prefix"

    @property
    def links(self) -> Sequence[Link]:
        """Those of the prefix, and the answer's."""
        (answer,) = self.answer.links
        return (*self.prefix.links, Link(answer.key, len(self.unread) + answer.tokens))

    def rest(self, found: Sequence[StepResult], begun: KeyValues = NO_TOKENS) -> RowStep:
        """The step over all tokens after those that were found."""
        past, step = joined(found).extended(begun), self.answer.step
        before = (*self.prefix.tokens[past.length :], *self.unread)
        keep = step.keep or past.length < len(self.prefix.tokens)
        return step._replace(tokens=(*before, *step.tokens), past=past, focus=len(before), keep=keep)

    def split(
        self, result: StepResult, found: Sequence[StepResult], begun: KeyValues = NO_TOKENS
    ) -> Sequence[StepResult]:
        """The new blocks, which are as they are whatever the last token gave, and the answer's beginning."""
        blocks = self.prefix.split(result, found, begun) if len(found) < len(self.prefix.bounds) else ()
        step, kept = self.answer.step, None
        if step.keep:
            assert result.kept is not None
            kept = result.kept.part(result.kept.length - len(step.tokens), result.kept.length)
        return (*blocks, result if kept is result.kept else replace(result, kept=kept))

    def worth_waiting(self, running: int, left: int) -> bool:
        """As for a prefix."""
        return self.prefix.worth_waiting(running, left)


class PrefixCounter:
    """Which blocks prompts began with of late: what many share is told from what is seen once."""

    def __init__(self, most: int = 2**16) -> None:
        """Remember so many blocks."""
        self._most = most
        self._times: OrderedDict[Key, int] = OrderedDict()

    @staticmethod
    def keys(prefix: Prefix, tenant: str) -> list[Key]:
        """Those of a prefix's whole blocks, by which a tenant's are known."""
        return [(tenant, link.key) for link in prefix.links if link.key is not None and link.tokens == BLOCK]

    def note(self, keys: Iterable[Key]) -> None:
        """See a prompt's beginning."""
        for key in keys:
            self._times[key] = self._times.get(key, 0) + 1
            self._times.move_to_end(key)
        while len(self._times) > self._most:
            self._times.popitem(last=False)

    def shared(self, keys: Iterable[Key]) -> int:
        """How many of a prompt's first tokens were seen more than once, in whole blocks."""
        known = takewhile(lambda key: self._times.get(key, 0) > 1, keys)
        return BLOCK * len(list(known))


def joined(blocks: Sequence[StepResult]) -> KeyValues:
    """The keys and values of blocks that follow each other."""
    whole = NO_TOKENS
    for block in blocks:
        assert block.kept is not None
        whole = whole.extended(block.kept)
    return whole
