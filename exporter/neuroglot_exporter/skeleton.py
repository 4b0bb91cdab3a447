"""A checkpoint's model without its weights: shapes from its config, before any weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from neuroglot_exporter.checkpoints import Checkpoint
from neuroglot_exporter.families.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Geometry(NamedTuple):
    """The size of a component's FFN."""

    layers: int
    neurons: int
    hidden_size: int

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.neurons:,} neurons and hidden size {self.hidden_size:,}"


def skeleton(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model on torch's device `meta`: modules and shapes, no values."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = CONFIG_MAPPING[checkpoint.raw_config["model_type"]].from_dict(dict(checkpoint.raw_config))
    kind: Any = AutoModelForSeq2SeqLM if checkpoint.family.encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(config)
    return model


def geometries(model: PreTrainedModel, family: Family) -> dict[str, Geometry]:
    """The sizes of the components' FFNs, by their names."""
    found = {}
    for ffn in family.ffns:
        layers = ffn.layers(model.config)
        hidden_size, neurons = model.get_parameter(f"{layers[0].down_projection}.weight").shape
        found[ffn.component] = Geometry(len(layers), neurons, hidden_size)
    return found


def parameter_count(model: PreTrainedModel) -> int:
    """Number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
