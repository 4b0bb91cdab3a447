"""Cache keys of prompt prefixes, and the cached parts of a pass over a prompt and its answer."""

from __future__ import annotations

import numpy as np
import pytest

from neuroglot_server.cache.prefix_cache import Prefix, PrefixAndAnswer
from neuroglot_server.cache.step_cache import WholeStep
from neuroglot_server.engine.steps import BLOCK, KeyValues, RowStep, StepResult

PROMPT = tuple(range(5, 5 + 2 * BLOCK + 4))


def prefix_and_answer(end: int, *, keep: bool = False) -> PrefixAndAnswer:
    step = RowStep((PROMPT[-1], 91, 92), taps=True, scored=True, targets=(91, 92, 93), keep=keep)
    return PrefixAndAnswer(Prefix(PROMPT[:end]), PROMPT[end:-1], WholeStep("decoder", PROMPT, step))


def ran(step: RowStep, *, finite: bool = True) -> StepResult:
    """The result of a pass in which the keys and values of a token are its id."""
    tokens = np.array(step.tokens, np.float32).reshape(1, 1, -1, 1)
    return StepResult(finite, kept=KeyValues((tokens,)) if step.keep else None)


def tokens_of(result: StepResult) -> list[int]:
    return [] if result.kept is None else [int(n) for piece in result.kept.pieces for n in np.asarray(piece).ravel()]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("end", [0, BLOCK, BLOCK + 3, len(PROMPT) - 1])
def test_only_missing_links_are_run_and_each_is_cached_separately(end: int, keep: bool) -> None:
    cached_step = prefix_and_answer(end, keep=keep)
    whole = cached_step.split(ran(cached_step.rest(())), ())
    assert len(whole) == len(cached_step.links)
    assert [token for block in whole[:-1] for token in tokens_of(block)] == list(PROMPT[:end])
    for hits in range(len(cached_step.links)):
        step = cached_step.rest(whole[:hits])
        before = sum(len(tokens_of(block)) for block in whole[:hits])
        assert step.past.length == before
        assert step.tokens == (*PROMPT[before:], 91, 92)
        assert step.tokens[step.focus] == PROMPT[-1]
        assert step.keep == (keep or before < end)
        rest = cached_step.split(ran(step), whole[:hits])
        assert list(map(tokens_of, rest)) == list(map(tokens_of, whole[hits:]))
    assert tokens_of(whole[-1]) == ([PROMPT[-1], 91, 92] if keep else [])


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("end", [2 * BLOCK, len(PROMPT) - 1])
def test_after_a_partial_hit_only_the_rest_of_the_block_is_run(end: int, keep: bool) -> None:
    cached_step = prefix_and_answer(end, keep=keep)
    first, second, *others = cached_step.split(ran(cached_step.rest(())), ())
    assert second.kept is not None
    partial_hit = second.kept.first(5)
    step = cached_step.rest([first], partial_hit)
    assert step.past.length == BLOCK + 5
    assert step.tokens == (*PROMPT[BLOCK + 5 :], 91, 92)
    assert step.tokens[step.focus] == PROMPT[-1]
    ended, *rest = cached_step.split(ran(step), [first], partial_hit)
    assert tokens_of(ended) == tokens_of(second)
    assert list(map(tokens_of, rest)) == list(map(tokens_of, others))
    assert ended.kept is not None
    assert not any(
        np.shares_memory(np.asarray(a), np.asarray(b)) for a in ended.kept.pieces for b in partial_hit.pieces
    )


def test_pieces_that_match_the_blocks_are_not_copied() -> None:
    cached_step = prefix_and_answer(len(PROMPT) - 1)
    ids = np.array(cached_step.rest(()).tokens, np.float32).reshape(1, 1, -1, 1)
    pieces = tuple(np.split(ids, [BLOCK, 2 * BLOCK], axis=2))
    first, second, last, _ = cached_step.split(StepResult(True, kept=KeyValues(pieces)), ())
    kept = [piece for block in (first, second, last) if block.kept is not None for piece in block.kept.pieces]
    assert [piece is whole for piece, whole in zip(kept, pieces, strict=True)] == [True, True, False]
    assert not np.shares_memory(np.asarray(kept[2]), pieces[2])  # that piece also holds the answer's tokens


def test_blocks_are_cached_even_if_the_answer_is_not_finite() -> None:
    cached_step = prefix_and_answer(len(PROMPT) - 1)
    *blocks, answer = cached_step.split(ran(cached_step.rest(()), finite=False), ())
    assert all(block.finite for block in blocks)
    assert not answer.finite


def test_an_answers_key_does_not_depend_on_the_cached_prefix() -> None:
    keys = {
        cached_step.links[-1].key
        for cached_step in (prefix_and_answer(0), prefix_and_answer(BLOCK), prefix_and_answer(len(PROMPT) - 1))
    }
    assert keys == {prefix_and_answer(0).answer.links[0].key}
    assert prefix_and_answer(0, keep=True).links[-1].key not in keys
