"""Prefix cache: keys and values of prompt prefixes in a causal model, in blocks of `BLOCK` tokens.

A block's key is a hash of its own tokens and all tokens before it, so prompts with the same template or few-shot
examples share their first blocks. The tokens after the last whole block form a shorter block, which only prompts with
exactly these tokens share. Where two prompts fork inside a block, the later one reuses the block's first tokens as far
as they are equal (see `BranchIndex`).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import pairwise, takewhile
from typing import NamedTuple

from neuroglot_server.cache.branch_index import Key
from neuroglot_server.cache.step_cache import Branch, Link, WholeStep
from neuroglot_server.engine.steps import BLOCK, NO_TOKENS, KeyValues, RowStep, StepResult


class Prefix(NamedTuple):
    """The prefill of a prompt prefix that excludes the prompt's last token, without interventions.

    Attributes:
        tokens: the prefix.
        cache: the name under which hits and misses are counted.
    """

    tokens: tuple[int, ...]
    cache: str = "prefix"

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Start and end of each block, in tokens."""
        return list(pairwise((*range(0, len(self.tokens), BLOCK), len(self.tokens))))

    @property
    def links(self) -> Sequence[Link]:
        """Its blocks; the key of each is a hash of all tokens up to its end."""
        found: list[Link] = []
        digest, parent = blake2b(digest_size=16), None
        for start in range(0, len(self.tokens), BLOCK):
            ids = self.tokens[start : start + BLOCK]
            digest.update(array("q", ids))
            key = digest.digest()
            found.append(Link(key, len(ids), None if parent is None else Branch(parent, ids)))
            parent = key
        return found

    def rest(self, found: Sequence[StepResult], partial_hit: KeyValues = NO_TOKENS) -> RowStep:
        """Build the step over the tokens after the cached ones."""
        past = joined(found).extended(partial_hit)
        new = self.tokens[past.length :]
        return RowStep(new, past=past, focus=len(new), keep=True)

    def split(
        self, result: StepResult, found: Sequence[StepResult], partial_hit: KeyValues = NO_TOKENS
    ) -> Sequence[StepResult]:
        """Split a result into the new blocks, each with memory of its own: evicting one frees its bytes."""
        assert result.kept is not None
        kept = partial_hit.copied().extended(result.kept)
        bounds = self.bounds[len(found) :]
        first = bounds[0][0]
        return [StepResult(True, kept=kept.part(start - first, stop - first)) for start, stop in bounds]

    def worth_waiting(self, running: int, left: int) -> bool:
        """Whether at least half of the missing tokens are in flight; waiting for fewer takes as long as a step."""
        return 2 * running >= left


class PrefixAndAnswer(NamedTuple):
    """The prefill of a prompt and the first step of its answer, in one pass.

    Attributes:
        prefix: the prompt's prefix that is cached in blocks.
        uncached: the prompt's tokens between the prefix and its last token.
        answer: a step without a past. Its first token is the prompt's last one, which is also its focus.
        cache: the name under which hits and misses are counted.
    """

    prefix: Prefix
    uncached: tuple[int, ...]
    answer: WholeStep
    cache: str = "prefix"

    @property
    def links(self) -> Sequence[Link]:
        """The links of the prefix, then the answer's."""
        (answer,) = self.answer.links
        return (*self.prefix.links, Link(answer.key, len(self.uncached) + answer.tokens))

    def rest(self, found: Sequence[StepResult], partial_hit: KeyValues = NO_TOKENS) -> RowStep:
        """Build the step over all tokens after the cached ones."""
        past, step = joined(found).extended(partial_hit), self.answer.step
        before = (*self.prefix.tokens[past.length :], *self.uncached)
        keep = step.keep or past.length < len(self.prefix.tokens)
        return step._replace(tokens=(*before, *step.tokens), past=past, focus=len(before), keep=keep)

    def split(
        self, result: StepResult, found: Sequence[StepResult], partial_hit: KeyValues = NO_TOKENS
    ) -> Sequence[StepResult]:
        """Split a result into the new blocks and the answer's result.

        The blocks are finite even if the answer's activations or logits are not.
        """
        blocks = self.prefix.split(result, found, partial_hit) if len(found) < len(self.prefix.bounds) else ()
        step, kept = self.answer.step, None
        if step.keep:
            assert result.kept is not None
            kept = result.kept.part(result.kept.length - len(step.tokens), result.kept.length)
        return (*blocks, result if kept is result.kept else replace(result, kept=kept))

    def worth_waiting(self, running: int, left: int) -> bool:
        """As for `Prefix`."""
        return self.prefix.worth_waiting(running, left)


class PrefixCounter:
    """Counts how often recent prompts had each prefix block, to tell shared prefixes from those seen once."""

    def __init__(self, max_blocks: int = 2**16) -> None:
        """Create an empty LRU counter of at most `max_blocks` blocks."""
        self._max_blocks = max_blocks
        self._counts: OrderedDict[Key, int] = OrderedDict()

    @staticmethod
    def keys(prefix: Prefix, tenant: str) -> list[Key]:
        """The cache keys of a prefix's whole blocks for a tenant."""
        return [(tenant, link.key) for link in prefix.links if link.key is not None and link.tokens == BLOCK]

    def add(self, keys: Iterable[Key]) -> None:
        """Count the blocks of a prompt."""
        for key in keys:
            self._counts[key] = self._counts.get(key, 0) + 1
            self._counts.move_to_end(key)
        while len(self._counts) > self._max_blocks:
            self._counts.popitem(last=False)

    def shared_tokens(self, keys: Iterable[Key]) -> int:
        """Length of a prompt's longest prefix that was counted more than once, in tokens: a multiple of `BLOCK`."""
        shared = takewhile(lambda key: self._counts.get(key, 0) > 1, keys)
        return BLOCK * len(list(shared))


def joined(blocks: Sequence[StepResult]) -> KeyValues:
    """Concatenate the keys and values of consecutive blocks."""
    whole = NO_TOKENS
    for block in blocks:
        assert block.kept is not None
        whole = whole.extended(block.kept)
    return whole
