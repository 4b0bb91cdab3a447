"""The plan of a group: which steps, in which order, give its types and the predictions of all its variants.

reading        the prompt of each row, up to where its answer begins: a causal model runs all tokens but the last, an
               encoder-decoder encodes the whole; activations of the encoder are read here
baseline       the token from which the answer begins and the gold tokens, on top of what was read, and each choice
               likewise; activations of the decoder are read here
types          from those activations; they say which neurons the variants change
variants       the baseline's step again for each variant and row, forked from what was read; variants that act on the
               prompt before the answer begins read it anew
generation     of all rows and variants together

What is run without interventions is run once, however many groups ask for it. Variants are run in parts where all of
them together would hold too much.
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
from neuroglot_server.plan.measure import Comparison, Derive
from neuroglot_server.plan.rows import RowRun
from neuroglot_server.plan.runner import Runner
from neuroglot_server.scheduler.batcher import Timing

_OVERFLOW = "the interventions make this row's numbers overflow: use smaller values or fewer neurons"

_WORTH_A_THREAD = 500_000.0
"""Nanoseconds. What takes less runs on the event loop: a thread takes about as long to be woken and to wake it."""

_NEXT_TO_NOTHING = 2**10
"""Of which part of the house prompts must be for it to matter that they count once: of fewer a thousand groups fit."""

Interventions = tuple[Intervention, ...]
_Computed = TypeVar("_Computed")


@dataclass(frozen=True, eq=False)
class Planner:
    """Runs groups through a model.

    Attributes:
        answering: brings rows through the model.
        comparison: types the baseline's neurons, and derives the variants' edits from them.
        kernels: the thread on which the comparison runs.
        costs: counts what groups hold, and splits their variants.
    """

    answering: Runner
    comparison: Comparison
    kernels: KernelThread
    costs: Costs

    async def run(
        self, group_id: str, rows: Sequence[EncodedRow], analysis: Analysis, caller: Caller = ANYONE
    ) -> GroupResult:
        """Analyse one group.

        Raises:
            NotFinite: a row's baseline has activations or logits that are not finite.
            ModelClosed: the model went down meanwhile.
        """
        timing = Timing()
        prediction = analysis.prediction
        baseline = [RowRun(row) for row in rows]
        thresholds = analysis.thresholds if analysis.dead else ()
        forks = prediction is not None
        await self.answering.baseline(baseline, prediction, timing, caller, thresholds, forks=forks)
        comparing = self.comparison(group_id, baseline, analysis, caller.tenant)
        components, derive = await self._computed(comparing, self.costs.baseline_nanoseconds(rows, analysis), caller)
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
        """What kernels compute, on their thread unless it takes next to nothing."""
        if nanoseconds < _WORTH_A_THREAD:
            return completed(pieces)
        return await self.kernels.run(pieces, caller.tenant)

    def cost(self, rows: Sequence[EncodedRow], analysis: Analysis) -> Cost:
        """What a group takes: tokens, and bytes, with those of `shares` among them.

        It is charged the tokens that it runs over all of its variants if nothing is cached, choices included, or the
        equivalent of what the kernels do for it (`Costs.kernel_tokens`), whichever is more.
        """
        prompts = sum([len(row.prompt) for row in rows])
        answers = len(rows)
        if analysis.prediction is not None:
            answers += sum(answer_tokens(row, analysis.prediction) for row in rows)
            answers += sum(len(choice) for row in rows for choice in row.choices)
        anew = [self._read_anew(variant.interventions) for variant in analysis.variants]
        tokens = prompts * (1 + sum(anew)) + answers * (1 + len(anew))
        return Cost(max(tokens, self.costs.kernel_tokens(rows, analysis)), self.costs.bytes(rows, analysis, anew))

    def shares(self, rows: Sequence[EncodedRow], analysis: Analysis) -> dict[bytes, int]:
        """Bytes of what is kept of a group's prompts, by key: whoever asks for the same prompts holds the same ones.

        None where all prompts are read for this group alone, and where that is next to nothing.
        """
        if analysis.dead or not self.answering.sharing.keeps:
            return {}
        size = self.costs.key_values
        if sum([len(row.prompt) for row in rows]) * size < self.costs.group_bytes // _NEXT_TO_NOTHING:
            return {}
        links = (link for row in rows for link in self.answering.reader.links(row))
        return {link.key: link.tokens * size for link in links if link.key is not None}

    def _read_anew(self, interventions: Interventions) -> bool:
        return any(map(self.answering.reader.concerns, interventions))

    async def _predict(
        self,
        baseline: Sequence[RowRun],
        derive: Derive,
        analysis: Analysis,
        prediction: Prediction,
        timing: Timing,
        caller: Caller,
    ) -> tuple[VariantResult, ...]:
        """Run all variants, and generate the baseline's answers beside the first of them."""
        distinct = list(dict.fromkeys(variant.interventions for variant in analysis.variants))
        rows = [case.row for case in baseline]
        predictions: dict[Interventions, tuple[RowPrediction, ...]] = {}
        for part in self.costs.variants(rows, analysis, len(distinct)):
            said = await self._predict_part(baseline, derive, distinct[part], analysis, prediction, timing, caller)
            predictions.update(zip(distinct[part], said, strict=True))
        unchanged = tuple(self._prediction(case, NO_ROW_EDITS) for case in baseline)
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
        """Run some variants; one that does nothing to a row shares the baseline's case."""
        nanoseconds = self.costs.interventions_nanoseconds(len(baseline), chain.from_iterable(variants))
        edits = await self._computed(_of_each(derive, variants), nanoseconds, caller)
        changed = [  # those that fork from one prompt follow each other, so that it is brought into a pass once
            (variant, place)
            for place in range(len(baseline))
            for variant in range(len(variants))
            if edits[variant][place].anywhere
        ]
        rows = [case.row for case in baseline]
        anew = [self.answering.reader.changed(edits[variant][place]) for variant, place in changed]
        sizes = [(rows[place], again) for (_, place), again in zip(changed, anew, strict=True)]
        said: dict[tuple[int, int], RowPrediction] = {}
        for part in self.costs.rows(rows, analysis, sizes):
            cases = {(variant, place): baseline[place].under(edits[variant][place]) for variant, place in changed[part]}
            await self.answering.under_interventions(list(cases.values()), prediction, timing, caller)
            await self.answering.go_on([*baseline, *cases.values()], timing, caller)
            said |= {at: self._prediction(case, case.edits) for at, case in cases.items()}
        return [
            tuple(
                said.get((variant, place)) or self._prediction(baseline[place], of_row)
                for place, of_row in enumerate(of_rows)
            )
            for variant, of_rows in enumerate(edits)
        ]

    def _prediction(self, case: RowRun, edits: RowEdits) -> RowPrediction:
        scores, continuation = case.results[DECODER].scores, case.continuation
        choices = [result.scores for result in case.choices]
        if scores is None or None in choices or (continuation is not None and not continuation.finite):
            return RowPrediction(error=_OVERFLOW)
        said = None if continuation is None else continuation.tokens
        return replace(
            row_prediction(case.row, scores, said, self.answering.text),
            selected_neurons=edits.selected,
            selected_active_neurons=edits.selected_active,
            choice_log_probabilities=tuple(sum(one.log_probabilities) for one in choices if one is not None),
        )


def _of_each(derive: Derive, variants: Sequence[Interventions]) -> Pieces[list[list[RowEdits]]]:
    """The edits of each variant."""
    edits = []
    for variant in variants:
        edits.append((yield from derive(variant)))
    return edits
