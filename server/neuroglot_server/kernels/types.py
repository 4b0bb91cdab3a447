"""Types of neurons: how many of a group's rows each is active in (Eqs. 4 to 7)."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.core import NeuronType

NEAR = 1e-5
"""How close to the threshold an activation must be for rounding to decide its side."""


def active(activations: NDArray[np.floating], threshold: float) -> NDArray[np.bool_]:
    """Which activations exceed the threshold, strictly.

    Args:
        activations: float16 or float32, any shape.
        threshold: compared in float32, so that a float16 activation is not compared with a rounded threshold.
    """
    exceeding: NDArray[np.bool_] = activations > np.float32(threshold)
    return exceeding


def near_threshold(activations: NDArray[np.floating], threshold: float, activity: NDArray[np.bool_]) -> int:
    """How many activations lie so near the threshold, within `NEAR`, that rounding may decide their side.

    Those below a threshold of 0 are left out: GELU, SiLU and ReLU have a tail there, which no rounding brings above 0,
    and an activation does not say whether it lies in the tail or comes from an input just below 0. Of inputs close to 0
    about as many lie below it as above.

    Args:
        activations: float16 or float32, any shape.
        threshold: as in `active`.
        activity: which of them exceed it.
    """
    lowest, highest = np.float32(threshold - NEAR), np.float32(threshold + NEAR)
    too_high = np.count_nonzero(activations > highest)
    # Two counts, for an array of all distances would be as large as the activations, and be made of new pages.
    return int(np.count_nonzero(activations >= lowest if threshold else activity) - too_high)


def type_codes(activity: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The type of every neuron, from the number s of rows in which it is active.

    s = R is all_shared (Eq. 4), s = 0 non_activated (Eq. 5), s = 1 specific (Eq. 6), and any other s partial_shared
    (Eq. 7).

    Args:
        activity: bool `[R, layers, neurons]`, of at least two rows: with one, s = 1 is both Eq. 4 and Eq. 6.

    Returns:
        Codes of `NeuronType`, uint8 `[layers, neurons]`.

    Raises:
        ValueError: there are fewer rows.
    """
    rows = activity.shape[0]
    if rows < 2:
        raise ValueError(f"got activity of {rows} rows, expected at least two: neurons of a single row have no types")
    s = activity.view(np.uint8).sum(axis=0, dtype=np.min_scalar_type(rows))  # the fewer bytes, the faster
    codes: NDArray[np.uint8] = _type_of(rows).take(s)
    return codes


@cache
def _type_of(rows: int) -> NDArray[np.uint8]:
    """The type by the number of rows, of so many, in which a neuron is active."""
    types = np.full(rows + 1, NeuronType.PARTIAL_SHARED, dtype=np.uint8)
    types[[0, 1, rows]] = NeuronType.NON_ACTIVATED, NeuronType.SPECIFIC, NeuronType.ALL_SHARED
    return types


def type_counts(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Neurons of each type, int64 `[layers, 4]`, from codes `[layers, neurons]`."""
    *leading, neurons = codes.shape
    kinds = len(NeuronType)
    first_of = kinds * np.arange(codes.size // neurons).reshape(*leading, 1)
    counts = np.bincount((first_of + codes).ravel(), minlength=kinds * first_of.size)
    return counts.reshape(*leading, kinds)


def active_counts(activity: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Active neurons, int64 `[layers, R]`, from bool `[R, layers, neurons]`."""
    counts: NDArray[np.int64] = activity.sum(axis=-1, dtype=np.int32).astype(np.int64)
    return counts.T
