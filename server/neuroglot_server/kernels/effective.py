"""Effective scores: how far each neuron moves a token's logit, as far as the residual stream alone decides it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.core import NeuronType


class ByType(NamedTuple):
    """Scores of the neurons of each type, float32 `[R, layers, 4]`; 0 where a type is empty, NaN where a row is."""

    maxima: NDArray[np.float32]
    minima: NDArray[np.float32]
    sums: NDArray[np.float32]


def effective_scores(coefficients: NDArray[np.floating], projections: NDArray[np.float32]) -> NDArray[np.float32]:
    """m_i * (v_i . E_t), for every neuron of every row.

    Args:
        coefficients: m, what multiplies the value rows, float16 or float32 `[R, layers, neurons]`.
        projections: v_i . E_t, of the same shape: each row has a token t of its own.
    """
    scores: NDArray[np.float32] = coefficients * projections
    return scores


def by_type(scores: NDArray[np.float32], codes: NDArray[np.uint8]) -> ByType:
    """Largest, smallest and summed score of each type.

    Args:
        scores: `[R, layers, neurons]`; rows without a score are NaN.
        codes: of the neurons' types, `[layers, neurons]`.
    """
    shape = (*scores.shape[:2], len(NeuronType))
    reduced = ByType(*(np.zeros(shape, dtype=np.float32) for _ in ByType._fields))
    for kind in NeuronType:
        of_type = codes == kind
        present = of_type.any(axis=-1)
        maxima = scores.max(axis=-1, where=of_type, initial=-np.inf)
        minima = scores.min(axis=-1, where=of_type, initial=np.inf)
        reduced.maxima[..., kind] = np.where(present, maxima, 0)
        reduced.minima[..., kind] = np.where(present, minima, 0)
        reduced.sums[..., kind] = scores.sum(axis=-1, where=of_type)
    empty = np.isnan(scores).any(axis=(1, 2))
    for values in reduced:
        values[empty] = np.nan
    return reduced
