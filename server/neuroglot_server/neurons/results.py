"""Results of a group, built from arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuroglot.definitions.normalisation import normalised
from neuroglot.definitions.packing import pack_bits, pack_codes
from neuroglot_server.core import (
    Analysis,
    ComponentDescription,
    ComponentResult,
    Contribution,
    ContributionResult,
    EffectiveScore,
    EffectiveScoreResult,
    LeadingNeurons,
    RowPrediction,
    ThresholdResult,
)
from neuroglot_server.intake.text import EncodedRow, Text
from neuroglot_server.kernels import contribution, effective, types
from neuroglot_server.kernels.kernel_thread import Pieces
from neuroglot_server.kernels.scoring import NextTokens
from neuroglot_server.neurons.baseline import Baseline


@dataclass(frozen=True, eq=False)
class Findings:
    """Measurements of a group's baseline in one component.

    Attributes:
        baseline: activations at the last prompt token.
        scores: effective scores, float32 `[R, layers, neurons]`, NaN in rows without an answer; None if not requested,
            and for an encoder.
        ever: whether each neuron exceeds each threshold at any token of the prompt, bool
            `[R, thresholds, layers, neurons]`; None if not requested.
    """

    baseline: Baseline
    scores: NDArray[np.float32] | None = None
    ever: NDArray[np.bool_] | None = None


def component_result(
    component: ComponentDescription, findings: Findings, analysis: Analysis
) -> Pieces[ComponentResult]:
    """Compute types, contributions, effective scores and dead neurons of one component at every threshold.

    Yields after each part of a threshold's result.
    """
    thresholds = []
    for index in range(len(analysis.thresholds)):
        thresholds.append((yield from _threshold_result(index, findings, analysis)))
    return ComponentResult(component.name, component.layers, component.neurons, tuple(thresholds))


def _threshold_result(index: int, findings: Findings, analysis: Analysis) -> Pieces[ThresholdResult]:
    threshold = analysis.thresholds[index]
    activations = findings.baseline.activations
    activity = types.active(activations, threshold)
    codes = types.type_codes(activity) if len(activity) > 1 else None
    yield
    dead = None if findings.ever is None else ~findings.ever[:, index]
    contributing = effective_score = None
    if codes is not None:
        top_bitmaps = analysis.active_bitmaps and index == 0
        contributing = yield from _contribution_result(
            findings.baseline, codes, analysis.contribution, top_bitmaps=top_bitmaps
        )
        yield
        effective_score = yield from _effective_score_result(findings.scores, codes, analysis.effective_score)
        yield
    return ThresholdResult(
        threshold=threshold,
        type_counts=None if codes is None else types.type_counts(codes),
        active_counts=types.active_counts(activity),
        near_threshold=types.near_threshold(activations, threshold, activity),
        type_map=pack_codes(codes) if codes is not None and analysis.type_map else b"",
        active_bitmaps=_bitmaps(activity) if analysis.active_bitmaps else (),
        contribution=contributing,
        effective_score=effective_score,
        dead_counts=None if dead is None else types.active_counts(dead),
        dead_bitmaps=_bitmaps(dead) if dead is not None and analysis.active_bitmaps else (),
    )


def _bitmaps(members: NDArray[np.bool_]) -> tuple[bytes, ...]:
    return tuple(pack_bits(of_row) for of_row in members)


def _contribution_result(
    baseline: Baseline, codes: NDArray[np.uint8], options: Contribution | None, *, top_bitmaps: bool
) -> Pieces[ContributionResult | None]:
    if options is None:
        return None
    values = baseline.magnitudes if options.raw else baseline.contributions
    k = contribution.top_k(values.shape[-1], options.top_fraction, options.top_k)
    top = np.empty(values.shape, dtype=np.bool_)
    for row, of_row in enumerate(values):
        top[row] = contribution.top(of_row, k)
        yield
    leading = yield from _leading(values, codes, options.neurons)
    return ContributionResult(
        top_k=k,
        top_counts=contribution.counts_by_type(top, codes),
        sums=contribution.sums_by_type(values, codes),
        leading=leading,
        top_bitmaps=_bitmaps(top) if top_bitmaps else (),
    )


def _effective_score_result(
    scores: NDArray[np.float32] | None, codes: NDArray[np.uint8], options: EffectiveScore | None
) -> Pieces[EffectiveScoreResult | None]:
    if options is None or scores is None:
        return None
    by_type = effective.by_type(scores, codes)
    yield
    leading = yield from _leading(scores, codes, options.neurons)
    return EffectiveScoreResult(*by_type, leading=leading)


def _leading(values: NDArray[np.float32], codes: NDArray[np.uint8], k: int) -> Pieces[LeadingNeurons | None]:
    """The k neurons with the largest values in each row and layer; in NaN rows the first k, with NaN values."""
    if k == 0:
        return None
    neurons = np.empty((*values.shape[:-1], k), dtype=np.int64)
    for row, of_row in enumerate(values):
        neurons[row] = contribution.leading(np.nan_to_num(of_row), k)
        yield
    return LeadingNeurons(
        neurons=neurons,
        values=np.take_along_axis(values, neurons, axis=-1),
        codes=np.take_along_axis(np.broadcast_to(codes, values.shape), neurons, axis=-1),
    )


def row_prediction(row: EncodedRow, scores: NextTokens, generated: Sequence[int] | None, text: Text) -> RowPrediction:
    """Build the prediction for a row.

    Args:
        row: the prompt and its answers.
        scores: scores at the token from which the answer begins and at the gold tokens but the last.
        generated: the generated tokens; None if generation was not requested.
        text: decodes the generated tokens.
    """
    exact = log_probability = matches = starts = None
    if row.gold:
        exact = scores.greedy == row.gold
        log_probability = sum(scores.log_probabilities)
    generated_text = "" if generated is None else text.decode(generated).strip()
    if row.answers and generated is not None:
        answers = [normalised(answer) for answer in row.answers]
        matches = normalised(generated_text) in answers
        starts = normalised(generated_text).startswith(tuple(answers))
    return RowPrediction(
        exact=exact,
        gold_log_probability=log_probability,
        token_ids=tuple(generated or ()),
        text=generated_text,
        matches=matches,
        starts_with_answer=starts,
    )
