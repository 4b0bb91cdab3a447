"""How a model reads prompts, up to the token from which their answers begin.

A causal model runs a prompt's tokens but the last (prefill), and the answer begins from that one. The encoder of an
encoder-decoder runs the whole prompt, and the answer begins from the decoder's start token. That one token is all that
the decoder has of a prompt: it is its last prompt token, where interventions of any scope act.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from neuroglot_server.batcher import Batcher, Timing
from neuroglot_server.cases import Case
from neuroglot_server.core import DECODER, ENCODER, Caller, Intervention
from neuroglot_server.interventions import RowEdits
from neuroglot_server.prefixes import Prefix, Sightings, joined
from neuroglot_server.sharing import Sharing, Wanted, Whole
from neuroglot_server.steps import RowStep
from neuroglot_server.text import EncodedRow


class Reader(Protocol):
    """What is different between causal models and encoder-decoders: all before the answer."""

    def start(self, row: EncodedRow) -> int:
        """The token from which a row's answer begins."""

    def concerns(self, intervention: Intervention) -> bool:
        """Whether an intervention may change what is read, so that prompts must be read anew under it."""

    def changed(self, edits: RowEdits) -> bool:
        """Whether a row's edits do change what is read."""

    def unread(self, case: Case) -> tuple[int, ...]:
        """Tokens of the prompt that were left to be run together with the one from which the answer begins."""

    async def read(
        self,
        cases: Sequence[Case],
        timing: Timing,
        caller: Caller,
        thresholds: tuple[float, ...] = (),
        *,
        forks: bool = True,
    ) -> None:
        """Read the prompts of cases, as far as their answers' beginnings; what is known is not read again.

        Args:
            cases: baselines, or such whose edits change what is read. Their `past` or `cross` is set, and the result
                of an encoder.
            timing: is added to.
            caller: who asks.
            forks: whether more than one step will go on from what is read. If not, some may be left to that step.
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
    sharing: Sharing
    sightings: Sightings

    def start(self, row: EncodedRow) -> int:
        """The prompt's last token."""
        return row.prompt[-1]

    def unread(self, case: Case) -> tuple[int, ...]:
        """All before the last token that is not in the past."""
        return case.row.prompt[case.past.length : -1]

    def concerns(self, intervention: Intervention) -> bool:
        """Those before the last prompt token."""
        return intervention.scope.before_last

    def changed(self, edits: RowEdits) -> bool:
        """Those before the last prompt token."""
        return edits.of(DECODER).before is not None

    async def read(
        self,
        cases: Sequence[Case],
        timing: Timing,
        caller: Caller,
        thresholds: tuple[float, ...] = (),
        *,
        forks: bool = True,
    ) -> None:
        """Run the prompts but their last tokens, less what is known of them.

        Where nothing forks, one pass over the whole prompt is cheaper than two: then only a beginning is run that
        other prompts had too, and that is at least half of the prompt.
        """
        ends = [len(case.row.prompt) - 1 for case in cases]
        if not forks and not thresholds:
            ends = self._shared_beginnings([case.row.prompt for case in cases], caller)
        longer = [case for case, end in zip(cases, ends, strict=True) if end]
        wanted = [self._wanted(case, thresholds, end) for case, end in zip(cases, ends, strict=True) if end]
        for case, results in zip(longer, await self.sharing.run(wanted, self.decoder, timing, caller), strict=True):
            if results[-1].finite:
                case.past = joined(results)
            else:  # its activations were looked at: the baseline has come to its end
                case.results[DECODER] = results[-1]
            if results[-1].ever is not None:
                case.ever[DECODER] = results[-1].ever

    def _shared_beginnings(self, prompts: Sequence[tuple[int, ...]], caller: Caller) -> list[int]:
        """How many of each prompt's first tokens to read by themselves; none where what comes out for it is known."""
        if not self.sharing.keeps:
            return [0] * len(prompts)
        tenant = self.sharing.tenant_of(caller)
        prefixes = [Prefix(prompt[:-1]) for prompt in prompts]
        for prefix in prefixes:
            self.sightings.note(prefix, tenant)
        ends = []
        for prompt, prefix in zip(prompts, prefixes, strict=True):
            shared = self.sightings.shared(prefix, tenant)
            known = self.sharing.knows(Whole(DECODER, prompt, RowStep(prompt[-1:], taps=True)), caller)
            ends.append(0 if known or 2 * shared < len(prompt) else shared)
        return ends

    def _wanted(self, case: Case, thresholds: tuple[float, ...], end: int) -> Wanted:
        prompt = case.row.prompt
        if not thresholds and not self.changed(case.edits):
            return Prefix(prompt[:end])
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
    sharing: Sharing

    def start(self, row: EncodedRow) -> int:
        """The decoder's start token, whatever the row."""
        return self.decoder_start

    def unread(self, case: Case) -> tuple[int, ...]:
        """None: the encoder reads all."""
        return ()

    def concerns(self, intervention: Intervention) -> bool:
        """Those in the encoder."""
        return intervention.component in ("", ENCODER)

    def changed(self, edits: RowEdits) -> bool:
        """Those in the encoder."""
        return edits.of(ENCODER).anywhere

    async def read(
        self,
        cases: Sequence[Case],
        timing: Timing,
        caller: Caller,
        thresholds: tuple[float, ...] = (),
        *,
        forks: bool = True,
    ) -> None:
        """Run the whole prompts, unless they are known."""
        wanted = [self._wanted(case, thresholds) for case in cases]
        for case, (result,) in zip(cases, await self.sharing.run(wanted, self.encoder, timing, caller), strict=True):
            case.results[ENCODER] = result
            if result.ever is not None:
                case.ever[ENCODER] = result.ever
            if result.kept is not None:  # a baseline that is not finite has come to its end
                case.cross = result.kept

    def _wanted(self, case: Case, thresholds: tuple[float, ...]) -> Wanted:
        prompt, edits = case.row.prompt, case.edits.of(ENCODER)
        known = not thresholds and not edits.anywhere
        step = RowStep(
            prompt, focus=len(prompt) - 1, edits=edits, taps=not edits.anywhere, thresholds=thresholds, keep=True
        )
        return Whole(ENCODER, prompt if known else None, step)
