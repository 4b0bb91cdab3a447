"""How a model reads prompts, up to the token from which their answers begin.

A causal model runs a prompt's tokens but the last (prefill), and the answer begins from that one; without any
intervention both are one pass. The encoder of an encoder-decoder runs the whole prompt, and the answer begins from the
decoder's start token. That one token is all that the decoder has of a prompt: it is its last prompt token, where
interventions of any scope act.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from neuroglot_server.cache.prefix_cache import Opening, Prefix, PrefixCounter, joined
from neuroglot_server.cache.step_cache import Link, StepCache, Wanted, Whole
from neuroglot_server.core import DECODER, ENCODER, Caller, Intervention
from neuroglot_server.engine.steps import BLOCK, RowStep
from neuroglot_server.intake.text import EncodedRow
from neuroglot_server.neurons.interventions import RowEdits
from neuroglot_server.plan.rows import RowRun
from neuroglot_server.scheduler.batcher import Batcher, Timing


class Reader(Protocol):
    """What is different between causal models and encoder-decoders: all before the answer."""

    def start(self, row: EncodedRow) -> int:
        """The token from which a row's answer begins."""

    def concerns(self, intervention: Intervention) -> bool:
        """Whether an intervention may change what is read, so that prompts must be read anew under it."""

    def changed(self, edits: RowEdits) -> bool:
        """Whether a row's edits do change what is read."""

    def opens_by_itself(self, case: RowRun) -> bool:
        """Whether a case's prompt need not be read first: its answer's beginning brings it along."""

    def links(self, row: EncodedRow) -> Sequence[Link]:
        """What is kept of a prompt that is read without interventions, and found by others."""

    def openings(
        self, cases: Sequence[RowRun], steps: Sequence[RowStep], caller: Caller, *, forks: bool
    ) -> list[Wanted]:
        """What begins the answers of cases, and brings along those prompts that were not read.

        Args:
            cases: of one group.
            steps: of each, from the token on from which its answer begins.
            caller: who asks.
            forks: whether more than one step will go on from a prompt. If so, the results before the last one are its
                blocks.
        """

    async def read(
        self, cases: Sequence[RowRun], timing: Timing, caller: Caller, thresholds: tuple[float, ...] = ()
    ) -> None:
        """Read the prompts of cases, as far as their answers' beginnings; what is known is not read again.

        Args:
            cases: baselines, or such whose edits change what is read. Their `past` or `cross` is set, and the result
                of an encoder.
            timing: is added to.
            caller: who asks.
            thresholds: where it is wanted whether each neuron exceeds a threshold at any token that is read: which
                ones. Then `ever` of the cases is set, and all is read whether known or not.

        Raises:
            ModelClosed: the model went down meanwhile.
        """


