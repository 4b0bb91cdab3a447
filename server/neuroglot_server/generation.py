"""Greedy generation, continued from a pass over the gold answer.

A pass over the token from which the answer begins and the gold tokens says what the model would have said at each of
them. So long as that is the gold token, generation would have fed it too, and its keys and values are those of the
pass: only from the first token on that differs is anything left to run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile

from neuroglot_server.batcher import Batcher, Timing
from neuroglot_server.core import Prediction
from neuroglot_server.steps import Edits, KeyValues, RowStep, StepResult
from neuroglot_server.text import EncodedRow, Text

PAST_GOLD = 4
"""How many tokens more than the gold answer has may be generated."""


def most_tokens(row: EncodedRow, prediction: Prediction) -> int:
    """How many tokens may be generated for a row."""
    return len(row.gold) + PAST_GOLD if row.gold else prediction.max_tokens


def answer_tokens(row: EncodedRow, prediction: Prediction | None) -> int:
    """Most tokens that are run of a row's answer, gold or generated."""
    if prediction is None:
        return 0
    return most_tokens(row, prediction) if prediction.generate else len(row.gold)


@dataclass(eq=False)
class Continuation:
    """A row whose answer is being generated.

    Attributes:
        tokens: what was generated so far, at least one token.
        past: keys and values of what the decoder has read: all but the last of `tokens`, and what came before them.
        cross: keys and values of the prompt, where an encoder read it.
        edits: what is done to the row.
        most: how many tokens may be generated.
        ended: whether nothing more is to be generated.
        finite: whether all logits were.
    """

    tokens: list[int]
    past: KeyValues
    cross: KeyValues
    edits: Edits
    most: int
    ended: bool = False
    finite: bool = True

    @classmethod
    def after(cls, row: EncodedRow, step: RowStep, result: StepResult, most: int) -> Continuation:
        """Go on from a scored and kept step over the answer's beginning and the gold tokens but the last."""
        assert result.scores is not None
        assert result.kept is not None
        said = result.scores.greedy
        agreeing = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(said, row.gold, strict=False)))
        tokens = said[: agreeing + 1]
        past = step.past.extended(result.kept[:, :, : len(tokens)])
        return cls(list(tokens), past, step.cross, step.edits, most)

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


async def generate(
    continuations: Sequence[Continuation], eos: Collection[int], text: Text, batcher: Batcher, timing: Timing
) -> None:
    """Generate until every continuation has ended."""
    for continuation in continuations:
        continuation.cut(eos, text, len(continuation.tokens))
    while alive := [continuation for continuation in continuations if not continuation.ended]:
        steps = [
            RowStep((one.tokens[-1],), one.past, one.cross, focus=-1, edits=one.edits, scored=True, keep=True)
            for one in alive
        ]
        for one, result in zip(alive, await batcher.run(steps, timing), strict=True):
            if not result.finite:
                one.finite, one.ended = False, True
                continue
            assert result.scores is not None
            assert result.kept is not None
            one.tokens += result.scores.greedy
            one.past = one.past.extended(result.kept)
            one.cut(eos, text, 1)
