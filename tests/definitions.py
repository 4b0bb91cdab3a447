"""The definitions of the paper, read out loud: plain loops over sets, written apart from the server's kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

TYPES = ("non_activated", "specific", "partial_shared", "all_shared")
"""In the order of their codes."""


def active_neurons(activations: np.ndarray, threshold: float = 0.0) -> set[int]:
    """The neurons of one layer and one language that are active: `[neurons]` to indices."""
    return {i for i, a in enumerate(activations.tolist()) if a > threshold}


def types_of_layer(activations: np.ndarray, threshold: float = 0.0) -> dict[str, set[int]]:
    """The four sets of one layer, `[languages, neurons]`, by Equations 4 to 7."""
    neurons = set(range(activations.shape[1]))
    active = [active_neurons(of_language, threshold) for of_language in activations]
    all_shared = set.intersection(*active)  # Eq. 4
    non_activated = set.intersection(*(neurons - of_language for of_language in active))  # Eq. 5
    specific = set()  # Eq. 6
    for k1, of_language in enumerate(active):
        others = [neurons - other for k, other in enumerate(active) if k != k1]
        specific |= of_language & set.intersection(*others)
    partial_shared = neurons - all_shared - non_activated - specific  # Eq. 7
    return dict(zip(TYPES, (non_activated, specific, partial_shared, all_shared), strict=True))


def types(activations: np.ndarray, threshold: float = 0.0) -> list[dict[str, set[int]]]:
    """The four sets of every layer, from `[languages, layers, neurons]`."""
    return [types_of_layer(activations[:, layer], threshold) for layer in range(activations.shape[1])]


def type_codes(activations: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """The same as an array of codes, `[layers, neurons]`."""
    codes = np.full(activations.shape[1:], 255)
    for layer, sets in enumerate(types(activations, threshold)):
        for code, name in enumerate(TYPES):
            codes[layer, sorted(sets[name])] = code
    return codes


def contributions(coefficients: Sequence[float], values: np.ndarray) -> list[float]:
    """Eq. 3, for one layer and one language: m `[neurons]`, and value rows `[neurons, hidden]`."""
    written = [abs(m) * math.sqrt(sum(x * x for x in v)) for m, v in zip(coefficients, values.tolist(), strict=True)]
    return [one / sum(written) for one in written]


def top_neurons(shares: Sequence[float], percent: int) -> set[int]:
    """The neurons with the largest contributions: a percentage of the layer, rounded up."""
    count = -(-len(shares) * percent // 100)
    best_first = sorted(range(len(shares)), key=lambda i: (-shares[i], i))
    return set(best_first[:count])


def log_probability(logits: np.ndarray, token: int) -> float:
    """Of one token, in nats, from the logits of one position."""
    exact = logits.astype(np.float64)
    return float(exact[token] - exact.max() - math.log(np.exp(exact - exact.max()).sum()))


def normalised(text: str) -> str:
    """A text as answers are compared: stripped, lowercased, without trailing `. ; ! , ? </s> <pad>`."""
    text = text.strip().lower()
    for ending in (".", ";", "!", ",", "?", "</s>", "<pad>"):
        if text.endswith(ending):
            return normalised(text[: -len(ending)])
    return text
