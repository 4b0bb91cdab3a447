"""Greedy generation from one prompt, streamed token by token."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from neuroglot_server.cache.step_cache import WholeStep
from neuroglot_server.core import DECODER, Analysis, Caller, GeneratedToken, Intervention, NotFinite, Prediction
from neuroglot_server.engine.steps import RowStep
from neuroglot_server.intake.admission import Cost
from neuroglot_server.intake.costs import Costs
from neuroglot_server.intake.text import EncodedRow, Text
from neuroglot_server.kernels.kernel_thread import KernelThread
from neuroglot_server.plan.measure import Measure
from neuroglot_server.plan.rows import RowRun
from neuroglot_server.plan.runner import Runner
from neuroglot_server.scheduler.batcher import Timing

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class GeneratePlan:
    """A validated generation request.

    Attributes:
        row: the prompt.
        interventions: interventions that act together. Their selections are evaluated in a group of this row alone.
        threshold: activation above which a neuron is active, for selections that depend on it.
        max_tokens: how many tokens to generate at most.
        past_newlines: whether to continue after a newline.
    """

    row: EncodedRow
    interventions: tuple[Intervention, ...]
    threshold: float
    max_tokens: int
    past_newlines: bool


@dataclass(frozen=True, eq=False)
class GenerateRunner:
    """Generates greedily from prompts.

    Attributes:
        runner: runs rows through the model.
        measure: derives the edits of interventions from a row's baseline.
        kernels: the thread on which `measure` runs.
        costs: estimates the memory of a row.
    """

    runner: Runner
    measure: Measure
    kernels: KernelThread
    costs: Costs

    def cost(self, plan: GeneratePlan) -> Cost:
        """The maximum cost of a generation, in tokens and bytes."""
        prediction = Prediction(generate=True, max_tokens=plan.max_tokens)
        rerun = any(map(self.runner.prefill.may_rerun, plan.interventions))
        analysis = Analysis(prediction=prediction)
        tokens = len(plan.row.prompt) * (1 + rerun) + plan.max_tokens
        nanoseconds = self.costs.interventions_nanoseconds(1, plan.interventions)
        return Cost(max(tokens, self.costs.tokens_of(nanoseconds)), self.costs.bytes([plan.row], analysis, [rerun]))

    async def tokens(self, plan: GeneratePlan, caller: Caller) -> AsyncGenerator[GeneratedToken, None]:
        """Generate until EOS (not yielded), a newline (unless `past_newlines`), or `max_tokens` tokens.

        Raises:
            NotFinite: logits are not finite.
            ModelClosed: the model was closed meanwhile.
        """
        runner, timing = self.runner, Timing()
        run = await self._case(plan, timing, caller)
        spelling = Spelling(runner.text, plan.row.prompt if run.cross.length == 0 else ())
        token, past, generated = runner.prefill.start_token(plan.row), run.past, list[int]()
        while True:
            step = RowStep(
                (token,),
                past=past,
                cross=run.cross,
                focus=-1 if generated else 0,
                edits=run.edits.of(DECODER),
                scored=True,
                greedy_log_probabilities=True,
                keep=True,
            )
            cached_step = WholeStep(DECODER, run.prompt, step, generated=tuple(generated))
            ((result,),) = await runner.step_cache.run([cached_step], runner.decoder, timing, caller)
            if result.scores is None or result.kept is None:
                raise NotFinite(
                    f"row {plan.row.label!r} gives logits that are not finite after {len(generated)} tokens: use "
                    "smaller values or fewer neurons where it is under interventions"
                )
            (token,), (log_probability,) = result.scores.greedy, result.scores.greedy_log_probabilities
            if token in runner.eos:
                return
            generated.append(token)
            ends_line = runner.text.breaks_line(token) and not plan.past_newlines
            last = ends_line or len(generated) == plan.max_tokens
            yield GeneratedToken(token, spelling.added(token, last=last), log_probability)
            if last:
                return
            past = past.extended(result.kept)

    async def _case(self, plan: GeneratePlan, timing: Timing, caller: Caller) -> RowRun:
        """The row under its interventions, prefilled."""
        run = RowRun(plan.row)
        if not plan.interventions:
            await self.runner.prefill.run([run], timing, caller)
            return run
        await self.runner.baseline([run], None, timing, caller, forks=True)
        analysis = Analysis(thresholds=(plan.threshold,))
        _, derive = await self.kernels.run(self.measure("", [run], analysis), caller.tenant)
        (edits,) = await self.kernels.run(derive(plan.interventions), caller.tenant)
        if edits.anywhere:
            run = run.under(edits)
        if self.runner.prefill.must_rerun(edits):
            await self.runner.prefill.run([run], timing, caller)
        return run


class Spelling:
    """Incremental detokenization: the text that each new token adds."""

    def __init__(self, text: Text, before: Sequence[int]) -> None:
        """Start after the tokens `before`, whose text is not returned."""
        self._text = text
        self._tokens = list(before)
        self._spelled = text.decode(before).rstrip(_UNFINISHED)

    def added(self, token: int, *, last: bool) -> str:
        """Add a token and return its text: none while a character is incomplete, unless it is the last token."""
        self._tokens.append(token)
        whole = self._text.decode(self._tokens)
        if whole.endswith(_UNFINISHED) and not last:
            return ""
        before, self._spelled = self._spelled, whole
        return whole[len(before) :]
