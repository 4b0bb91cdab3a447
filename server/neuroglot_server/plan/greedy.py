"""Greedy generation, continued from a pass over the gold answer.

A pass over the token from which the answer begins and the gold tokens says what the model would have said at each of
them. So long as that is the gold token, generation would have fed it too, and its keys and values are those of the
pass: only from the first token on that differs is anything left to run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile

from neuroglot_server.cache.step_cache import Wanted, Whole
from neuroglot_server.core import DECODER
from neuroglot_server.engine.steps import Edits, KeyValues, RowStep, StepResult
from neuroglot_server.intake.text import EncodedRow, Text


@dataclass(eq=False)
class Continuation:
    """A row whose answer is being generated.

    Attributes:
        tokens: what was generated so far, at least one token.
        past: keys and values of what the decoder has read: all but the last of `tokens`, and what came before them.
        cross: keys and values of the prompt, where an encoder read it.
        edits: what is done to the row.
        prompt: what was read before the tokens; None where interventions make it a continuation of its own.
        most: how many tokens may be generated.
        ended: whether nothing more is to be generated.
        finite: whether all logits were.
    """

    tokens: list[int]
    past: KeyValues
    cross: KeyValues
    edits: Edits
    prompt: tuple[int, ...] | None
    most: int
    ended: bool = False
    finite: bool = True

    @classmethod
    def after(
        cls, row: EncodedRow, step: RowStep, result: StepResult, prompt: tuple[int, ...] | None, most: int
    ) -> Continuation:
        """Go on from a scored and kept step over the answer's beginning and the gold tokens but the last."""
        assert result.scores is not None
        assert result.kept is not None
        said = result.scores.greedy
        agreeing = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(said, row.gold, strict=False)))
        tokens = said[: agreeing + 1]
        past = step.past.extended(result.kept.first(len(tokens)))
        return cls(list(tokens), past, step.cross, step.edits, prompt, most)

    def cut(self, eos: Collection[int], text: Text, unseen: int) -> None:
        """End where one of the last `unseen` tokens says so: at EOS, which is dropped, at a newline, or at `most`."""
        for place in range(len(self.tokens) - unseen, len(self.tokens)):
            if self.tokens[place] in eos:
                del self.tokens[place:]
                self.ended = True
                return
            if text.breaks_line(self.tokens[place]) or place + 1 == self.most:
                del self.tokens[place + 1 :]
                self.ended = True
                return

    def wanted(self) -> Wanted:
        """The step that gives one more token."""
        step = RowStep((self.tokens[-1],), self.past, self.cross, focus=-1, edits=self.edits, scored=True, keep=True)
        return Whole(DECODER, self.prompt, step, read=tuple(self.tokens[:-1]))

    def take(self, result: StepResult) -> None:
        """Go on by the token that a step gave."""
        if not result.finite:
            self.finite, self.ended = False, True
            return
        assert result.scores is not None
        assert result.kept is not None
        self.tokens += result.scores.greedy
        self.past = self.past.extended(result.kept)


async def generate(
    continuations: Sequence[Continuation],
    eos: Collection[int],
    text: Text,
    run: Callable[[Sequence[Wanted]], Awaitable[list[list[StepResult]]]],
) -> None:
    """Generate until every continuation has ended.

    Args:
        continuations: of any rows; they go on together, and each until it has ended.
        eos: tokens that end one.
        text: the model's tokenizer.
        run: computes what is wanted, in the decoder.
    """
    for continuation in continuations:
        if not continuation.ended:
            continuation.cut(eos, text, len(continuation.tokens))
    while alive := [continuation for continuation in continuations if not continuation.ended]:
        for one, (result,) in zip(alive, await run([one.wanted() for one in alive]), strict=True):
            one.take(result)
            if not one.ended:
                one.cut(eos, text, 1)
