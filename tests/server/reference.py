"""What the core should answer, by the definitions: transformers with hooks, one row at a time, nothing cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tests import definitions
from tests.exporter.reference import Transformers


@dataclass(frozen=True)
class Change:
    """What is done to some neurons at some positions.

    Attributes:
        neurons: `[layers, neurons]`.
        of: activations to new ones.
        before_last: whether prompt tokens but the last are changed.
        generated: whether tokens of the answer are.
    """

    neurons: np.ndarray
    of: Callable[[torch.Tensor], torch.Tensor]
    before_last: bool = False
    generated: bool = False


def logits(model: Transformers, prompt: Sequence[int], answer: Sequence[int], changes: Sequence[Change]) -> np.ndarray:
    """Logits `[1 + len(answer), vocabulary]` of what follows the prompt, and each token of the answer."""
    last = len(prompt) - 1

    def edit(layer: int, activations: torch.Tensor) -> torch.Tensor:
        changed = activations.clone()
        for change in changes:
            neurons = torch.from_numpy(change.neurons[layer])
            for position in range(activations.shape[1]):
                acts = position == last or (change.before_last if position < last else change.generated)
                if acts:
                    changed[0, position, neurons] = change.of(activations[0, position, neurons])
        return changed

    return model.run([*prompt, *answer], edit)["logits"][last:]


def activations(model: Transformers, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """At the last prompt token: `[rows, layers, neurons]`."""
    return np.stack([model.run(prompt)["activation"][:, -1] for prompt in prompts])


def of_type(activations: np.ndarray, name: str) -> np.ndarray:
    """The neurons of a type, `[layers, neurons]`."""
    found = np.zeros(activations.shape[1:], dtype=np.bool_)
    for layer, sets in enumerate(definitions.types(activations)):
        found[layer, sorted(sets[name])] = True
    return found


def gold_log_probability(
    model: Transformers, prompt: Sequence[int], gold: Sequence[int], changes: Sequence[Change] = ()
) -> float:
    scored = logits(model, prompt, gold[:-1], changes)
    return sum(definitions.log_probability(row, token) for row, token in zip(scored, gold, strict=True))


def greedy(
    model: Transformers, prompt: Sequence[int], changes: Sequence[Change], most: int, stop: set[int]
) -> list[int]:
    """Generated tokens, until one of `stop` (left out) or so many."""
    answer: list[int] = []
    while len(answer) < most:
        token = int(logits(model, prompt, answer, changes)[-1].argmax())
        if token in stop:
            break
        answer.append(token)
    return answer
