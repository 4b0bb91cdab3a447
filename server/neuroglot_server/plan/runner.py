"""Runner: runs row runs through the model, first their prompts (prefill), then the tokens of their answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from neuroglot_server.cache.prefix_cache import joined
from neuroglot_server.cache.step_cache import CachedStep, StepCache, WholeStep
from neuroglot_server.core import DECODER, Caller, NotFinite, Prediction
from neuroglot_server.engine.steps import RowStep
from neuroglot_server.intake.encoding import most_tokens
from neuroglot_server.intake.text import Text
from neuroglot_server.plan.greedy import Continuation, generate
from neuroglot_server.plan.prefill import Prefill
from neuroglot_server.plan.rows import RowRun
from neuroglot_server.scheduler.batcher import Batcher, Timing


@dataclass(frozen=True, eq=False)
class Runner:
    """Runs row runs through the model. Every method may raise `ModelClosed`.

    Attributes:
        prefill: runs prompts up to the token from which their answers begin.
        decoder: runs steps of the decoder.
        step_cache: runs each step once, and caches results.
        text: the model's tokenizer.
        eos: token ids that end a generation.
        dtype: dtype of activations, for error messages.
    """

    prefill: Prefill
    decoder: Batcher
    step_cache: StepCache
    text: Text
    eos: Collection[int]
    dtype: np.dtype[np.floating]

    async def baseline(
        self,
        runs: Sequence[RowRun],
        prediction: Prediction | None,
        timing: Timing,
        caller: Caller,
        thresholds: tuple[float, ...] = (),
        *,
        forks: bool,
    ) -> None:
        """Prefill the prompts of row runs without interventions, and run the first step of their answers.

        Args:
            runs: row runs of one group.
            prediction: None if only activations are requested.
            timing: the time spent waiting and computing is added to it.
            caller: the tenant and priority of the request.
            thresholds: as in `Prefill.run`.
            forks: as in `Prefill.first_steps`; without forks, variants cannot start from the row runs' `past`.

        Raises:
            NotFinite: a row run has activations or logits that are not finite.
        """
        unfused = [run for run in runs if thresholds or not self.prefill.is_fused(run)]
        if unfused:
            await self.prefill.run(unfused, timing, caller, thresholds)
            self._require_finite(runs)
        await self.run_first_steps(runs, prediction, timing, caller, forks=forks)
        self._require_finite(runs)

    async def under_interventions(
        self, runs: Sequence[RowRun], prediction: Prediction, timing: Timing, caller: Caller
    ) -> None:
        """Run the first step of row runs forked from baselines, after re-running the prefill where edits act in it."""
        rerun = [run for run in runs if self.prefill.must_rerun(run.edits)]
        await self.prefill.run(rerun, timing, caller)
        await self.run_first_steps(runs, prediction, timing, caller)

    async def run_first_steps(
        self,
        runs: Sequence[RowRun],
        prediction: Prediction | None,
        timing: Timing,
        caller: Caller,
        *,
        forks: bool = True,
    ) -> None:
        """Run the tokens from which the answers begin and, with a prediction, the gold answers and choices."""
        run_steps = partial(self.step_cache.run, batcher=self.decoder, timing=timing, caller=caller)
        steps = [self._gold(run, prediction) for run in runs]
        first_steps = self.prefill.first_steps(runs, steps, caller, forks=forks)
        choices = [] if prediction is None else _choices(runs)
        later = [pair for pair in choices if self.prefill.is_fused(pair[0])]  # their prompts are not prefilled yet
        at_once = [pair for pair in choices if pair not in later]
        results = await run_steps([*first_steps, *(self._choice(*pair) for pair in at_once)])
        for run, (*blocks, result) in zip(runs, results, strict=False):
            if blocks:
                run.past, run.blocks = joined(blocks), blocks
            run.results[DECODER] = result
        if prediction is None:
            return
        of_choices = results[len(runs) :] + await run_steps([self._choice(*pair) for pair in later])
        scored = {pair: result for pair, (result,) in zip([*at_once, *later], of_choices, strict=True)}
        for run, step in zip(runs, steps, strict=True):
            result = run.results[DECODER]
            run.choices = [scored.get((run, choice), result) for choice in run.row.choices]
            if prediction.generate and result.finite:
                max_tokens = most_tokens(run.row, prediction)
                run.continuation = Continuation.after(
                    run.row, step._replace(past=run.past), result, run.prompt, max_tokens
                )

    async def generate(self, runs: Sequence[RowRun], timing: Timing, caller: Caller) -> None:
        """Generate all answers that have started and not ended."""
        started = [run.continuation for run in runs if run.continuation is not None]
        run_steps = partial(self.step_cache.run, batcher=self.decoder, timing=timing, caller=caller)
        await generate(started, self.eos, self.text, run_steps)

    def _require_finite(self, baseline: Sequence[RowRun]) -> None:
        """Raise `NotFinite` for a baseline whose neurons have no types."""
        for run in baseline:
            for component, result in run.results.items():
                if not result.finite:
                    raise NotFinite(
                        f"row {run.row.label!r} gives numbers that are not finite in the {component} without any "
                        f"intervention, so its neurons have no types: the model overflows {self.dtype} on this prompt"
                    )

    def _gold(self, run: RowRun, prediction: Prediction | None) -> RowStep:
        gold = run.row.gold if prediction is not None else ()
        return RowStep(
            tokens=(self.prefill.start_token(run.row), *gold[:-1]),
            past=run.past,
            cross=run.cross,
            edits=run.edits.of(DECODER),
            taps=not run.edits.anywhere,
            scored=prediction is not None,
            targets=gold,
            keep=prediction is not None and prediction.generate,
        )

    def _choice(self, run: RowRun, choice: tuple[int, ...]) -> CachedStep:
        step = RowStep(
            tokens=(self.prefill.start_token(run.row), *choice[:-1]),
            past=run.past,
            cross=run.cross,
            edits=run.edits.of(DECODER),
            scored=True,
            targets=choice,
        )
        return WholeStep(DECODER, run.prompt, step)


def _choices(runs: Sequence[RowRun]) -> list[tuple[RowRun, tuple[int, ...]]]:
    """The choices to score beside the gold answers, without duplicates, each with its row run."""
    return [(run, choice) for run in runs for choice in dict.fromkeys(run.row.choices) if choice != run.row.gold]
