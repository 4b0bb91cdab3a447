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
from neuroglot_server.core import DECODER, ENCODER, Intervention
from neuroglot_server.interventions import RowEdits
from neuroglot_server.steps import NO_TOKENS, RowStep
from neuroglot_server.text import EncodedRow


class Reader(Protocol):
    """What is different between causal models and encoder-decoders: all before the answer."""

    def start(self, row: EncodedRow) -> int:
        """The token from which a row's answer begins."""

    def concerns(self, intervention: Intervention) -> bool:
        """Whether an intervention may change what is read, so that prompts must be read anew under it."""

    def changed(self, edits: RowEdits) -> bool:
        """Whether a row's edits do change what is read."""

    async def read(self, cases: Sequence[Case], timing: Timing, *, taps: bool) -> None:
        """Read the prompts of cases, as far as their answers' beginnings.

        Args:
            cases: their `past` or `cross` is set, and the result of an encoder.
            timing: is added to.
            taps: whether these are baselines, whose activations are wanted.

        Raises:
            ModelClosed: the model went down meanwhile.
        """


@dataclass(frozen=True, eq=False)
class Prefill:
    """How a causal model reads; none of its taps lie there."""

    decoder: Batcher

    def start(self, row: EncodedRow) -> int:
        """The prompt's last token."""
        return row.prompt[-1]

    def concerns(self, intervention: Intervention) -> bool:
        """Those before the last prompt token."""
        return intervention.scope.before_last

    def changed(self, edits: RowEdits) -> bool:
        """Those before the last prompt token."""
        return edits.of(DECODER).before is not None

    async def read(self, cases: Sequence[Case], timing: Timing, *, taps: bool) -> None:
        """Run the prompts but their last tokens."""
        longer = [case for case in cases if len(case.row.prompt) > 1]
        steps = [
            RowStep(case.row.prompt[:-1], focus=len(case.row.prompt) - 1, edits=case.edits.of(DECODER), keep=True)
            for case in longer
        ]
        for case, result in zip(longer, await self.decoder.run(steps, timing), strict=True):
            assert result.kept is not None
            case.past = NO_TOKENS.extended(result.kept)


@dataclass(frozen=True, eq=False)
class Encode:
    """How an encoder-decoder reads.

    Attributes:
        encoder: runs steps of the encoder.
        decoder_start: the first token of every decoder's row.
    """

    encoder: Batcher
    decoder_start: int

    def start(self, row: EncodedRow) -> int:
        """The decoder's start token, whatever the row."""
        return self.decoder_start

    def concerns(self, intervention: Intervention) -> bool:
        """Those in the encoder."""
        return intervention.component in ("", ENCODER)

    def changed(self, edits: RowEdits) -> bool:
        """Those in the encoder."""
        return edits.of(ENCODER).anywhere

    async def read(self, cases: Sequence[Case], timing: Timing, *, taps: bool) -> None:
        """Run the whole prompts."""
        steps = [
            RowStep(case.row.prompt, focus=len(case.row.prompt) - 1, edits=case.edits.of(ENCODER), taps=taps, keep=True)
            for case in cases
        ]
        for case, result in zip(cases, await self.encoder.run(steps, timing), strict=True):
            case.results[ENCODER] = result
            if result.kept is not None:  # a baseline that is not finite has come to its end
                case.cross = NO_TOKENS.extended(result.kept)
