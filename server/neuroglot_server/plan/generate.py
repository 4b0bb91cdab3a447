"""Continuations of one prompt, token by token as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from neuroglot_server.cache.step_cache import Whole
from neuroglot_server.core import DECODER, Analysis, Caller, GeneratedToken, Intervention, NotFinite, Prediction
from neuroglot_server.engine.steps import RowStep
from neuroglot_server.intake.admission import Cost
from neuroglot_server.intake.costs import Costs
from neuroglot_server.intake.text import EncodedRow, Text
from neuroglot_server.kernels.kernel_thread import KernelThread
from neuroglot_server.plan.measure import Comparison
from neuroglot_server.plan.rows import RowRun
from neuroglot_server.plan.runner import Runner
from neuroglot_server.scheduler.batcher import Timing

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Wish:
    """How a prompt is to be continued.

    Attributes:
        row: the prompt.
        interventions: that act together; chosen for a group of this row alone.
        threshold: above which a neuron is active, where they ask.
        max_tokens: how many tokens it goes on for at most.
        past_newlines: whether it goes on after a newline.
    """

    row: EncodedRow
    interventions: tuple[Intervention, ...]
    threshold: float
    max_tokens: int
    past_newlines: bool


@dataclass(frozen=True, eq=False)
class Continuing:
    """Continues prompts greedily.

    Attributes:
        answering: brings rows through the model.
        comparison: derives what interventions do to a row from its baseline.
        kernels: the thread on which the comparison runs.
        costs: counts what a row holds.
    """

    answering: Runner
    comparison: Comparison
    kernels: KernelThread
    costs: Costs

    def cost(self, wish: Wish) -> Cost:
        """What a continuation takes at most."""
        prediction = Prediction(generate=True, max_tokens=wish.max_tokens)
        anew = any(map(self.answering.reader.concerns, wish.interventions))
        analysis = Analysis(prediction=prediction)
        tokens = len(wish.row.prompt) * (1 + anew) + wish.max_tokens
        nanoseconds = self.costs.interventions_nanoseconds(1, wish.interventions)
        return Cost(max(tokens, self.costs.tokens_of(nanoseconds)), self.costs.bytes([wish.row], analysis, [anew]))

    async def tokens(self, wish: Wish, caller: Caller) -> AsyncGenerator[GeneratedToken, None]:
        """Go on, until EOS (which is not given), a newline unless they do not matter, or so many tokens.

        Raises:
            NotFinite: numbers are not finite.
            ModelClosed: the model went down meanwhile.
        """
        answering, timing = self.answering, Timing()
        case = await self._case(wish, timing, caller)
        spelling = Spelling(answering.text, wish.row.prompt if case.cross.length == 0 else ())
        token, past, said = answering.reader.start(wish.row), case.past, list[int]()
        while True:
            step = RowStep(
                (token,),
                past=past,
                cross=case.cross,
                focus=-1 if said else 0,
                edits=case.edits.of(DECODER),
                scored=True,
                greedy_log_probabilities=True,
                keep=True,
            )
            wanted = Whole(DECODER, case.prompt, step, read=tuple(said))
            ((result,),) = await answering.sharing.run([wanted], answering.decoder, timing, caller)
            if result.scores is None or result.kept is None:
                raise NotFinite(
                    f"row {wish.row.label!r} gives logits that are not finite after {len(said)} tokens: use smaller "
                    "values or fewer neurons where it is under interventions"
                )
            (token,), (log_probability,) = result.scores.greedy, result.scores.greedy_log_probabilities
            if token in answering.eos:
                return
            said.append(token)
            ends_line = answering.text.breaks_line(token) and not wish.past_newlines
            last = ends_line or len(said) == wish.max_tokens
            yield GeneratedToken(token, spelling.added(token, last=last), log_probability)
            if last:
                return
            past = past.extended(result.kept)

    async def _case(self, wish: Wish, timing: Timing, caller: Caller) -> RowRun:
        """The row under its interventions, read as far as its answer's beginning."""
        case = RowRun(wish.row)
        if not wish.interventions:
            await self.answering.reader.read([case], timing, caller)
            return case
        await self.answering.baseline([case], None, timing, caller, forks=True)
        analysis = Analysis(thresholds=(wish.threshold,))
        _, derive = await self.kernels.run(self.comparison("", [case], analysis), caller.tenant)
        (edits,) = await self.kernels.run(derive(wish.interventions), caller.tenant)
        if edits.anywhere:
            case = case.under(edits)
        if self.answering.reader.changed(edits):
            await self.answering.reader.read([case], timing, caller)
        return case


class Spelling:
    """The text of tokens as they come: what each adds to what was said before it."""

    def __init__(self, text: Text, before: Sequence[int]) -> None:
        """Go on after tokens that were there before."""
        self._text = text
        self._tokens = list(before)
        self._said = text.decode(before).rstrip(_UNFINISHED)

    def added(self, token: int, *, last: bool) -> str:
        """What a token adds; nothing where a character is not whole before the next one, unless there is none."""
        self._tokens.append(token)
        whole = self._text.decode(self._tokens)
        if whole.endswith(_UNFINISHED) and not last:
            return ""
        before, self._said = self._said, whole
        return whole[len(before) :]
