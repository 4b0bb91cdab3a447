"""Measures a group's baseline, and derives from its neuron types the edits of each variant in each row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.core import (
    DECODER,
    Analysis,
    ComponentDescription,
    ComponentResult,
    EffectiveScore,
    Intervention,
    ScoreTarget,
)
from neuroglot_server.intake.text import EncodedRow
from neuroglot_server.kernels import effective, types
from neuroglot_server.kernels.kernel_thread import Pieces
from neuroglot_server.neurons.baseline import Baseline
from neuroglot_server.neurons.interventions import RowEdits, row_edits
from neuroglot_server.neurons.results import Findings, component_result
from neuroglot_server.neurons.value_matrices import Projections
from neuroglot_server.plan.rows import RowRun

Derive = Callable[[Sequence[Intervention]], Pieces[list[RowEdits]]]
"""Derives a variant's edits of each row of the group. Edits are large, so variants are derived one at a time."""


@dataclass(frozen=True, eq=False)
class Measure:
    """Measures groups in one model: types, contributions, effective scores, dead neurons.

    Attributes:
        components: the decoder, or the encoder and the decoder.
        norms: L2 norms of the value rows by component, float32 `[layers, neurons]`.
        projections: projections of the decoder's value rows onto tokens.
        dtype: dtype of activations.
    """

    components: Sequence[ComponentDescription]
    norms: Mapping[str, NDArray[np.float32]]
    projections: Projections
    dtype: np.dtype[np.floating]
    _baselines: WeakValueDictionary[tuple[Hashable, ...], Baseline] = field(
        default_factory=WeakValueDictionary, init=False, repr=False
    )

    def __call__(
        self, group_id: str, baseline: Sequence[RowRun], analysis: Analysis, tenant: str = ""
    ) -> Pieces[tuple[tuple[ComponentResult, ...], Derive]]:
        """Measure the baseline in every component.

        Args:
            group_id: the group's id.
            baseline: the group's row runs without interventions, with their results.
            analysis: the options.
            tenant: the tenant whose cached projections may be used.

        Returns:
            The result of each component, and a function that derives a variant's edits.
        """
        found, references = [], []
        for component in self.components:
            reference = self._baseline(component.name, group_id, baseline, analysis.thresholds[0])
            references.append(reference)
            yield
            scores = yield from self._scores(reference, [run.row for run in baseline], analysis.effective_score, tenant)
            findings = Findings(
                baseline=reference,
                scores=scores,
                ever=(yield from _ever(component.name, baseline, analysis.thresholds)) if analysis.dead else None,
            )
            yield
            found.append((yield from component_result(component, findings, analysis)))
        return tuple(found), partial(row_edits, baselines=references, dtype=self.dtype)

    def _baseline(self, component: str, group_id: str, runs: Sequence[RowRun], threshold: float) -> Baseline:
        """The rows' baseline; concurrent requests for the same group share one object."""
        results = [run.results[component] for run in runs]
        labels = tuple(run.row.label for run in runs)
        key = (component, group_id, labels, threshold, *map(id, results))
        shared = self._baselines.get(key)
        if shared is None:
            shared = self._baselines[key] = Baseline.of(
                results,
                component=component,
                group_id=group_id,
                labels=labels,
                norms=self.norms[component],
                threshold=threshold,
            )
        return shared

    def _scores(
        self, baseline: Baseline, rows: Sequence[EncodedRow], options: EffectiveScore | None, tenant: str
    ) -> Pieces[NDArray[np.float32] | None]:
        """Effective scores, float32 `[R, layers, neurons]`, NaN in rows without a gold answer.

        None if not requested, for an encoder, and for a single row.
        """
        if options is None or baseline.component != DECODER or len(rows) == 1:
            return None
        scored = [index for index, row in enumerate(rows) if row.gold]
        projections = yield from self.projections.of(
            [score_tokens(rows[index], options.target) for index in scored], tenant
        )
        scores = np.full(baseline.coefficients.shape, np.nan, dtype=np.float32)
        scores[scored] = effective.effective_scores(baseline.coefficients[scored], projections)
        return scores


def _ever(component: str, runs: Sequence[RowRun], thresholds: Sequence[float]) -> Pieces[NDArray[np.bool_]]:
    """Whether each neuron exceeds each threshold at any token of each prompt, `[R, thresholds, layers, neurons]`.

    A decoder's last prompt token, where the answer begins, is not part of the prefill: its activations are those of the
    baseline.
    """
    ever = []
    for run in runs:
        of_run = run.ever.get(component)
        if component == DECODER:
            activations = run.results[DECODER].activations
            assert activations is not None
            last = np.stack([types.active(activations, threshold) for threshold in thresholds])
            of_run = last if of_run is None else last | of_run
        assert of_run is not None
        ever.append(of_run)
        yield
    return np.stack(ever)


def score_tokens(row: EncodedRow, target: ScoreTarget) -> Counter[int]:
    """The tokens that a row's effective scores are relative to, each with the weight of its output embedding."""
    match target:
        case ScoreTarget.FIRST_GOLD_TOKEN:
            return Counter([row.gold[row.r_index]])
        case ScoreTarget.ALL_GOLD_TOKENS:
            return Counter(row.gold)
        case ScoreTarget.GOLD_MINUS_DISTRACTOR:
            tokens = Counter([row.gold[row.r_index]])
            tokens.subtract([row.distractor[0]])
            return tokens
