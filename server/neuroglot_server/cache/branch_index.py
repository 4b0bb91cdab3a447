"""Where prompts part: which known tokens a prompt goes on alike with, for a while, after all that it shares whole."""

from __future__ import annotations

from collections import OrderedDict
from itertools import takewhile
from operator import eq
from typing import NamedTuple

Place = tuple[str, bytes]
"""A tenant, and the key of what a prompt has in common with others so far."""


class Alike(NamedTuple):
    """Something known that begins as a prompt goes on.

    Attributes:
        key: under which it is kept.
        tokens: how many of its first tokens are the same.
    """

    key: Place
    tokens: int


class BranchIndex:
    """Of all that goes on from one place with one token, what was computed last.

    Prompts that part share a template, or examples, and what parts them is their own: any of them knows as much of what
    they share as the others, so one is enough.
    """

    def __init__(self, most: int = 2**14) -> None:
        """Remember so many."""
        self._most = most
        self._last: OrderedDict[tuple[Place, int], tuple[Place, tuple[int, ...]]] = OrderedDict()

    def note(self, place: Place, ids: tuple[int, ...], key: Place) -> None:
        """Remember tokens that go on from a place, and what is known of them."""
        self._last[place, ids[0]] = key, ids
        self._last.move_to_end((place, ids[0]))
        while len(self._last) > self._most:
            self._last.popitem(last=False)

    def alike(self, place: Place, ids: tuple[int, ...]) -> Alike | None:
        """What goes on from a place as these tokens do, but for the last of them at the most."""
        known = self._last.get((place, ids[0]))
        if known is None or len(ids) == 1:
            return None
        key, others = known
        return Alike(key, sum(1 for _ in takewhile(bool, map(eq, ids[:-1], others))))
