"""Greedy generation, continued from a pass over the gold answer.

A pass over the token from which the answer begins and the gold tokens gives the model's greedy token at each of them.
As long as these agree with the gold tokens, generation would have fed the same tokens, so it reuses their keys and
values. It runs further steps only from the first token that differs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile

from neuroglot_server.cache.step_cache import CachedStep, WholeStep
from neuroglot_server.core import DECODER
from neuroglot_server.engine.steps import Edits, KeyValues, RowStep, StepResult
from neuroglot_server.intake.text import EncodedRow, Text


@dataclass(eq=False)
class Continuation:
    """A row whose answer is being generated.

    Attributes:
        tokens: the tokens generated so far, at least one.
        past: the decoder's keys and values of all tokens but the last of `tokens`, prompt included.
        cross: keys and values of the prompt, if an encoder ran it.
        edits: the edits of the row's decoder activations.
        prompt: the prompt by which steps are cached; None under interventions, where they are not.
        max_tokens: how many tokens to generate at most.
        ended: whether generation has ended.
        finite: whether all logits were finite.
    """

    tokens: list[int]
    past: KeyValues
    cross: KeyValues
    edits: Edits
    prompt: tuple[int, ...] | None
    max_tokens: int
    ended: bool = False
    finite: bool = True

    @classmethod
    def after(
        cls, row: EncodedRow, step: RowStep, result: StepResult, prompt: tuple[int, ...] | None, max_tokens: int
    ) -> Continuation:
        """Continue from a step over the token from which the answer begins and the gold tokens but the last.

        Args:
            row: the row.
            step: the step; it was scored, and its keys and values were kept.
            result: the step's result.
            prompt: as the attribute.
            max_tokens: as the attribute.
        """
        assert result.scores is not None
        assert result.kept is not None
        greedy = result.scores.greedy
        agreeing = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(greedy, row.gold, strict=False)))
        tokens = greedy[: agreeing + 1]
        past = step.past.extended(result.kept.first(len(tokens)))
        return cls(list(tokens), past, step.cross, step.edits, prompt, max_tokens)

    def cut(self, eos: Collection[int], text: Text, new: int) -> None:
        """End at the first stop among the last `new` tokens: EOS (dropped), a newline (kept), or `max_tokens`."""
        for index in range(len(self.tokens) - new, len(self.tokens)):
            if self.tokens[index] in eos:
                del self.tokens[index:]
                self.ended = True
                return
            if text.breaks_line(self.tokens[index]) or index + 1 == self.max_tokens:
                del self.tokens[index + 1 :]
                self.ended = True
                return

    def next_step(self) -> CachedStep:
        """Build the step that generates the next token."""
        step = RowStep((self.tokens[-1],), self.past, self.cross, focus=-1, edits=self.edits, scored=True, keep=True)
        return WholeStep(DECODER, self.prompt, step, generated=tuple(self.tokens[:-1]))

    def append(self, result: StepResult) -> None:
        """Append the token of a step's result."""
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
    run_steps: Callable[[Sequence[CachedStep]], Awaitable[list[list[StepResult]]]],
) -> None:
    """Generate until all continuations have ended.

    Args:
        continuations: of any rows; each decode step is one batch of those that have not ended.
        eos: token ids that end a continuation.
        text: the model's tokenizer.
        run_steps: runs steps in the decoder, see `StepCache.run`.
    """
    for continuation in continuations:
        if not continuation.ended:
            continuation.cut(eos, text, len(continuation.tokens))
    while alive := [continuation for continuation in continuations if not continuation.ended]:
        results = await run_steps([continuation.next_step() for continuation in alive])
        for continuation, (result,) in zip(alive, results, strict=True):
            continuation.append(result)
            if not continuation.ended:
                continuation.cut(eos, text, 1)
