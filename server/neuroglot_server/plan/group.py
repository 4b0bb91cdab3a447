"""The plan of a group: which steps, in which order, give its types and the predictions of all its variants.

prefill        the prompt of each row: a causal model runs all tokens but the last, the encoder of an encoder-decoder
               runs all of them and returns its activations
baseline       the token from which the answer begins and the gold tokens, on top of the prefill, and each choice
               likewise; returns the decoder's activations
types          from these activations; they determine which neurons the variants change
variants       the baseline's step again for each variant and row, forked from the prefill; variants that act on the
               prompt before the answer begins re-run the prefill
generation     all rows and variants in one batch

Steps without interventions are run once for all groups that need them. Variants are run in parts if all of them
together would hold too much memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

from neuroglot_server.core import (
    ANYONE,
    BASELINE,
    DECODER,
    Analysis,
    Caller,
    GroupResult,
    Intervention,
    Prediction,
    RowPrediction,
    RowResult,
    VariantResult,
)
from neuroglot_server.intake.admission import Cost
from neuroglot_server.intake.costs import Costs
from neuroglot_server.intake.encoding import answer_tokens
from neuroglot_server.intake.text import EncodedRow
from neuroglot_server.kernels.kernel_thread import KernelThread, Pieces, completed
from neuroglot_server.neurons.interventions import NO_ROW_EDITS, RowEdits
from neuroglot_server.neurons.results import row_prediction
from neuroglot_server.plan.measure import Derive, Measure
from neuroglot_server.plan.rows import RowRun
from neuroglot_server.plan.runner import Runner
from neuroglot_server.scheduler.batcher import Timing

_OVERFLOW = "the interventions make this row's numbers overflow: use smaller values or fewer neurons"

_WORTH_A_THREAD = 500_000.0
"""Nanoseconds. Shorter kernels run on the event loop: switching to a thread and back takes about as long."""

_DEDUPLICATED_FRACTION = 2**10
"""Prompts smaller than `queue_bytes / 1024` are not deduplicated in admission."""

Interventions = tuple[Intervention, ...]
_Computed = TypeVar("_Computed")


@dataclass(frozen=True, eq=False)
class Planner:
    """Runs groups through a model.

    Attributes:
        runner: runs rows through the model.
        measure: types the baseline's neurons, and derives the variants' edits from them.
        kernels: the thread on which `measure` runs.
        costs: estimates the memory of groups, and splits their variants.
    """

    runner: Runner
    measure: Measure
    kernels: KernelThread
    costs: Costs

    async def run(
        self, group_id: str, rows: Sequence[EncodedRow], analysis: Analysis, caller: Caller = ANYONE
    ) -> GroupResult:
        """Analyse one group.

        Raises:
            NotFinite: a row's baseline has activations or logits that are not finite.
            ModelClosed: the model was closed meanwhile.
        """
        timing = Timing()
        prediction = analysis.prediction
        baseline = [RowRun(row) for row in rows]
        thresholds = analysis.thresholds if analysis.dead else ()
        forks = prediction is not None
        await self.runner.baseline(baseline, prediction, timing, caller, thresholds, forks=forks)
        measuring = self.measure(group_id, baseline, analysis, caller.tenant)
        components, derive = await self._computed(measuring, self.costs.baseline_nanoseconds(rows, analysis), caller)
        predicted: tuple[VariantResult, ...] = ()
        if prediction is not None:
            predicted = await self._predict(baseline, derive, analysis, prediction, timing, caller)
        return GroupResult(
            group_id=group_id,
            rows=tuple(
                RowResult(row.label, len(row.prompt), row.prompt[-1], row.gold, row.joint, row.r_index) for row in rows
            ),
            components=components,
            variants=predicted,
            queue_time_ms=timing.queue * 1e3,
            compute_time_ms=timing.compute * 1e3,
        )

    async def _computed(self, pieces: Pieces[_Computed], nanoseconds: float, caller: Caller) -> _Computed:
        """Run kernels, on their thread unless they are shorter than `_WORTH_A_THREAD`."""
        if nanoseconds < _WORTH_A_THREAD:
            return completed(pieces)
        return await self.kernels.run(pieces, caller.tenant)

    def cost(self, rows: Sequence[EncodedRow], analysis: Analysis) -> Cost:
        """The cost of a group in tokens and bytes, those of `shares` included.

        The tokens are those run for all variants and choices if nothing is cached, or the equivalent of the kernels'
        work (`Costs.kernel_tokens`), whichever is more.
        """
        prompts = sum([len(row.prompt) for row in rows])
        answers = len(rows)
        if analysis.prediction is not None:
            answers += sum(answer_tokens(row, analysis.prediction) for row in rows)
            answers += sum(len(choice) for row in rows for choice in row.choices)
        reruns = [self._may_rerun(variant.interventions) for variant in analysis.variants]
        tokens = prompts * (1 + sum(reruns)) + answers * (1 + len(reruns))
        return Cost(max(tokens, self.costs.kernel_tokens(rows, analysis)), self.costs.bytes(rows, analysis, reruns))

    def shares(self, rows: Sequence[EncodedRow], analysis: Analysis) -> dict[bytes, int]:
        """Bytes of the keys and values of a group's prompts by cache key: groups with the same prompts share them.

        Empty if no prompt is cached (dead neurons, or no cache), and if the prompts are too small to matter.
        """
        if analysis.dead or not self.runner.step_cache.enabled:
            return {}
        size = self.costs.key_values
        if sum([len(row.prompt) for row in rows]) * size < self.costs.group_bytes // _DEDUPLICATED_FRACTION:
            return {}
        links = (link for row in rows for link in self.runner.prefill.links(row))
        return {link.key: link.tokens * size for link in links if link.key is not None}

    def _may_rerun(self, interventions: Interventions) -> bool:
        return any(map(self.runner.prefill.may_rerun, interventions))

    async def _predict(
        self,
        baseline: Sequence[RowRun],
        derive: Derive,
        analysis: Analysis,
        prediction: Prediction,
        timing: Timing,
        caller: Caller,
    ) -> tuple[VariantResult, ...]:
        """Run all variants, and generate the baseline's answers in the batch of the first ones."""
        distinct = list(dict.fromkeys(variant.interventions for variant in analysis.variants))
        rows = [run.row for run in baseline]
        predictions: dict[Interventions, tuple[RowPrediction, ...]] = {}
        for part in self.costs.variants(rows, analysis, len(distinct)):
            predicted = await self._predict_part(baseline, derive, distinct[part], analysis, prediction, timing, caller)
            predictions.update(zip(distinct[part], predicted, strict=True))
        unchanged = tuple(self._prediction(run, NO_ROW_EDITS) for run in baseline)
        return (
            VariantResult(BASELINE, unchanged),
            *(VariantResult(variant.name, predictions[variant.interventions]) for variant in analysis.variants),
        )

    async def _predict_part(
        self,
        baseline: Sequence[RowRun],
        derive: Derive,
        variants: Sequence[Interventions],
        analysis: Analysis,
        prediction: Prediction,
        timing: Timing,
        caller: Caller,
    ) -> list[tuple[RowPrediction, ...]]:
        """Run some variants; where a variant does not change a row, the prediction is the baseline's."""
        nanoseconds = self.costs.interventions_nanoseconds(len(baseline), chain.from_iterable(variants))
        edits = await self._computed(_of_each(derive, variants), nanoseconds, caller)
        changed = [  # variants of one prompt are adjacent, so that a pass assembles its keys and values once
            (variant, row)
            for row in range(len(baseline))
            for variant in range(len(variants))
            if edits[variant][row].anywhere
        ]
        rows = [run.row for run in baseline]
        reruns = [self.runner.prefill.must_rerun(edits[variant][row]) for variant, row in changed]
        sizes = [(rows[row], rerun) for (_, row), rerun in zip(changed, reruns, strict=True)]
        predictions: dict[tuple[int, int], RowPrediction] = {}
        for part in self.costs.rows(rows, analysis, sizes):
            runs = {(variant, row): baseline[row].under(edits[variant][row]) for variant, row in changed[part]}
            await self.runner.under_interventions(list(runs.values()), prediction, timing, caller)
            await self.runner.generate([*baseline, *runs.values()], timing, caller)
            predictions |= {at: self._prediction(run, run.edits) for at, run in runs.items()}
        return [
            tuple(
                predictions.get((variant, row)) or self._prediction(baseline[row], of_row)
                for row, of_row in enumerate(of_rows)
            )
            for variant, of_rows in enumerate(edits)
        ]

    def _prediction(self, run: RowRun, edits: RowEdits) -> RowPrediction:
        scores, continuation = run.results[DECODER].scores, run.continuation
        choices = [result.scores for result in run.choices]
        if scores is None or None in choices or (continuation is not None and not continuation.finite):
            return RowPrediction(error=_OVERFLOW)
        generated = None if continuation is None else continuation.tokens
        return replace(
            row_prediction(run.row, scores, generated, self.runner.text),
            selected_neurons=edits.selected,
            selected_active_neurons=edits.selected_active,
            choice_log_probabilities=tuple(sum(choice.log_probabilities) for choice in choices if choice is not None),
        )


def _of_each(derive: Derive, variants: Sequence[Interventions]) -> Pieces[list[list[RowEdits]]]:
    """The edits of each variant."""
    edits = []
    for variant in variants:
        edits.append((yield from derive(variant)))
    return edits
