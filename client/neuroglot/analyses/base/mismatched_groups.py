"""Mismatched groups: rows of parallel groups recombined so that every language of a group has a different example.

They are the control for types: neurons shared within a mismatched group are not shared because of meaning. They need no
extra requests: results contain the active neurons of each row, and a mismatched group combines rows of several results.
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
    """Assignment of rows to mismatched groups.

    Attributes:
        owners: name of the mismatched group by (group id, language) of a row. The name is the id of the group that its
            first language comes from.
        languages: languages of a mismatched group, one row each.
    """

    owners: Mapping[tuple[str, str], str] = field(default_factory=dict)
    languages: tuple[str, ...] = ()


def rotation(examples: Sequence[Group], languages: Sequence[str]) -> Rotation:
    """Assign rows to mismatched groups: each row to at most one, no two rows of a group from the same cluster.

    Examples are arranged in a ring, the first of every cluster before the second of any. The group that starts at an
    example takes the row of language j from the example j steps further. If clusters are too few or too uneven, fewer
    groups result, or none.
    """
    clusters = {group.id: group.cluster or group.id for group in examples}
    by_cluster: dict[str, list[str]] = defaultdict(list)
    for name, cluster in clusters.items():
        by_cluster[cluster].append(name)
    ring = [name for lap in zip_longest(*by_cluster.values()) for name in lap if name is not None]
    owners = {}
    for start, owner in enumerate(ring):
        rows = [ring[(start + step) % len(ring)] for step in range(len(languages))]
        if len({clusters[row] for row in rows}) == len(languages):
            owners.update(dict.fromkeys(zip(rows, languages, strict=True), owner))
    return Rotation(owners, tuple(languages))


@dataclass(frozen=True)
class RowBits:
    """Packed bitmaps of one row.

    Attributes:
        active: active neurons by component, one packed bitmap a threshold.
        top: top contributors by component, packed; empty if they were not requested.
        last_token: id of the prompt's last token.
    """

    active: Mapping[str, tuple[bytes, ...]]
    top: Mapping[str, bytes]
    last_token: int

    @classmethod
    def of(cls, result: GroupResult, row: int) -> RowBits:
        """Return the bitmaps of one row of a result.

        Raises:
            NotInResultError: active neurons were not requested.
        """
        components = result.message.components
        if not all(threshold.active_bitmaps for one in components for threshold in one.thresholds):
            raise NotInResultError(
                f"group {result.group_id!r} has no active bitmaps, and mismatched groups need them: "
                "analyze with active=True"
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
        group_id: id of the group that its first language comes from. The bootstrap draws it with the cluster of that
            group, although its other rows are from other clusters.
        rows: bitmaps of the rows, in the order of the analyses' languages.
        geometry: (layers, neurons) by component.
    """

    group_id: str
    rows: tuple[RowBits, ...]
    geometry: Mapping[str, tuple[int, int]]

    def active(self, component: str, threshold: int = 0) -> NDArray[np.bool_]:
        """Return masks of the active neurons at one threshold (by index), `[rows, layers, neurons]`."""
        shape = self.geometry[component]
        return np.stack([unpack_bits(row.active[component][threshold], shape) for row in self.rows])

    def top(self, component: str) -> NDArray[np.bool_]:
        """Return masks of the top contributors of each row, `[rows, layers, neurons]`."""
        return np.stack([unpack_bits(row.top[component], self.geometry[component]) for row in self.rows])

    def distinct_last_tokens(self) -> int:
        """Return the number of distinct last tokens of the prompts."""
        return len({row.last_token for row in self.rows})


class Mismatching:
    """Assembles mismatched groups from results that arrive in any order and sharding.

    Attributes:
        incomplete: rows of incomplete groups, by name of the group and language.
    """

    def __init__(self, rotation: Rotation) -> None:
        self._rotation = rotation
        self._geometry: Mapping[str, tuple[int, int]] = {}
        self.incomplete: dict[str, dict[str, RowBits]] = {}

    def add(self, result: GroupResult) -> Iterator[Mismatched]:
        """Add the rows of a result; yields the groups that they complete.

        Raises:
            NotInResultError: active neurons were not requested.
        """
        self._geometry = {name: (one.layers, one.neurons) for name, one in result.components.items()}
        for row, language in enumerate(result.labels):
            owner = self._rotation.owners.get((result.group_id, language))
            if owner is not None:
                yield from self._put(owner, {language: RowBits.of(result, row)})

    def merge(self, other: Mismatching) -> Iterator[Mismatched]:
        """Add the incomplete rows of `other`; yields the groups that they complete."""
        self._geometry = self._geometry or other._geometry
        for owner, rows in other.incomplete.items():
            yield from self._put(owner, rows)

    def _put(self, owner: str, rows: Mapping[str, RowBits]) -> Iterator[Mismatched]:
        collected = self.incomplete.setdefault(owner, {})
        collected.update(rows)
        if len(collected) == len(self._rotation.languages):
            del self.incomplete[owner]
            yield Mismatched(owner, tuple(collected[language] for language in self._rotation.languages), self._geometry)
