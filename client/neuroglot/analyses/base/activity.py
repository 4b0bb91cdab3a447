"""Neuron types from activity: masks of active neurons, histograms over languages, types and their counts."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray

from neuroglot.request.neurons import NeuronType
from neuroglot.results.type_maps import Types


def active_in(types: Types, labels: Sequence[str]) -> NDArray[np.bool_]:
    """Return masks of the active neurons in the rows of `labels`, `[rows, layers, neurons]`.

    Raises:
        NotInResultError: the result has no row of a label, or active neurons were not requested.
    """
    return np.stack([types.active(label).to_mask() for label in labels])


def histogram(active: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the neurons of each layer that are active in 0, 1, ... L rows.

    Args:
        active: `[L, layers, neurons]`.

    Returns:
        `[layers, L + 1]`; each layer sums to its number of neurons.
    """
    return np.stack([np.bincount(of_layer, minlength=len(active) + 1) for of_layer in active_rows(active)])


def active_rows(active: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Count the rows in which each neuron is active: `[layers, neurons]` from `[L, layers, neurons]`."""
    rows: NDArray[np.uint16] = active.sum(axis=0, dtype=np.uint16)
    return rows


def type_codes(active: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the type of every neuron (Eq. 4 to 7) over at least two rows, `[layers, neurons]`.

    Args:
        active: `[L, layers, neurons]`.
    """
    in_rows = active_rows(active)
    codes: NDArray[np.uint8] = np.minimum(in_rows, NeuronType.PARTIAL_SHARED).astype(np.uint8)
    codes[in_rows == len(active)] = NeuronType.ALL_SHARED
    return codes


def type_counts(active: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the neurons of each type over two or more rows: `[layers, 4]` from `[L, layers, neurons]`."""
    in_rows = histogram(active)
    counts = np.zeros((len(in_rows), len(NeuronType)), dtype=np.int64)
    counts[:, NeuronType.NON_ACTIVATED] = in_rows[:, 0]
    counts[:, NeuronType.SPECIFIC] = in_rows[:, 1]
    counts[:, NeuronType.PARTIAL_SHARED] = in_rows[:, 2:-1].sum(axis=1)
    counts[:, NeuronType.ALL_SHARED] = in_rows[:, -1]
    return counts


def subset_weights(languages: int, size: int) -> NDArray[np.float64]:
    """Return the share of all subsets of `size` languages in which a neuron is of each type.

    For a neuron that is active in a of L languages, the number of languages in a subset of k in which it is active
    follows the hypergeometric distribution. A `histogram` times these weights is therefore the exact mean over all
    subsets.

    >>> subset_weights(3, 2)[1].tolist()  # active in one of three: in two of the three pairs it is specific
    [0.3333333333333333, 0.6666666666666666, 0.0, 0.0]

    Returns:
        `[languages + 1, 4]`, by number of languages in which the neuron is active; each row sums to 1.
    """
    weights = np.zeros((languages + 1, len(NeuronType)))
    for active in range(languages + 1):
        for chosen in range(max(0, size - (languages - active)), min(active, size) + 1):
            kind = NeuronType.ALL_SHARED if chosen == size else NeuronType(min(chosen, NeuronType.PARTIAL_SHARED))
            weights[active, kind] += comb(active, chosen) * comb(languages - active, size - chosen)
    shares: NDArray[np.float64] = weights / comb(languages, size)
    return shares
