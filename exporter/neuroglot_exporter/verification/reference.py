"""Runs a row through transformers, with forward hooks on the modules that the family names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from neuroglot_exporter.families.family import Family, FfnLayer
from neuroglot_exporter.verification.observation import DECODER, ENCODER, Floats, Intervention, Observation
from neuroglot_exporter.verification.rows import LOGIT_POSITIONS, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Seen = defaultdict[str, list[torch.Tensor]]
"""By component, a tensor for each layer."""


class Reference:
    """A model of transformers whose FFN activations are recorded and changed by hooks."""

    def __init__(self, model: PreTrainedModel, family: Family, gated: Mapping[str, bool]) -> None:
        """Wrap a model.

        Args:
            model: in float32 and eval mode.
            family: its family, which locates the neurons.
            gated: whether the FFN is gated, by component.
        """
        self._model = model
        self._ffns = {ffn.component: ffn.layers(model.config) for ffn in family.ffns}
        self._gated = gated

    def run(self, row: Row, intervention: Intervention | None = None) -> Observation:
        """Compute one row, alone and without padding."""
        activations, coefficients = _Seen(list), _Seen(list)
        with ExitStack() as hooks, torch.no_grad():
            for component, layers in self._ffns.items():
                for i, layer in enumerate(layers):
                    change = None
                    if intervention is not None and intervention.component == component:
                        change = intervention.mask[i], intervention.override[i]
                    hooks.enter_context(self._watch_activation(layer, activations[component], change))
                    if self._gated[component]:
                        hooks.enter_context(self._watch_coefficient(layer, coefficients[component]))
            logits = self._model(**_inputs(row), use_cache=False).logits
        return Observation(
            {component: torch.stack(seen).numpy() for component, seen in activations.items()},
            {component: torch.stack(seen).numpy() for component, seen in coefficients.items()},
            logits[0, -LOGIT_POSITIONS:].numpy(),
        )

    @contextmanager
    def _watch_activation(
        self, layer: FfnLayer, seen: list[torch.Tensor], change: tuple[Floats, Floats] | None
    ) -> Iterator[None]:
        def hook(_module: torch.nn.Module, _inputs: Any, activation: torch.Tensor) -> torch.Tensor | None:
            seen.append(activation[0].clone())
            if change is None:
                return None
            mask, override = map(torch.from_numpy, change)
            return mask * activation + override

        handle = self._model.get_submodule(layer.activation).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _watch_coefficient(self, layer: FfnLayer, seen: list[torch.Tensor]) -> Iterator[None]:
        def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.append(inputs[0][0].clone())

        handle = self._model.get_submodule(layer.down_projection).register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def _inputs(row: Row) -> dict[str, torch.Tensor]:
    tokens = {component: torch.tensor([ids]) for component, ids in row.items()}
    if ENCODER in tokens:
        return {"input_ids": tokens[ENCODER], "decoder_input_ids": tokens[DECODER]}
    return {"input_ids": tokens[DECODER]}
