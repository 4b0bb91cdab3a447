"""The definition of a family: where its neurons are, and which attributes of its config are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FfnLayer:
    """Where the neurons of one layer are: the paths of two torch modules.

    Attributes:
        activation: its output is the activation, `act(x W_k)` or, gated, `act(gate)`.
        down_projection: the linear layer whose weight is the value matrix.
    """

    activation: str
    down_projection: str


@dataclass(frozen=True)
class Ffn:
    """Where the neurons of one component are.

    Attributes:
        component: `decoder` or `encoder`.
        activation: as in `FfnLayer`, with `{i}` for the layer: `transformer.h.{i}.mlp.gelu_impl`.
        down_projection: as in `FfnLayer`, with `{i}` for the layer.
        depth: how many layers there are, from the config.
    """

    component: str
    activation: str
    down_projection: str
    depth: Callable[[Any], int]

    def layers(self, config: Any) -> list[FfnLayer]:
        """The layers in their order."""
        return [
            FfnLayer(self.activation.format(i=i), self.down_projection.format(i=i)) for i in range(self.depth(config))
        ]


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: its name in the manifest and on the command line.
        model_types: the values of `model_type` in config.json.
        ffns: one for each component: the decoder's, or the encoder's and then the decoder's.
        output_embedding: module path of the linear layer that gives the logits.
        activation_function: the FFN's non-linearity, from the config.
        max_positions: longest row that the position embedding allows, from the config; None if unbounded.
        harmless: attributes of config.json that do not change the FFN, whatever their value.
        pinned: attributes that do not change the FFN with one of these values; others are refused.
        output_scale: factor of the last hidden state before the output embedding, from the config.
    """

    name: str
    model_types: tuple[str, ...]
    ffns: tuple[Ffn, ...]
    output_embedding: str
    activation_function: Callable[[Any], str]
    max_positions: Callable[[Any], int | None]
    harmless: frozenset[str]
    pinned: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    output_scale: Callable[[Any], float] = lambda _config: 1.0

    @property
    def encoder_decoder(self) -> bool:
        """Whether the model is an encoder-decoder."""
        return len(self.ffns) > 1
