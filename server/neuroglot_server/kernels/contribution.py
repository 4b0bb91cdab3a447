"""Contributions: how much of what a layer's FFN writes comes from each neuron (Eq. 3)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.core import NeuronType


def contributions(coefficients: NDArray[np.floating], norms: NDArray[np.float32]) -> NDArray[np.float32]:
    """C_i = |m_i| * ||v_i|| / sum_j |m_j| * ||v_j||, within each row and layer (Eq. 3).

    Args:
        coefficients: m, what multiplies the value rows, float16 or float32 `[R, layers, neurons]`.
        norms: ||v_i||, `[layers, neurons]`.

    Returns:
        float32 `[R, layers, neurons]`; each row and layer adds up to 1, or is all 0 where every m is 0.
    """
    written = magnitudes(coefficients, norms)
    totals = written.sum(axis=-1, keepdims=True)
    shares: NDArray[np.float32] = np.divide(written, totals, out=np.zeros_like(written), where=totals > 0)
    return shares


def magnitudes(coefficients: NDArray[np.floating], norms: NDArray[np.float32]) -> NDArray[np.float32]:
    """|m_i| * ||v_i||, how long what each neuron writes is: Eq. 3 without the division; arguments as there."""
    written: NDArray[np.float32] = np.abs(coefficients) * norms
    return written


def top_k(neurons: int, top_fraction: float, k: int = 0) -> int:
    """How many neurons of a layer count as its top contributors: k, or where that is 0 `ceil(top_fraction * neurons)`.

    The product is rounded to nine decimals first, for 0.1 * 30 is 3.0000000000000004 in floats, and means 3; but it is
    at least 1.
    """
    return k or max(1, math.ceil(round(top_fraction * neurons, 9)))


def top(values: NDArray[np.float32], k: int) -> NDArray[np.bool_]:
    """Which are the k largest along the last axis; of equals, the lower index comes first.

    Args:
        values: `[..., neurons]`, finite.
        k: 1 to neurons.

    Returns:
        bool `[..., neurons]`, k of them true.
    """
    smallest = np.partition(values, -k, axis=-1)[..., -k, np.newaxis]
    larger = values > smallest
    equal = values == smallest
    room = k - np.count_nonzero(larger, axis=-1)[..., np.newaxis]
    chosen: NDArray[np.bool_] = larger | (equal & (np.cumsum(equal, axis=-1) <= room))
    return chosen


def leading(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The k largest along the last axis, the largest first; of equals, the lower index comes first.

    Args:
        values: `[..., neurons]`, finite.
        k: 1 to neurons.

    Returns:
        Indices, int64 `[..., k]`.
    """
    ascending = np.nonzero(top(values, k))[-1].reshape(*values.shape[:-1], k)
    order = np.argsort(-np.take_along_axis(values, ascending, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(ascending, order, axis=-1)


def counts_by_type(members: NDArray[np.bool_], codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many members are of each type: int64 `[R, layers, 4]` from `[R, layers, neurons]` and `[layers, neurons]`."""
    return np.stack([np.count_nonzero(members & (codes == kind), axis=-1) for kind in NeuronType], axis=-1)


def sums_by_type(values: NDArray[np.float32], codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Sum of the values of each type: float32 `[R, layers, 4]` from `[R, layers, neurons]` and `[layers, neurons]`."""
    of_type = np.stack([codes == kind for kind in NeuronType], axis=-1).astype(np.float32)
    sums: NDArray[np.float32] = np.einsum("rln,lnt->rlt", values, of_type, optimize=True)
    return sums
