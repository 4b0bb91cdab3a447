"""What the core should answer, by the definitions: transformers with hooks, one row at a time, nothing cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from neuroglot_server.core import Action, Add, Convert, Deactivate, Override, Scale
from tests import definitions
from tests.checkpoints import CONFIGS
from tests.exporter.encoder_decoder import START
from tests.exporter.encoder_decoder import Row as Texts
from tests.exporter.encoder_decoder import Transformers as EncoderDecoder
from tests.exporter.reference import Edit, Transformers

Model = Transformers | EncoderDecoder

ENCODER_DECODERS = ("mt0", "t5")
COMPONENTS = ("encoder", "decoder")
ACTIONS: dict[str, tuple[Action, Callable[[torch.Tensor], torch.Tensor]]] = {
    "deactivate": (Deactivate(), torch.zeros_like),
    "override": (Override(2.5), lambda a: torch.full_like(a, 2.5)),
    "scale": (Scale(-1.5), lambda a: -1.5 * a),
    "add": (Add(1.25), lambda a: a + 1.25),
    "convert": (Convert(1.5), lambda a: torch.full_like(a, 1.5)),
}
"""Actions, and what they do to the activations that they choose."""

CAUSAL = tuple(family for family in CONFIGS if family not in ENCODER_DECODERS)


@dataclass(frozen=True)
class Change:
    """What is done to some neurons at some positions.

    Attributes:
        neurons: `[layers, neurons]`.
        of: activations to new ones.
        before_last: whether prompt tokens but the last are changed.
        generated: whether tokens of the answer are.
        component: in which component.
    """

    neurons: np.ndarray
    of: Callable[[torch.Tensor], torch.Tensor]
    before_last: bool = False
    generated: bool = False
    component: str = "decoder"


def load(checkpoint: Path, family: str) -> Model:
    """A checkpoint of any family."""
    return EncoderDecoder(checkpoint) if family in ENCODER_DECODERS else Transformers(checkpoint, family)


def watched(model: Model, prompt: Sequence[int], tap: str = "activation") -> dict[str, np.ndarray]:
    """By component, `[layers, positions, neurons]`: at all tokens of a prompt, and at the decoder's start token."""
    if isinstance(model, Transformers):
        return {"decoder": model.run(prompt)[tap]}
    return {component: taps[tap] for component, taps in model.run(Texts(list(prompt), [START])).items()}


def logits(model: Model, prompt: Sequence[int], answer: Sequence[int], changes: Sequence[Change]) -> np.ndarray:
    """Logits `[1 + len(answer), vocabulary]` of what follows the prompt, and each token of the answer."""

    def edit_of(component: str, last: int) -> Edit:
        def edit(layer: int, activations: torch.Tensor) -> torch.Tensor:
            changed = activations.clone()
            for change in changes:
                if change.component != component:
                    continue
                neurons = torch.from_numpy(change.neurons[layer])
                for position in range(activations.shape[1]):
                    acts = position == last or (change.before_last if position < last else change.generated)
                    if acts:
                        changed[0, position, neurons] = change.of(activations[0, position, neurons])
            return changed

        return edit

    last = len(prompt) - 1
    if isinstance(model, Transformers):
        return model.run([*prompt, *answer], edit_of("decoder", last))["logits"][last:]
    edits = {"encoder": edit_of("encoder", last), "decoder": edit_of("decoder", 0)}
    return model.run(Texts(list(prompt), [START, *answer]), edits)["decoder"]["logits"]


def activations(model: Transformers, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """At the last prompt token: `[rows, layers, neurons]`."""
    return np.stack([model.run(prompt)["activation"][:, -1] for prompt in prompts])


def taps(model: EncoderDecoder, prompts: Sequence[Sequence[int]], tap: str = "activation") -> dict[str, np.ndarray]:
    """By component, `[rows, layers, neurons]`: at the prompts' last tokens, and at the decoder's start token."""
    runs = [model.run(Texts(list(prompt), [START])) for prompt in prompts]
    return {component: np.stack([run[component][tap][:, -1] for run in runs]) for component in model.layers}


def of_type(activations: np.ndarray, name: str) -> np.ndarray:
    """The neurons of a type, `[layers, neurons]`."""
    found = np.zeros(activations.shape[1:], dtype=np.bool_)
    for layer, sets in enumerate(definitions.types(activations)):
        found[layer, sorted(sets[name])] = True
    return found


def gold_log_probability(
    model: Model, prompt: Sequence[int], gold: Sequence[int], changes: Sequence[Change] = ()
) -> float:
    scored = logits(model, prompt, gold[:-1], changes)
    return sum(definitions.log_probability(row, token) for row, token in zip(scored, gold, strict=True))


def greedy(model: Model, prompt: Sequence[int], changes: Sequence[Change], most: int, stop: set[int]) -> list[int]:
    """Generated tokens, until one of `stop` (left out) or so many."""
    answer: list[int] = []
    while len(answer) < most:
        token = int(logits(model, prompt, answer, changes)[-1].argmax())
        if token in stop:
            break
        answer.append(token)
    return answer
