"""Differences between the families of embedded models: the tokenizer and the geometry of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 4096


@dataclass(frozen=True)
class Family:
    """One family of models, as the training script sees it.

    Attributes:
        name: the folder of the stored model and the word on the command line.
        tokenizer: learns a tokenizer of the family's form from texts.
        config: the model's shape, for a tokenizer.
        steps: how long it is trained.
        learning_rate: the highest, of AdamW.
        prepare: changes the new model before it is trained.
    """

    name: str
    tokenizer: Callable[[Iterable[str]], PreTrainedTokenizerFast]
    config: Callable[[PreTrainedTokenizerFast], PretrainedConfig]
    steps: int
    learning_rate: float = 3e-3
    prepare: Callable[[PreTrainedModel], object] = id


def load(name: str) -> Family:
    """The family of this name: the `FAMILY` of the module beside this one.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    family: Family = import_module(f"neuroglot_exporter.embedded.{name}").FAMILY
    return family
