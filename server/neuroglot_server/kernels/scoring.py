"""Scores of next tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class NextTokens(NamedTuple):
    """What a model says at consecutive positions of one row.

    Attributes:
        greedy: the most likely token of each position.
        log_probabilities: of each position's target, in nats; empty without targets.
        greedy_log_probabilities: of each position's most likely token, in nats; empty unless they are asked for.
    """

    greedy: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    greedy_log_probabilities: tuple[float, ...] = ()


def next_tokens(
    logits: NDArray[np.floating], targets: Sequence[int], *, greedy_log_probabilities: bool = False
) -> NextTokens | None:
    """Score one row's logits.

    Args:
        logits: float16 or float32 `[positions, vocabulary]`.
        targets: a token for each position, or none at all: then the softmax is not computed.
        greedy_log_probabilities: whether those of the most likely tokens are wanted; the softmax is computed then.

    Returns:
        None where a logit is not finite: no token would be the most likely one.
    """
    logits = logits.astype(np.float32, copy=False)
    greedy = logits.argmax(axis=-1)  # of a NaN, if there is one
    positions = np.arange(len(logits))
    largest = logits[positions, greedy]
    if not (np.isfinite(largest).all() and np.isfinite(logits.min())):
        return None
    tokens = tuple(greedy.tolist())
    if not targets and not greedy_log_probabilities:
        return NextTokens(tokens, ())
    log_sums = _log_sums(logits, largest)
    of_targets: tuple[float, ...] = ()
    of_greedy: tuple[float, ...] = ()
    if targets:
        of_targets = tuple((logits[positions, list(targets)].astype(np.float64) - largest - log_sums).tolist())
    if greedy_log_probabilities:
        of_greedy = tuple((-log_sums).tolist())
    return NextTokens(tokens, of_targets, of_greedy)


def _log_sums(logits: NDArray[np.float32], largest: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each position, `log(sum(exp(logits - largest)))`; one position at a time, which fits the processor's cache."""
    shares = np.empty(logits.shape[-1], np.float32)
    sums = np.empty(len(logits))
    for position, of_position in enumerate(logits):
        np.exp(np.subtract(of_position, largest[position], out=shares), out=shares)
        sums[position] = shares.sum(dtype=np.float64)
    return np.log(sums)
