"""How cases are answered: their prompts are read, and then the tokens of their answers are run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from neuroglot_server.cache.prefix_cache import joined
from neuroglot_server.cache.step_cache import StepCache, Wanted, Whole
from neuroglot_server.core import DECODER, Caller, NotFinite, Prediction
from neuroglot_server.engine.steps import RowStep
from neuroglot_server.intake.encoding import most_tokens
from neuroglot_server.intake.text import Text
from neuroglot_server.plan.greedy import Continuation, generate
from neuroglot_server.plan.prefill import Reader
from neuroglot_server.plan.rows import RowRun
from neuroglot_server.scheduler.batcher import Batcher, Timing


@dataclass(frozen=True, eq=False)
class Runner:
    """Brings cases through the model; all of it may raise `ModelClosed`.

    Attributes:
        reader: brings prompts to where their answers begin.
        decoder: runs steps of the decoder.
        sharing: what is known of them.
        text: the model's tokenizer.
        eos: tokens that end a generation.
        dtype: of activations, for messages.
    """

    reader: Reader
    decoder: Batcher
    sharing: StepCache
    text: Text
    eos: Collection[int]
    dtype: np.dtype[np.floating]

    async def baseline(
        self,
        cases: Sequence[RowRun],
        prediction: Prediction | None,
        timing: Timing,
        caller: Caller,
        thresholds: tuple[float, ...] = (),
        *,
        forks: bool,
    ) -> None:
        """Read the prompts of cases without interventions, and begin their answers.

        Args:
            cases: of one group.
            prediction: None where only activations are wanted.
            timing: is added to.
            caller: who asks.
            thresholds: as in `Reader.read`.
            forks: as in `Reader.openings`; without, the cases' `past` is not what variants could be forked from.

        Raises:
            NotFinite: a case has activations or logits that are not finite.
        """
        read = [case for case in cases if thresholds or not self.reader.opens_by_itself(case)]
        if read:
            await self.reader.read(read, timing, caller, thresholds)
            self._require_finite(cases)
        await self.begin(cases, prediction, timing, caller, forks=forks)
        self._require_finite(cases)

    async def under_interventions(
        self, cases: Sequence[RowRun], prediction: Prediction, timing: Timing, caller: Caller
    ) -> None:
        """Begin the answers of cases that were forked from baselines, whose prompts are read anew where need be."""
        anew = [case for case in cases if self.reader.changed(case.edits)]
        await self.reader.read(anew, timing, caller)
        await self.begin(cases, prediction, timing, caller)

    async def begin(
        self,
        cases: Sequence[RowRun],
        prediction: Prediction | None,
        timing: Timing,
        caller: Caller,
        *,
        forks: bool = True,
    ) -> None:
        """Run the tokens from which the answers begin, and where predictions are wanted gold answers and choices."""
        run = partial(self.sharing.run, batcher=self.decoder, timing=timing, caller=caller)
        steps = [self._gold(case, prediction) for case in cases]
        openings = self.reader.openings(cases, steps, caller, forks=forks)
        choices = [] if prediction is None else _choices(cases)
        later = [one for one in choices if self.reader.opens_by_itself(one[0])]  # nothing to fork them from as yet
        at_once = [one for one in choices if one not in later]
        results = await run([*openings, *(self._choice(*one) for one in at_once)])
        for case, (*blocks, result) in zip(cases, results, strict=False):
            if blocks:
                case.past, case.blocks = joined(blocks), blocks
            case.results[DECODER] = result
        if prediction is None:
            return
        of_choices = results[len(cases) :] + await run([self._choice(*one) for one in later])
        scored = {one: result for one, (result,) in zip([*at_once, *later], of_choices, strict=True)}
        for case, step in zip(cases, steps, strict=True):
            result = case.results[DECODER]
            case.choices = [scored.get((case, choice), result) for choice in case.row.choices]
            if prediction.generate and result.finite:
                most = most_tokens(case.row, prediction)
                case.continuation = Continuation.after(
                    case.row, step._replace(past=case.past), result, case.prompt, most
                )

    async def go_on(self, cases: Sequence[RowRun], timing: Timing, caller: Caller) -> None:
        """Generate all answers that were begun and have not ended."""
        begun = [case.continuation for case in cases if case.continuation is not None]
        run = partial(self.sharing.run, batcher=self.decoder, timing=timing, caller=caller)
        await generate(begun, self.eos, self.text, run)

    def _require_finite(self, baseline: Sequence[RowRun]) -> None:
        """Refuse a baseline that has no types."""
        for case in baseline:
            for component, result in case.results.items():
                if not result.finite:
                    raise NotFinite(
                        f"row {case.row.label!r} gives numbers that are not finite in the {component} without any "
                        f"intervention, so its neurons have no types: the model overflows {self.dtype} on this prompt"
                    )

    def _gold(self, case: RowRun, prediction: Prediction | None) -> RowStep:
        gold = case.row.gold if prediction is not None else ()
        return RowStep(
            tokens=(self.reader.start(case.row), *gold[:-1]),
            past=case.past,
            cross=case.cross,
            edits=case.edits.of(DECODER),
            taps=not case.edits.anywhere,
            scored=prediction is not None,
            targets=gold,
            keep=prediction is not None and prediction.generate,
        )

    def _choice(self, case: RowRun, choice: tuple[int, ...]) -> Wanted:
        step = RowStep(
            tokens=(self.reader.start(case.row), *choice[:-1]),
            past=case.past,
            cross=case.cross,
            edits=case.edits.of(DECODER),
            scored=True,
            targets=choice,
        )
        return Whole(DECODER, case.prompt, step)


def _choices(cases: Sequence[RowRun]) -> list[tuple[RowRun, tuple[int, ...]]]:
    """What is to be scored beside the gold answers, once each."""
    return [(case, choice) for case in cases for choice in dict.fromkeys(case.row.choices) if choice != case.row.gold]
