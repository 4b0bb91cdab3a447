"""Runs a row through transformers, with forward hooks on the modules that the family names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from neuroglot_exporter.families.family import FfnLayer
from neuroglot_exporter.verification.observation import Intervention, Observation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Reference:
    """A causal model of transformers whose FFN can be watched and changed."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[FfnLayer], *, gated: bool) -> None:
        self._model = model
        self._layers = layers
        self._gated = gated

    def run(self, token_ids: Sequence[int], intervention: Intervention | None = None) -> Observation:
        """Compute one row, alone and without padding."""
        activations: list[torch.Tensor] = []
        coefficients: list[torch.Tensor] = []
        with ExitStack() as hooks, torch.no_grad():
            for i, layer in enumerate(self._layers):
                change = None if intervention is None else (intervention.mask[i], intervention.override[i])
                hooks.enter_context(self._watch_activation(layer, activations, change))
                hooks.enter_context(self._watch_coefficient(layer, coefficients))
            logits = self._model(input_ids=torch.tensor([token_ids]), use_cache=False).logits
        return Observation(
            torch.stack(activations).numpy(),
            torch.stack(coefficients).numpy() if self._gated else None,
            logits[0].numpy(),
        )

    @contextmanager
    def _watch_activation(self, layer: FfnLayer, seen: list[torch.Tensor], change: Any) -> Iterator[None]:
        def hook(_module: torch.nn.Module, _inputs: Any, activation: torch.Tensor) -> torch.Tensor | None:
            seen.append(activation[0].clone())
            if change is None:
                return None
            mask, override = (torch.from_numpy(array).to(activation.dtype) for array in change)
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
