"""From which neurons are active to how many are of each type, in a group and in parts of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray

from neuroglot.request.neurons import NeuronType
from neuroglot.results.type_maps import Types


def active_in(types: Types, labels: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each neuron is active in the rows of these labels, `[rows, layers, neurons]`.

    Raises:
        NotInResultError: the result has no such row, or active neurons were not asked for.
    """
    return np.stack([types.active(label).to_mask() for label in labels])


def histogram(active: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many neurons of each layer are active in 0, 1, ... L rows.

    Args:
        active: `[L, layers, neurons]`.

    Returns:
        `[layers, L + 1]`; each layer adds up to the number of neurons.
    """
    return np.stack([np.bincount(of_layer, minlength=len(active) + 1) for of_layer in in_how_many(active)])


def in_how_many(active: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """In how many rows each neuron is active, `[layers, neurons]` from `[L, layers, neurons]`."""
    rows: NDArray[np.uint16] = active.sum(axis=0, dtype=np.uint16)
    return rows


def type_codes(active: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The type of every neuron (Eq. 4 to 7) among two rows or more, `[layers, neurons]` from `[L, layers, neurons]`."""
    in_rows = in_how_many(active)
    codes: NDArray[np.uint8] = np.minimum(in_rows, NeuronType.PARTIAL_SHARED).astype(np.uint8)
    codes[in_rows == len(active)] = NeuronType.ALL_SHARED
    return codes


def type_counts(active: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Neurons of each type among two rows or more, `[layers, 4]` from `[L, layers, neurons]`."""
    in_rows = histogram(active)
    counts = np.zeros((len(in_rows), len(NeuronType)), dtype=np.int64)
    counts[:, NeuronType.NON_ACTIVATED] = in_rows[:, 0]
    counts[:, NeuronType.SPECIFIC] = in_rows[:, 1]
    counts[:, NeuronType.PARTIAL_SHARED] = in_rows[:, 2:-1].sum(axis=1)
    counts[:, NeuronType.ALL_SHARED] = in_rows[:, -1]
    return counts


def subset_weights(languages: int, size: int) -> NDArray[np.float64]:
    """In what share of all subsets of `size` languages a neuron is of each type, by how many languages it is active in.

    Of a neuron that is active in a of L languages, a subset of k has s by the hypergeometric distribution. So a
    `histogram` times these weights is the mean over all subsets, exactly.

    >>> subset_weights(3, 2)[1].tolist()  # active in one of three: in two of the three pairs it is specific
    [0.3333333333333333, 0.6666666666666666, 0.0, 0.0]

    Returns:
        `[languages + 1, 4]`; each row adds up to 1.
    """
    weights = np.zeros((languages + 1, len(NeuronType)))
    for active in range(languages + 1):
        for chosen in range(max(0, size - (languages - active)), min(active, size) + 1):
            kind = NeuronType.ALL_SHARED if chosen == size else NeuronType(min(chosen, NeuronType.PARTIAL_SHARED))
            weights[active, kind] += comb(active, chosen) * comb(languages - active, size - chosen)
    shares: NDArray[np.float64] = weights / comb(languages, size)
    return shares
