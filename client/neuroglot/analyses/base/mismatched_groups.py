"""Mismatched groups: the same rows, put together so that every language of a group has a different example.

What neurons share within such a group they do not share for its meaning. Nothing is run for it: which neurons are
active in a row is part of every answer, and a mismatched group is rows of several answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from neuroglot.definitions.packing import unpack_bits
from neuroglot.errors import NotInResultError
from neuroglot.request.groups import Group
from neuroglot.results.results import GroupResult


@dataclass(frozen=True)
class Rotation:
    """Which mismatched group each row belongs to.

    Attributes:
        owners: for a group's id and a language, the mismatched group that has this row; it goes by the id of the group
            of its first language.
        languages: how many rows a mismatched group has.
    """

    owners: Mapping[tuple[str, str], str] = field(default_factory=dict)
    languages: tuple[str, ...] = ()


def rotation(examples: Sequence[Group], languages: Sequence[str]) -> Rotation:
    """Mismatched groups of examples: each row in at most one, no two rows of one from the same example or cluster.

    Examples stand in a ring, one of each cluster before the second of any, and the row of language j is taken j steps
    on. Where clusters are too few or too uneven for that, fewer groups come out, or none.
    """
    clusters = {group.id: group.cluster or group.id for group in examples}
    by_cluster: dict[str, list[str]] = defaultdict(list)
    for name, cluster in clusters.items():
        by_cluster[cluster].append(name)
    ring = [name for lap in zip_longest(*by_cluster.values()) for name in lap if name is not None]
    owners = {}
    for place, owner in enumerate(ring):
        rows = [ring[(place + step) % len(ring)] for step in range(len(languages))]
        if len({clusters[row] for row in rows}) == len(languages):
            owners.update(dict.fromkeys(zip(rows, languages, strict=True), owner))
    return Rotation(owners, tuple(languages))


@dataclass(frozen=True)
class RowBits:
    """Which neurons are active in one row.

    Attributes:
        active: of each component, a packed set a threshold.
        top: of each component, the packed top contributors; none where they were not asked for.
        last_token: the prompt's last token.
    """

    active: Mapping[str, tuple[bytes, ...]]
    top: Mapping[str, bytes]
    last_token: int

    @classmethod
    def of(cls, result: GroupResult, row: int) -> RowBits:
        """Those of one row of an answer.

        Raises:
            NotInResultError: active neurons were not asked for.
        """
        components = result.message.components
        if not all(threshold.active_bitmaps for one in components for threshold in one.thresholds):
            raise NotInResultError(
                f"group {result.group_id!r} does not say which neurons are active in its rows, and mismatched groups "
                "are made of that: analyze with active=True"
            )
        return cls(
            active={
                one.component: tuple(threshold.active_bitmaps[row] for threshold in one.thresholds)
                for one in components
            },
            top={
                one.component: one.thresholds[0].contribution.top_bitmaps[row]
                for one in components
                if one.thresholds[0].contribution.top_bitmaps
            },
            last_token=result.message.rows[row].last_token_id,
        )


@dataclass(frozen=True, eq=False)
class Mismatched:
    """A mismatched group: rows of different examples, one a language.

    Attributes:
        group_id: its name, that of the group which its first language's row is of. Intervals draw it with the cluster
            of that group, though its other rows are of other clusters.
        rows: what is active in them, in the order of the analyses' languages.
        geometry: layers and neurons of each component.
    """

    group_id: str
    rows: tuple[RowBits, ...]
    geometry: Mapping[str, tuple[int, int]]

    def active(self, component: str, threshold: int = 0) -> NDArray[np.bool_]:
        """Whether each neuron is active, `[rows, layers, neurons]`, at the threshold of that index."""
        shape = self.geometry[component]
        return np.stack([unpack_bits(row.active[component][threshold], shape) for row in self.rows])

    def top(self, component: str) -> NDArray[np.bool_]:
        """Whether each neuron is a top contributor of its row, `[rows, layers, neurons]`."""
        return np.stack([unpack_bits(row.top[component], self.geometry[component]) for row in self.rows])

    def distinct_last_tokens(self) -> int:
        """How many different tokens the prompts end in."""
        return len({row.last_token for row in self.rows})


class Mismatching:
    """Puts mismatched groups together while answers come in, in whatever order and parts.

    Attributes:
        waiting: rows of groups that are not complete, by the group's name and language.
    """

    def __init__(self, rotation: Rotation) -> None:
        self._rotation = rotation
        self._geometry: Mapping[str, tuple[int, int]] = {}
        self.waiting: dict[str, dict[str, RowBits]] = {}

    def add(self, result: GroupResult) -> Iterator[Mismatched]:
        """Take an answer's rows; gives the groups that they complete.

        Raises:
            NotInResultError: active neurons were not asked for.
        """
        self._geometry = {name: (one.layers, one.neurons) for name, one in result.components.items()}
        for row, language in enumerate(result.labels):
            owner = self._rotation.owners.get((result.group_id, language))
            if owner is not None:
                yield from self._put(owner, {language: RowBits.of(result, row)})

    def merge(self, other: Mismatching) -> Iterator[Mismatched]:
        """Take the rows that wait elsewhere; gives the groups that are complete now."""
        self._geometry = self._geometry or other._geometry
        for owner, rows in other.waiting.items():
            yield from self._put(owner, rows)

    def _put(self, owner: str, rows: Mapping[str, RowBits]) -> Iterator[Mismatched]:
        waiting = self.waiting.setdefault(owner, {})
        waiting.update(rows)
        if len(waiting) == len(self._rotation.languages):
            del self.waiting[owner]
            yield Mismatched(owner, tuple(waiting[one] for one in self._rotation.languages), self._geometry)
