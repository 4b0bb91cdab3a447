"""Scores of next tokens, and of generated texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_TRAILING = (".", ";", "!", ",", "?", "</s>", "<pad>")


class NextTokens(NamedTuple):
    """What a model says at consecutive positions of one row.

    Attributes:
        greedy: the most likely token of each position.
        log_probabilities: of each position's target, in nats; empty without targets.
    """

    greedy: tuple[int, ...]
    log_probabilities: tuple[float, ...]


def next_tokens(logits: NDArray[np.floating], targets: Sequence[int]) -> NextTokens | None:
    """Score one row's logits.

    Args:
        logits: float16 or float32 `[positions, vocabulary]`.
        targets: a token for each position, or none at all: then only the most likely tokens are found.

    Returns:
        None where a logit is not finite: no token would be the most likely one.
    """
    logits = logits.astype(np.float32, copy=False)
    if not np.isfinite(logits).all():
        return None
    greedy = logits.argmax(axis=-1)
    if not targets:
        return NextTokens(tuple(greedy.tolist()), ())
    positions = np.arange(len(targets))
    largest = logits[positions, greedy]
    log_sum = np.log(np.exp(logits - largest[:, np.newaxis]).sum(axis=-1, dtype=np.float64))
    of_targets = logits[positions, list(targets)].astype(np.float64) - largest - log_sum
    return NextTokens(tuple(greedy.tolist()), tuple(of_targets.tolist()))


def normalised(text: str) -> str:
    """A text as it is compared with answers: stripped, lowercased, without trailing `. ; ! , ? </s> <pad>`.

    >>> normalised(" Paris.</s> ")
    'paris'
    """
    text = text.strip().lower()
    while text.endswith(_TRAILING):
        text = next(text.removesuffix(end) for end in _TRAILING if text.endswith(end)).rstrip()
    return text
