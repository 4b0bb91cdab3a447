"""Expected results of the core by the definitions: transformers with hooks, one row at a time, without caches."""

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
"""Actions, and the functions of activations that they stand for."""

CAUSAL = tuple(family for family in CONFIGS if family not in ENCODER_DECODERS)


@dataclass(frozen=True)
class Change:
    """A change of some neurons at some positions. The last prompt token is always among the positions.

    Attributes:
        neurons: the neurons, bool `[layers, neurons]`.
        of: maps activations to new ones.
        before_last: whether prompt tokens before the last are changed.
        generated: whether tokens of the answer are changed.
        component: the component's name.
    """

    neurons: np.ndarray
    of: Callable[[torch.Tensor], torch.Tensor]
    before_last: bool = False
    generated: bool = False
    component: str = "decoder"


def load(checkpoint: Path, family: str) -> Model:
    """Load a checkpoint of any family."""
    return EncoderDecoder(checkpoint) if family in ENCODER_DECODERS else Transformers(checkpoint, family)


def watched(model: Model, prompt: Sequence[int], tap: str = "activation") -> dict[str, np.ndarray]:
    """Activations by component, `[layers, positions, neurons]`: at all prompt tokens, or the decoder's start token."""
    if isinstance(model, Transformers):
        return {"decoder": model.run(prompt)[tap]}
    return {component: taps[tap] for component, taps in model.run(Texts(list(prompt), [START])).items()}


def logits(model: Model, prompt: Sequence[int], answer: Sequence[int], changes: Sequence[Change]) -> np.ndarray:
    """Logits after the prompt and after each token of the answer, `[1 + len(answer), vocabulary]`."""

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
    """Activations at the last prompt token, `[rows, layers, neurons]`."""
    return np.stack([model.run(prompt)["activation"][:, -1] for prompt in prompts])


def taps(model: EncoderDecoder, prompts: Sequence[Sequence[int]], tap: str = "activation") -> dict[str, np.ndarray]:
    """Activations by component, `[rows, layers, neurons]`: at the last prompt token, or the decoder's start token."""
    runs = [model.run(Texts(list(prompt), [START])) for prompt in prompts]
    return {component: np.stack([run[component][tap][:, -1] for run in runs]) for component in model.layers}


def of_type(activations: np.ndarray, name: str) -> np.ndarray:
    """The neurons of a type, bool `[layers, neurons]`."""
    found = np.zeros(activations.shape[1:], dtype=np.bool_)
    for layer, sets in enumerate(definitions.types(activations)):
        found[layer, sorted(sets[name])] = True
    return found


def gold_log_probability(
    model: Model, prompt: Sequence[int], gold: Sequence[int], changes: Sequence[Change] = ()
) -> float:
    scored = logits(model, prompt, gold[:-1], changes)
    return sum(definitions.log_probability(row, token) for row, token in zip(scored, gold, strict=True))


def greedy(
    model: Model, prompt: Sequence[int], changes: Sequence[Change], max_tokens: int, stop: set[int]
) -> list[int]:
    """Generate greedily until one of `stop`, which is left out, or at most `max_tokens` tokens."""
    answer: list[int] = []
    while len(answer) < max_tokens:
        token = int(logits(model, prompt, answer, changes)[-1].argmax())
        if token in stop:
            break
        answer.append(token)
    return answer
