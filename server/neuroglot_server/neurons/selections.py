"""Selections: the neurons of a component that an intervention acts on, in every row of a group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from neuroglot.definitions.packing import unpack_bits
from neuroglot_server.core import (
    ByContribution,
    ByNeuron,
    ByType,
    Control,
    ControlKind,
    Difference,
    Intersection,
    Selection,
    Union,
)
from neuroglot_server.kernels import contribution
from neuroglot_server.kernels.kernel_thread import Pieces
from neuroglot_server.neurons.baseline import Baseline

Members = NDArray[np.bool_]
"""bool `[R, layers, neurons]`, or `[1, layers, neurons]` where they are the same in every row."""


def members(selection: Selection, baseline: Baseline) -> Pieces[Members]:
    """Evaluate a selection in a component. Names of uploaded sets must have been resolved before.

    Yields after each operand, and after each row for which neurons are drawn.
    """
    match selection:
        case Union(parts) | Intersection(parts) | Difference(parts):
            combine = _COMBINATIONS[type(selection)]
            found = yield from members(parts[0], baseline)
            for part in parts[1:]:
                found = combine(found, (yield from members(part, baseline)))
                yield
            return found
        case Control(of, kind, draw, seed):
            controlled = yield from members(of, baseline)
            return (yield from _drawn(controlled, kind, draw, seed, baseline))
        case _:
            chosen = _chosen(selection, baseline)
            yield
            return chosen


def _without(left: Members, right: Members) -> Members:
    return left & ~right


_COMBINATIONS: Mapping[type[Selection], Callable[[Members, Members], Members]] = {
    Union: np.logical_or,
    Intersection: np.logical_and,
    Difference: _without,
}


def _chosen(selection: Selection, baseline: Baseline) -> Members:
    """Evaluate a selection without operands."""
    match selection:
        case ByType(types):
            return np.isin(baseline.codes, types)[np.newaxis]
        case ByNeuron(component, layers, neurons, bits):
            if component not in ("", baseline.component):
                return np.zeros((1, *baseline.activity.shape[1:]), dtype=np.bool_)
            return unpack_bits(bits, (1, layers, neurons))
        case ByContribution(top_fraction, top_k):
            k = contribution.top_k(baseline.contributions.shape[-1], top_fraction, top_k)
            return contribution.top(baseline.contributions, k)
    raise AssertionError(f"an unknown selection passed validation: {selection!r}")


def _drawn(controlled: Members, kind: ControlKind, draw: int, seed: int, baseline: Baseline) -> Pieces[Members]:
    """Draw a random control set for each row, the neurons of the lowest priorities first."""
    drawn = np.empty(baseline.activity.shape, dtype=np.bool_)
    everything = np.ones(drawn.shape[1:], dtype=np.bool_)
    for row in range(len(drawn)):
        of_row = controlled[row if len(controlled) > 1 else 0]
        priorities = _priorities(baseline, row, draw, seed)
        match kind:
            case ControlKind.RANDOM:
                drawn[row] = lowest(priorities, everything, np.count_nonzero(of_row, axis=-1))
            case ControlKind.RANDOM_ACTIVE:
                active = baseline.activity[row]
                drawn[row] = lowest(priorities, active, np.count_nonzero(of_row & active, axis=-1))
            case ControlKind.RANDOM_MASS:
                contributions = baseline.contributions[row]
                masses = np.where(of_row, contributions, 0).sum(axis=-1, dtype=np.float64)
                drawn[row] = lowest(priorities, everything, counts_of_mass(priorities, contributions, masses))
        yield
    return drawn


def counts_of_mass(
    priorities: NDArray[np.uint64], contributions: NDArray[np.float32], masses: NDArray[np.float64]
) -> NDArray[np.int64]:
    """How many neurons to draw, in ascending order of priority, for their contributions to add up to a mass.

    This is the number whose sum of contributions is nearest to the mass; the smallest one in a tie.

    Args:
        priorities: `[..., layers, neurons]`, distinct within a layer.
        contributions: non-negative, of the same shape.
        masses: `[..., layers]`.

    Returns:
        int64 `[..., layers]`, 0 to the number of neurons.
    """
    in_order = np.take_along_axis(contributions, np.argsort(priorities, axis=-1), axis=-1)
    none_drawn = np.zeros((*in_order.shape[:-1], 1))
    sums = np.concatenate([none_drawn, np.cumsum(in_order, axis=-1, dtype=np.float64)], axis=-1)
    counts: NDArray[np.int64] = np.abs(sums - masses[..., np.newaxis]).argmin(axis=-1)
    return counts


def lowest(priorities: NDArray[np.uint64], candidates: Members, counts: NDArray[np.int64]) -> Members:
    """Select the candidates of the lowest priorities.

    Args:
        priorities: `[..., layers, neurons]`, distinct within a layer.
        candidates: which neurons may be drawn, of the same shape.
        counts: how many to draw, `[..., layers]`, at most the number of candidates.
    """
    worst = np.iinfo(np.uint64).max
    in_order = np.sort(np.where(candidates, priorities, worst), axis=-1)
    last = np.take_along_axis(in_order, np.maximum(counts - 1, 0)[..., np.newaxis], axis=-1)
    drawn: Members = candidates & (priorities <= last) & (counts > 0)[..., np.newaxis]
    return drawn


def _priorities(baseline: Baseline, row: int, draw: int, seed: int) -> NDArray[np.uint64]:
    """Random priorities of a row's neurons, uint64 `[layers, neurons]`, independent of the version of numpy.

    Neuron n has the n-th output of SplitMix64, seeded with a hash of (seed, draw, group, row, component, layer). The
    outputs are a bijection of n, so no two neurons of a layer tie.
    """
    _, layers, neurons = baseline.activity.shape
    label = baseline.labels[row]
    starts = np.array(
        [_hash(seed, draw, baseline.group_id, label, baseline.component, layer) for layer in range(layers)],
        dtype=np.uint64,
    ).reshape(layers, 1)
    indices: NDArray[np.uint64] = np.arange(1, neurons + 1, dtype=np.uint64)
    state: NDArray[np.uint64] = starts + indices * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed


def _hash(*parts: int | str) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "little")
