"""What a prompt's beginning is known by, and what of a pass over all of it is kept for others."""

from __future__ import annotations

import numpy as np
import pytest

from neuroglot_server.cache.prefix_cache import Opening, Prefix
from neuroglot_server.cache.step_cache import Whole
from neuroglot_server.engine.steps import BLOCK, KeyValues, RowStep, StepResult

PROMPT = tuple(range(5, 5 + 2 * BLOCK + 4))


def opening(end: int, *, keep: bool = False) -> Opening:
    step = RowStep((PROMPT[-1], 91, 92), taps=True, scored=True, targets=(91, 92, 93), keep=keep)
    return Opening(Prefix(PROMPT[:end]), PROMPT[end:-1], Whole("decoder", PROMPT, step))


def ran(step: RowStep, *, finite: bool = True) -> StepResult:
    """What a pass gives: the keys and values of a token are its id."""
    tokens = np.array(step.tokens, np.float32).reshape(1, 1, -1, 1)
    return StepResult(finite, kept=KeyValues((tokens,)) if step.keep else None)


def tokens_of(result: StepResult) -> list[int]:
    return [] if result.kept is None else [int(n) for piece in result.kept.pieces for n in np.asarray(piece).ravel()]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("end", [0, BLOCK, BLOCK + 3, len(PROMPT) - 1])
def test_an_opening_runs_what_is_not_known_and_keeps_each_part_by_itself(end: int, keep: bool) -> None:
    wanted = opening(end, keep=keep)
    whole = wanted.split(ran(wanted.rest(())), ())
    assert len(whole) == len(wanted.links)
    assert [token for block in whole[:-1] for token in tokens_of(block)] == list(PROMPT[:end])
    for known in range(len(wanted.links)):
        step = wanted.rest(whole[:known])
        before = sum(len(tokens_of(block)) for block in whole[:known])
        assert step.past.length == before
        assert step.tokens == (*PROMPT[before:], 91, 92)
        assert step.tokens[step.focus] == PROMPT[-1]
        assert step.keep == (keep or before < end)
        rest = wanted.split(ran(step), whole[:known])
        assert list(map(tokens_of, rest)) == list(map(tokens_of, whole[known:]))
    assert tokens_of(whole[-1]) == ([PROMPT[-1], 91, 92] if keep else [])


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("end", [2 * BLOCK, len(PROMPT) - 1])
def test_a_block_that_another_has_begun_alike_is_only_ended(end: int, keep: bool) -> None:
    wanted = opening(end, keep=keep)
    first, second, *others = wanted.split(ran(wanted.rest(())), ())
    assert second.kept is not None
    begun = second.kept.first(5)
    step = wanted.rest([first], begun)
    assert step.past.length == BLOCK + 5
    assert step.tokens == (*PROMPT[BLOCK + 5 :], 91, 92)
    assert step.tokens[step.focus] == PROMPT[-1]
    ended, *rest = wanted.split(ran(step), [first], begun)
    assert tokens_of(ended) == tokens_of(second)
    assert list(map(tokens_of, rest)) == list(map(tokens_of, others))
    assert ended.kept is not None
    assert not any(np.shares_memory(np.asarray(a), np.asarray(b)) for a in ended.kept.pieces for b in begun.pieces)


def test_what_came_in_the_blocks_of_a_prompt_is_not_copied() -> None:
    wanted = opening(len(PROMPT) - 1)
    ids = np.array(wanted.rest(()).tokens, np.float32).reshape(1, 1, -1, 1)
    pieces = tuple(np.split(ids, [BLOCK, 2 * BLOCK], axis=2))
    first, second, last, _ = wanted.split(StepResult(True, kept=KeyValues(pieces)), ())
    kept = [piece for block in (first, second, last) if block.kept is not None for piece in block.kept.pieces]
    assert [piece is whole for piece, whole in zip(kept, pieces, strict=True)] == [True, True, False]
    assert not np.shares_memory(np.asarray(kept[2]), pieces[2])  # which holds the answer's tokens, too


def test_an_answer_that_is_not_finite_spoils_no_block_of_its_prompt() -> None:
    wanted = opening(len(PROMPT) - 1)
    *blocks, answer = wanted.split(ran(wanted.rest(()), finite=False), ())
    assert all(block.finite for block in blocks)
    assert not answer.finite


def test_an_answer_is_known_by_itself_however_it_was_run() -> None:
    keys = {wanted.links[-1].key for wanted in (opening(0), opening(BLOCK), opening(len(PROMPT) - 1))}
    assert keys == {opening(0).answer.links[0].key}
    assert opening(0, keep=True).links[-1].key not in keys
