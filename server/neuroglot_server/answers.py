"""From arrays to the parts of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuroglot.packing import pack_bits, pack_codes
from neuroglot_server.core import (
    Analysis,
    ComponentDescription,
    ComponentResult,
    ContributionResult,
    RowPrediction,
    ThresholdResult,
)
from neuroglot_server.kernels import contribution, types
from neuroglot_server.kernels.scoring import NextTokens, normalised
from neuroglot_server.text import EncodedRow, Text


@dataclass(frozen=True, eq=False)
class Taps:
    """What the baseline showed of one component at the last prompt token of each row.

    Attributes:
        activations: `[R, layers, neurons]`.
        coefficients: what multiplies the value rows, of the same shape.
    """

    activations: NDArray[np.floating]
    coefficients: NDArray[np.floating]


def component_result(
    component: ComponentDescription, taps: Taps, norms: NDArray[np.float32], analysis: Analysis
) -> ComponentResult:
    """Types and contributions in one component, at every threshold."""
    shares = None
    if analysis.contribution is not None and len(taps.activations) > 1:
        shares = contribution.contributions(taps.coefficients, norms)
    thresholds = tuple(_threshold_result(threshold, taps, shares, analysis) for threshold in analysis.thresholds)
    return ComponentResult(component.name, component.layers, component.neurons, thresholds)


def _threshold_result(
    threshold: float, taps: Taps, shares: NDArray[np.float32] | None, analysis: Analysis
) -> ThresholdResult:
    activity = types.active(taps.activations, threshold)
    codes = types.type_codes(activity) if len(activity) > 1 else None
    of_types = None
    if analysis.contribution is not None and codes is not None and shares is not None:
        of_types = _contribution_result(shares, codes, analysis.contribution.top_fraction)
    return ThresholdResult(
        threshold=threshold,
        type_counts=None if codes is None else types.type_counts(codes),
        active_counts=types.active_counts(activity),
        near_threshold=types.near_threshold(taps.activations, threshold),
        type_map=pack_codes(codes) if analysis.type_map and codes is not None else b"",
        active_bitmaps=tuple(pack_bits(of_row) for of_row in activity) if analysis.active_bitmaps else (),
        contribution=of_types,
    )


def _contribution_result(
    shares: NDArray[np.float32], codes: NDArray[np.uint8], top_fraction: float
) -> ContributionResult:
    k = contribution.top_k(shares.shape[-1], top_fraction)
    return ContributionResult(
        top_k=k,
        top_counts=contribution.counts_by_type(contribution.top(shares, k), codes),
        sums=contribution.sums_by_type(shares, codes),
    )


def row_prediction(row: EncodedRow, scores: NextTokens, generated: Sequence[int] | None, text: Text) -> RowPrediction:
    """What the model said after a prompt.

    Args:
        row: the prompt and its answers.
        scores: at the token from which the answer begins and the gold tokens but the last.
        generated: the tokens that it generated, if it was asked to.
        text: to decode them.
    """
    exact = log_probability = matches = starts = None
    if row.gold:
        exact = scores.greedy == row.gold
        log_probability = sum(scores.log_probabilities)
    said = "" if generated is None else text.decode(generated).strip()
    if row.answers and generated is not None:
        answers = [normalised(answer) for answer in row.answers]
        matches = normalised(said) in answers
        starts = normalised(said).startswith(tuple(answers))
    return RowPrediction(
        exact=exact,
        gold_log_probability=log_probability,
        token_ids=tuple(generated or ()),
        text=said,
        matches=matches,
        starts_with_answer=starts,
    )
