"""Selections: which neurons of a component an intervention chooses, in every row of a group."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from neuroglot.packing import unpack_bits
from neuroglot_server.core import (
    ByNeuron,
    ByType,
    Control,
    ControlKind,
    Difference,
    Intersection,
    Selection,
    Union,
)

Members = NDArray[np.bool_]
"""bool `[R, layers, neurons]`, or `[1, layers, neurons]` where they are the same in every row."""


@dataclass(frozen=True, eq=False)
class Baseline:
    """What a group's own baseline says of one component; selections are relative to it.

    Attributes:
        component: its name.
        group_id: the group's id.
        labels: the rows' labels.
        activity: which neurons are active in each row, bool `[R, layers, neurons]`.
        codes: their types, uint8 `[layers, neurons]`; None where the group has one row.
    """

    component: str
    group_id: str
    labels: tuple[str, ...]
    activity: NDArray[np.bool_]
    codes: NDArray[np.uint8] | None


def members(selection: Selection, baseline: Baseline) -> Members:
    """The neurons that a selection chooses in a component."""
    match selection:
        case ByType(types):
            assert baseline.codes is not None, "a selection by type was let through for a single row"
            return np.isin(baseline.codes, types)[np.newaxis]
        case ByNeuron(component, layers, neurons, bits):
            if component not in ("", baseline.component):
                return np.zeros((1, *baseline.activity.shape[1:]), dtype=np.bool_)
            return unpack_bits(bits, (1, layers, neurons))
        case Union(selections):
            return reduce(np.logical_or, (members(part, baseline) for part in selections))
        case Intersection(selections):
            return reduce(np.logical_and, (members(part, baseline) for part in selections))
        case Difference((first, *others)):
            return reduce(lambda left, part: left & ~members(part, baseline), others, members(first, baseline))
        case Control(of, kind, draw, seed):
            candidates = baseline.activity if kind is ControlKind.RANDOM_ACTIVE else np.ones_like(baseline.activity)
            counts = np.count_nonzero(members(of, baseline) & candidates, axis=-1)
            return lowest(_priorities(baseline, draw, seed), candidates, counts)
    raise AssertionError(f"an unknown selection was let through: {selection!r}")


def lowest(priorities: NDArray[np.uint64], candidates: Members, counts: NDArray[np.int64]) -> Members:
    """The candidates of the lowest priorities.

    Args:
        priorities: `[R, layers, neurons]`, all different within a layer.
        candidates: which neurons may be drawn, of the same shape.
        counts: how many are drawn, `[R, layers]`, at most as many as there are candidates.
    """
    worst = np.iinfo(np.uint64).max
    in_order = np.sort(np.where(candidates, priorities, worst), axis=-1)
    last = np.take_along_axis(in_order, np.maximum(counts - 1, 0)[..., np.newaxis], axis=-1)
    drawn: Members = candidates & (priorities <= last) & (counts > 0)[..., np.newaxis]
    return drawn


def _priorities(baseline: Baseline, draw: int, seed: int) -> NDArray[np.uint64]:
    """A random number for every neuron of every row, the same in every run and in every version of numpy.

    The n-th output of SplitMix64, started from a hash of (seed, draw, group, row, component, layer), belongs to neuron
    n. It is a bijection of n, so no two neurons of a layer tie.
    """
    rows, layers, neurons = baseline.activity.shape
    starts = np.array(
        [
            [_hash(seed, draw, baseline.group_id, label, baseline.component, layer) for layer in range(layers)]
            for label in baseline.labels
        ],
        dtype=np.uint64,
    ).reshape(rows, layers, 1)
    places: NDArray[np.uint64] = np.arange(1, neurons + 1, dtype=np.uint64)
    state: NDArray[np.uint64] = starts + places * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed


def _hash(*parts: int | str) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "little")
