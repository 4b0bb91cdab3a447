"""Branch index: finds a cached block whose first tokens equal those of a block that is missing from the cache."""

from __future__ import annotations

from collections import OrderedDict
from itertools import takewhile
from operator import eq
from typing import NamedTuple

Key = tuple[str, bytes]
"""A tenant and a block's key, see `Link.key`."""


class Match(NamedTuple):
    """A cached block that shares its first tokens with another block.

    Attributes:
        key: the cached block's key.
        tokens: length of the shared prefix of the two blocks, in tokens.
    """

    key: Key
    tokens: int


class BranchIndex:
    """For each parent block and first token of a child, the child computed last.

    Prompts that fork inside a block share a template or few-shot examples, and differ in their own text. Each of the
    children holds the same shared tokens, so one child per first token is enough.
    """

    def __init__(self, max_entries: int = 2**14) -> None:
        """Create an empty LRU index of at most `max_entries` children."""
        self._max_entries = max_entries
        self._last: OrderedDict[tuple[Key, int], tuple[Key, tuple[int, ...]]] = OrderedDict()

    def add(self, parent: Key, ids: tuple[int, ...], key: Key) -> None:
        """Record the child block `key` of `parent`, with the token ids `ids`."""
        self._last[parent, ids[0]] = key, ids
        self._last.move_to_end((parent, ids[0]))
        while len(self._last) > self._max_entries:
            self._last.popitem(last=False)

    def longest_match(self, parent: Key, ids: tuple[int, ...]) -> Match | None:
        """Find a child of `parent` that starts with the same tokens as `ids`.

        The last token of `ids` never counts as shared: at least one token is left to compute.

        Returns:
            The child and the length of the shared prefix; None if no child starts with `ids[0]`.
        """
        child = self._last.get((parent, ids[0]))
        if child is None or len(ids) == 1:
            return None
        key, child_ids = child
        return Match(key, sum(1 for _ in takewhile(bool, map(eq, ids[:-1], child_ids))))
