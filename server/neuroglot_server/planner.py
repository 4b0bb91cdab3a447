"""The plan of a group: which steps, in which order, give its types and the predictions of all its variants.

reading        the prompt of each row, up to where its answer begins: a causal model runs all tokens but the last, an
               encoder-decoder encodes the whole; activations of the encoder are read here
baseline       the token from which the answer begins and the gold tokens, on top of what was read; activations of the
               decoder are read here
types          from those activations; they say which neurons the variants change
variants       the baseline's step again for each variant and row, forked from what was read; variants that act on the
               prompt before the answer begins read it anew
generation     of all rows and variants together
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.answers import Taps, component_result, row_prediction
from neuroglot_server.batcher import Batcher, Timing
from neuroglot_server.cases import Case
from neuroglot_server.core import (
    BASELINE,
    DECODER,
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
from neuroglot_server.generation import Continuation, answer_tokens, generate, most_tokens
from neuroglot_server.interventions import RowEdits, row_edits
from neuroglot_server.kernels import types
from neuroglot_server.reading import Reader
from neuroglot_server.selections import Baseline
from neuroglot_server.steps import RowStep
from neuroglot_server.text import EncodedRow, Text

_OVERFLOW = "the interventions make this row's numbers overflow: use smaller values or fewer neurons"


@dataclass(frozen=True, eq=False)
class Planner:
    """Runs groups through a model.

    Attributes:
        components: the decoder, or the encoder and the decoder.
        norms: of their value rows, by component, float32 `[layers, neurons]`.
        dtype: of their activations.
        eos: tokens that end a generation.
        text: the model's tokenizer.
        reader: brings prompts to where their answers begin.
        decoder: runs steps of the decoder.
        kernels: runs what is computed from arrays, off the event loop.
    """

    components: Sequence[ComponentDescription]
    norms: Mapping[str, NDArray[np.float32]]
    dtype: np.dtype[np.floating]
    eos: Collection[int]
    text: Text
    reader: Reader
    decoder: Batcher
    kernels: Executor

    async def run(self, group_id: str, rows: Sequence[EncodedRow], analysis: Analysis) -> GroupResult:
        """Analyse one group.

        Raises:
            NotFinite: a row's baseline has activations or logits that are not finite.
            ModelClosed: the model went down meanwhile.
        """
        timing = Timing()
        prediction = analysis.prediction
        baseline = [Case(row) for row in rows]
        await self.reader.read(baseline, timing, taps=True)
        self._require_finite(baseline)
        await self._answer(baseline, prediction, timing, taps=True)
        self._require_finite(baseline)
        components, edits = await asyncio.get_running_loop().run_in_executor(
            self.kernels, self._compare, group_id, baseline, analysis
        )
        variants = () if prediction is None else await self._predict(baseline, edits, analysis, prediction, timing)
        return GroupResult(
            group_id=group_id,
            rows=tuple(RowResult(row.label, len(row.prompt), row.gold, row.joint, row.r_index) for row in rows),
            components=components,
            variants=variants,
            queue_time_ms=timing.queue * 1e3,
            compute_time_ms=timing.compute * 1e3,
        )

    def tokens(self, rows: Sequence[EncodedRow], analysis: Analysis) -> int:
        """How many tokens a group runs, over all of its variants."""
        prompts = sum(len(row.prompt) for row in rows)
        answers = sum(1 + answer_tokens(row, analysis.prediction) for row in rows)
        anew = sum(any(map(self.reader.concerns, variant.interventions)) for variant in analysis.variants)
        return prompts * (1 + anew) + answers * (1 + len(analysis.variants))

    def _require_finite(self, baseline: Sequence[Case]) -> None:
        """Refuse a baseline that has no types."""
        for case in baseline:
            for component, result in case.results.items():
                if not result.finite:
                    raise NotFinite(
                        f"row {case.row.label!r} gives numbers that are not finite in the {component} without any "
                        f"intervention, so its neurons have no types: the model overflows {self.dtype} on this prompt"
                    )

    async def _predict(
        self,
        baseline: Sequence[Case],
        edits: Sequence[Sequence[RowEdits]],
        analysis: Analysis,
        prediction: Prediction,
        timing: Timing,
    ) -> tuple[VariantResult, ...]:
        """Run all variants; one that does nothing to a row shares the baseline's case."""
        table = [
            [case.under(edit) if edit.anywhere else case for case, edit in zip(baseline, of_rows, strict=True)]
            for of_rows in edits
        ]
        changed = [case for cases in table for case in cases if case.edits.anywhere]
        await self.reader.read([case for case in changed if self.reader.changed(case.edits)], timing, taps=False)
        await self._answer(changed, prediction, timing)
        begun = [case.continuation for case in (*baseline, *changed) if case.continuation is not None]
        await generate(begun, self.eos, self.text, self.decoder, timing)
        unchanged = [RowEdits()] * len(baseline)
        return (
            self._variant_result(BASELINE, baseline, unchanged),
            *(
                self._variant_result(variant.name, cases, of_rows)
                for variant, cases, of_rows in zip(analysis.variants, table, edits, strict=True)
            ),
        )

    async def _answer(
        self, cases: Sequence[Case], prediction: Prediction | None, timing: Timing, *, taps: bool = False
    ) -> None:
        """Run the tokens from which the answers begin, and where predictions are wanted the gold ones but the last."""
        steps = [self._answer_step(case, prediction, taps=taps) for case in cases]
        for case, step, result in zip(cases, steps, await self.decoder.run(steps, timing), strict=True):
            case.results[DECODER] = result
            if prediction is not None and prediction.generate and result.finite:
                case.continuation = Continuation.after(case.row, step, result, most_tokens(case.row, prediction))

    def _answer_step(self, case: Case, prediction: Prediction | None, *, taps: bool) -> RowStep:
        gold = case.row.gold if prediction is not None else ()
        return RowStep(
            tokens=(self.reader.start(case.row), *gold[:-1]),
            past=case.past,
            cross=case.cross,
            edits=case.edits.of(DECODER),
            taps=taps,
            scored=prediction is not None,
            targets=gold,
            keep=prediction is not None and prediction.generate,
        )

    def _compare(
        self, group_id: str, baseline: Sequence[Case], analysis: Analysis
    ) -> tuple[tuple[ComponentResult, ...], list[list[RowEdits]]]:
        """Type the baseline's neurons in every component, and derive what each variant does to each row."""
        threshold = analysis.thresholds[0]
        found, references = [], []
        for component in self.components:
            results = [case.results[component.name] for case in baseline]
            taps = Taps(
                np.stack([result.activations for result in results if result.activations is not None]),
                np.stack([result.coefficients for result in results if result.coefficients is not None]),
            )
            activity = types.active(taps.activations, threshold)
            references.append(
                Baseline(
                    component=component.name,
                    group_id=group_id,
                    labels=tuple(case.row.label for case in baseline),
                    activity=activity,
                    codes=types.type_codes(activity) if len(activity) > 1 else None,
                )
            )
            found.append(component_result(component, taps, self.norms[component.name], analysis))
        edits = [row_edits(variant.interventions, references, threshold, self.dtype) for variant in analysis.variants]
        return tuple(found), edits

    def _variant_result(self, name: str, cases: Sequence[Case], edits: Sequence[RowEdits]) -> VariantResult:
        return VariantResult(name, tuple(map(self._prediction, cases, edits)))

    def _prediction(self, case: Case, edits: RowEdits) -> RowPrediction:
        scores, continuation = case.results[DECODER].scores, case.continuation
        if scores is None or (continuation is not None and not continuation.finite):
            return RowPrediction(error=_OVERFLOW)
        prediction = row_prediction(case.row, scores, None if continuation is None else continuation.tokens, self.text)
        return replace(prediction, selected_neurons=edits.selected, selected_active_neurons=edits.selected_active)
