"""What a group's baseline says: the types of its neurons, and from them what each variant does to each row."""

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
"""From a variant's interventions to what they do to each row of the group. Edits are large: not all at once."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Compares the rows of a group in one model.

    Attributes:
        components: the decoder, or the encoder and the decoder.
        norms: of their value rows, by component, float32 `[layers, neurons]`.
        projections: of the decoder's value rows.
        dtype: of their activations.
    """

    components: Sequence[ComponentDescription]
    norms: Mapping[str, NDArray[np.float32]]
    projections: Projections
    dtype: np.dtype[np.floating]
    _known: WeakValueDictionary[tuple[Hashable, ...], Baseline] = field(
        default_factory=WeakValueDictionary, init=False, repr=False
    )

    def __call__(
        self, group_id: str, baseline: Sequence[RowRun], analysis: Analysis, tenant: str = ""
    ) -> Pieces[tuple[tuple[ComponentResult, ...], Derive]]:
        """Type the baseline's neurons in every component; what a variant does to each row is derived when asked for."""
        found, references = [], []
        for component in self.components:
            reference = self._baseline(component.name, group_id, baseline, analysis.thresholds[0])
            references.append(reference)
            yield
            scores = yield from self._scores(
                reference, [case.row for case in baseline], analysis.effective_score, tenant
            )
            findings = Findings(
                baseline=reference,
                scores=scores,
                ever=(yield from _ever(component.name, baseline, analysis.thresholds)) if analysis.dead else None,
            )
            yield
            found.append((yield from component_result(component, findings, analysis)))
        return tuple(found), partial(row_edits, baselines=references, dtype=self.dtype)

    def _baseline(self, component: str, group_id: str, cases: Sequence[RowRun], threshold: float) -> Baseline:
        """The rows' baseline; those who ask for the same group at a time look at the same one."""
        results = [case.results[component] for case in cases]
        labels = tuple(case.row.label for case in cases)
        key = (component, group_id, labels, threshold, *map(id, results))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Baseline.of(
                results,
                component=component,
                group_id=group_id,
                labels=labels,
                norms=self.norms[component],
                threshold=threshold,
            )
        return known

    def _scores(
        self, baseline: Baseline, rows: Sequence[EncodedRow], wanted: EffectiveScore | None, tenant: str
    ) -> Pieces[NDArray[np.float32] | None]:
        """Effective scores of every neuron of every row, where they are wanted of more than one row of a decoder."""
        if wanted is None or baseline.component != DECODER or len(rows) == 1:
            return None
        scored = [place for place, row in enumerate(rows) if row.gold]
        projections = yield from self.projections.of(
            [score_tokens(rows[place], wanted.target) for place in scored], tenant
        )
        scores = np.full(baseline.coefficients.shape, np.nan, dtype=np.float32)
        scores[scored] = effective.effective_scores(baseline.coefficients[scored], projections)
        return scores


def _ever(component: str, cases: Sequence[RowRun], thresholds: Sequence[float]) -> Pieces[NDArray[np.bool_]]:
    """Whether each neuron exceeds each threshold at any token of each prompt, `[R, thresholds, layers, neurons]`.

    Of a decoder the last prompt token, where the answer begins, was not read with the others: its activations are those
    of the baseline.
    """
    ever = []
    for case in cases:
        of_case = case.ever.get(component)
        if component == DECODER:
            activations = case.results[DECODER].activations
            assert activations is not None
            last = np.stack([types.active(activations, threshold) for threshold in thresholds])
            of_case = last if of_case is None else last | of_case
        assert of_case is not None
        ever.append(of_case)
        yield
    return np.stack(ever)


def score_tokens(row: EncodedRow, target: ScoreTarget) -> Counter[int]:
    """The tokens of which a row's effective scores are taken, each with how often its embedding counts."""
    match target:
        case ScoreTarget.FIRST_GOLD_TOKEN:
            return Counter([row.gold[row.r_index]])
        case ScoreTarget.ALL_GOLD_TOKENS:
            return Counter(row.gold)
        case ScoreTarget.GOLD_MINUS_DISTRACTOR:
            tokens = Counter([row.gold[row.r_index]])
            tokens.subtract([row.distractor[0]])
            return tokens