@dataclass(frozen=True, eq=False)
class Prefill:
    """How a causal model reads; none of its taps lie there.

    Attributes:
        decoder: runs steps of the decoder.
        sharing: what is known of prompts.
        sightings: how prompts have begun.
    """

    decoder: Batcher
    sharing: StepCache
    sightings: PrefixCounter

    def start(self, row: EncodedRow) -> int:
        """The prompt's last token."""
        return row.prompt[-1]

    def concerns(self, intervention: Intervention) -> bool:
        """Those before the last prompt token."""
        return intervention.scope.before_last

    def changed(self, edits: RowEdits) -> bool:
        """Those before the last prompt token."""
        return edits.of(DECODER).before is not None

    def opens_by_itself(self, case: RowRun) -> bool:
        """Without interventions, unless it was read."""
        return not case.edits.anywhere and not case.past.length

    def links(self, row: EncodedRow) -> Sequence[Link]:
        """Blocks of all tokens but the last."""
        return Prefix(row.prompt[:-1]).links

    def openings(
        self, cases: Sequence[RowRun], steps: Sequence[RowStep], caller: Caller, *, forks: bool
    ) -> list[Wanted]:
        """Prompts and the beginnings of their answers, in one pass.

        Keys and values of a prompt are for those that fork from it; where nothing forks, they are kept of a beginning
        that other prompts had too, if that is at least half of the prompt.
        """
        prompts = [case.row.prompt for case in cases]
        ends = [len(prompt) - 1 for prompt in prompts] if forks else self._shared_beginnings(prompts, caller)
        wanted: list[Wanted] = []
        for case, prompt, step, end in zip(cases, prompts, steps, ends, strict=True):
            if not self.opens_by_itself(case):
                wanted.append(Whole(DECODER, case.prompt, step))
            elif end:
                wanted.append(Opening(Prefix(prompt[:end]), prompt[end:-1], Whole(DECODER, case.prompt, step)))
            else:
                whole = step._replace(tokens=prompt[:-1] + step.tokens, focus=len(prompt) - 1)
                wanted.append(Whole(DECODER, case.prompt, whole, cache="prefix"))
        return wanted

    async def read(
        self, cases: Sequence[RowRun], timing: Timing, caller: Caller, thresholds: tuple[float, ...] = ()
    ) -> None:
        """Run the prompts but their last tokens, less what is known of them."""
        longer = [case for case in cases if len(case.row.prompt) > 1]
        wanted = [self._wanted(case, thresholds) for case in longer]
        for case, results in zip(longer, await self.sharing.run(wanted, self.decoder, timing, caller), strict=True):
            if results[-1].finite:
                case.past, case.blocks = joined(results), results
            else:  # its activations were looked at: the baseline has come to its end
                case.results[DECODER] = results[-1]
            if results[-1].ever is not None:
                case.ever[DECODER] = results[-1].ever

    def _shared_beginnings(self, prompts: Sequence[tuple[int, ...]], caller: Caller) -> list[int]:
        """How many of each prompt's first tokens to read by themselves; none where what comes out for it is known."""
        if not self.sharing.keeps or max(map(len, prompts)) <= BLOCK:
            return [0] * len(prompts)
        tenant = self.sharing.tenant_of(caller)
        keys = [self.sightings.keys(Prefix(prompt[:-1]), tenant) for prompt in prompts]
        for of_prompt in keys:
            self.sightings.note(of_prompt)
        ends = []
        for prompt, of_prompt in zip(prompts, keys, strict=True):
            shared = self.sightings.shared(of_prompt)
            worth_it = 2 * shared >= len(prompt) and not self._knows_answer(prompt, caller)
            ends.append(shared if worth_it else 0)
        return ends

    def _knows_answer(self, prompt: tuple[int, ...], caller: Caller) -> bool:
        """Whether what comes out at the prompt's last token is kept."""
        return self.sharing.knows(Whole(DECODER, prompt, RowStep(prompt[-1:], taps=True)), caller)

    def _wanted(self, case: RowRun, thresholds: tuple[float, ...]) -> Wanted:
        prompt = case.row.prompt
        if not thresholds and not self.changed(case.edits):
            return Prefix(prompt[:-1])
        edits = case.edits.of(DECODER)
        step = RowStep(prompt[:-1], focus=len(prompt) - 1, edits=edits, thresholds=thresholds, keep=True)
        return Whole(DECODER, None, step)


@dataclass(frozen=True, eq=False)
class Encode:
    """How an encoder-decoder reads.

    Attributes:
        encoder: runs steps of the encoder.
        decoder_start: the first token of every decoder's row.
        sharing: what is known of prompts.
    """

    encoder: Batcher
    decoder_start: int
    sharing: StepCache

    def start(self, row: EncodedRow) -> int:
        """The decoder's start token, whatever the row."""
        return self.decoder_start

    def concerns(self, intervention: Intervention) -> bool:
        """Those in the encoder."""
        return intervention.component in ("", ENCODER)

    def changed(self, edits: RowEdits) -> bool:
        """Those in the encoder."""
        return edits.of(ENCODER).anywhere

    def opens_by_itself(self, case: RowRun) -> bool:
        """Never: another component reads."""
        return False

    def links(self, row: EncodedRow) -> Sequence[Link]:
        """The whole prompt."""
        return self._wanted(RowRun(row), ()).links

    def openings(
        self, cases: Sequence[RowRun], steps: Sequence[RowStep], caller: Caller, *, forks: bool
    ) -> list[Wanted]:
        """The beginnings of the answers, on top of what the encoder read."""
        return [Whole(DECODER, case.prompt, step) for case, step in zip(cases, steps, strict=True)]

    async def read(
        self, cases: Sequence[RowRun], timing: Timing, caller: Caller, thresholds: tuple[float, ...] = ()
    ) -> None:
        """Run the whole prompts, unless they are known."""
        wanted = [self._wanted(case, thresholds) for case in cases]
        for case, (result,) in zip(cases, await self.sharing.run(wanted, self.encoder, timing, caller), strict=True):
            case.results[ENCODER] = result
            if result.ever is not None:
                case.ever[ENCODER] = result.ever
            if result.kept is not None:  # a baseline that is not finite has come to its end
                case.cross = result.kept

    def _wanted(self, case: RowRun, thresholds: tuple[float, ...]) -> Wanted:
        prompt, edits = case.row.prompt, case.edits.of(ENCODER)
        known = not thresholds and not edits.anywhere
        step = RowStep(
            prompt, focus=len(prompt) - 1, edits=edits, taps=not edits.anywhere, thresholds=thresholds, keep=True
        )
        return Whole(ENCODER, prompt if known else None, step)
