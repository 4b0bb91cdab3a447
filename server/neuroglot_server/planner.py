"""The plan of a group: which steps, in which order, give its types and the predictions of all its variants.

prefill        the prompt of each row but its last token
baseline       its last token and the gold tokens, on top of those keys and values; activations are read here
types          from those activations; they say which neurons the variants change
variants       the baseline's step again for each variant and row, forked from the same keys and values; variants
that act on the whole prompt prefill it anew
generation     of all rows and variants together
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.answers import Taps, component_result, row_prediction
from neuroglot_server.batcher import Batcher, Timing
from neuroglot_server.core import (
    BASELINE,
    Analysis,
    ComponentDescription,
    ComponentResult,
    GroupResult,
    NotFinite,
    Prediction,
    RowPrediction,
    RowResult,
    VariantResult,
)
from neuroglot_server.generation import Continuation, generate, most_tokens
from neuroglot_server.interventions import NO_EDITS, RowEdits, row_edits
from neuroglot_server.kernels import types
from neuroglot_server.selections import Baseline
from neuroglot_server.steps import NO_PAST, KeyValues, RowStep, StepResult
from neuroglot_server.text import EncodedRow, Text

_OVERFLOW = "the interventions make this row's numbers overflow: use smaller values or fewer neurons"
_NOT_RUN = StepResult(finite=False)


@dataclass(eq=False)
class _Case:
    """A row in the baseline or under a variant, and how far it has come.

    Attributes:
        row: the row.
        edits: what is done to it.
        past: keys and values of its prompt but the last token.
        result: of the step over its last prompt token and, for predictions, its gold tokens but the last.
        continuation: the answer that is being generated, where one is wanted and could be begun.
    """

    row: EncodedRow
    edits: RowEdits = NO_EDITS
    past: KeyValues = NO_PAST
    result: StepResult = _NOT_RUN
    continuation: Continuation | None = None


@dataclass(frozen=True, eq=False)
class Planner:
    """Runs groups through a causal model.

    Attributes:
        component: the decoder.
        norms: of its value rows, float32 `[layers, neurons]`.
        dtype: of its activations.
        eos: tokens that end a generation.
        text: its tokenizer.
        batcher: runs steps.
        kernels: runs what is computed from arrays, off the event loop.
    """

    component: ComponentDescription
    norms: NDArray[np.float32]
    dtype: np.dtype[np.floating]
    eos: Collection[int]
    text: Text
    batcher: Batcher
    kernels: Executor

    async def run(self, group_id: str, rows: Sequence[EncodedRow], analysis: Analysis) -> GroupResult:
        """Analyse one group.

        Raises:
            NotFinite: a row's baseline has activations or logits that are not finite.
            ModelClosed: the model went down meanwhile.
        """
        timing = Timing()
        prediction = analysis.prediction
        baseline = [_Case(row) for row in rows]
        await self._prefill(baseline, timing)
        await self._answer(baseline, prediction, timing, taps=True)
        component, edits = await asyncio.get_running_loop().run_in_executor(
            self.kernels, self._compare, group_id, baseline, analysis
        )
        variants = () if prediction is None else await self._predict(baseline, edits, analysis, prediction, timing)
        return GroupResult(
            group_id=group_id,
            rows=tuple(RowResult(row.label, len(row.prompt), row.gold, row.joint) for row in rows),
            components=(component,),
            variants=variants,
            queue_time_ms=timing.queue * 1e3,
            compute_time_ms=timing.compute * 1e3,
        )

    async def _predict(
        self,
        baseline: Sequence[_Case],
        edits: Sequence[Sequence[RowEdits]],
        analysis: Analysis,
        prediction: Prediction,
        timing: Timing,
    ) -> tuple[VariantResult, ...]:
        """Run all variants; one that does nothing to a row shares the baseline's case."""
        table = [
            [
                _Case(case.row, edit, case.past) if edit.changes else case
                for case, edit in zip(baseline, of_rows, strict=True)
            ]
            for of_rows in edits
        ]
        changed = [case for cases in table for case in cases if case.edits.changes]
        await self._prefill([case for case in changed if case.edits.before_last], timing)
        await self._answer(changed, prediction, timing)
        begun = [case.continuation for case in (*baseline, *changed) if case.continuation is not None]
        await generate(begun, self.eos, self.text, self.batcher, timing)
        return (
            self._variant_result(BASELINE, baseline, [NO_EDITS] * len(baseline)),
            *(
                self._variant_result(variant.name, cases, of_rows)
                for variant, cases, of_rows in zip(analysis.variants, table, edits, strict=True)
            ),
        )

    async def _prefill(self, cases: Sequence[_Case], timing: Timing) -> None:
        """Run the prompts but their last tokens."""
        longer = [case for case in cases if len(case.row.prompt) > 1]
        steps = [
            RowStep(case.row.prompt[:-1], first=case.edits.before_last, rest=case.edits.before_last, keep=True)
            for case in longer
        ]
        for case, result in zip(longer, await self.batcher.run(steps, timing), strict=True):
            assert result.kept is not None
            case.past = NO_PAST.extended(result.kept)

    async def _answer(
        self, cases: Sequence[_Case], prediction: Prediction | None, timing: Timing, *, taps: bool = False
    ) -> None:
        """Run the last prompt tokens, and where predictions are wanted the gold tokens but the last."""
        steps = [_answer_step(case, prediction, taps=taps) for case in cases]
        for case, step, result in zip(cases, steps, await self.batcher.run(steps, timing), strict=True):
            case.result = result
            if prediction is not None and prediction.generate and result.finite:
                case.continuation = Continuation.after(case.row, step, result, most_tokens(case.row, prediction))

    def _compare(
        self, group_id: str, baseline: Sequence[_Case], analysis: Analysis
    ) -> tuple[ComponentResult, list[list[RowEdits]]]:
        """Type the baseline's neurons, and derive what each variant does to each row."""
        for case in baseline:
            if not case.result.finite:
                raise NotFinite(
                    f"row {case.row.label!r} gives numbers that are not finite without any intervention, so its "
                    f"neurons have no types: the model overflows {self.dtype} on this prompt"
                )
        taps = Taps(
            np.stack([case.result.activations for case in baseline if case.result.activations is not None]),
            np.stack([case.result.coefficients for case in baseline if case.result.coefficients is not None]),
        )
        threshold = analysis.thresholds[0]
        activity = types.active(taps.activations, threshold)
        reference = Baseline(
            component=self.component.name,
            group_id=group_id,
            labels=tuple(case.row.label for case in baseline),
            activity=activity,
            codes=types.type_codes(activity) if len(activity) > 1 else None,
        )
        edits = [row_edits(variant.interventions, reference, threshold, self.dtype) for variant in analysis.variants]
        return component_result(self.component, taps, self.norms, analysis), edits

    def _variant_result(self, name: str, cases: Sequence[_Case], edits: Sequence[RowEdits]) -> VariantResult:
        return VariantResult(name, tuple(map(self._prediction, cases, edits)))

    def _prediction(self, case: _Case, edits: RowEdits) -> RowPrediction:
        scores, continuation = case.result.scores, case.continuation
        if scores is None or (continuation is not None and not continuation.finite):
            return RowPrediction(error=_OVERFLOW)
        prediction = row_prediction(case.row, scores, None if continuation is None else continuation.tokens, self.text)
        return replace(prediction, selected_neurons=edits.selected, selected_active_neurons=edits.selected_active)


def _answer_step(case: _Case, prediction: Prediction | None, *, taps: bool) -> RowStep:
    gold = case.row.gold if prediction is not None else ()
    return RowStep(
        tokens=(case.row.prompt[-1], *gold[:-1]),
        past=case.past,
        first=case.edits.last,
        rest=case.edits.generated,
        taps=taps,
        scored=prediction is not None,
        targets=gold,
        keep=prediction is not None and prediction.generate,
    )
