"""What a model is, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass, field

ENCODER = "encoder"
DECODER = "decoder"
"""Names of components: a causal model has a decoder, an encoder-decoder both."""


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        tokens_per_row: longest row: tokens of the prompt and of its longest answer.
        rows_per_group: most rows a group.
        variants_per_group: most variants a group, the baseline not counted.
        groups_in_flight: most groups that one stream may have in flight; the transport holds to it.
    """

    tokens_per_row: int = 1024
    rows_per_group: int = 64
    variants_per_group: int = 64
    groups_in_flight: int = 32


@dataclass(frozen=True)
class Settings:
    """How a model is run.

    Attributes:
        limits: what a request may ask for.
        batch_tokens: most padded tokens a batch: rows times the longest row, past and encoder's prompt included.
        queue_tokens: most tokens that may wait; over it, `QueueFull`.
        threads: threads of ONNX Runtime; 0 for one a core.
    """

    limits: Limits = field(default_factory=Limits)
    batch_tokens: int = 4096
    queue_tokens: int = 1_000_000
    threads: int = 0


@dataclass(frozen=True)
class ComponentDescription:
    """One stack of layers."""

    name: str
    layers: int
    neurons: int
    hidden_size: int
    activation_function: str
    gated: bool


@dataclass(frozen=True)
class ModelDescription:
    """A model as it is served."""

    name: str
    family: str
    source: str
    source_revision: str
    bundle_identity: str
    components: tuple[ComponentDescription, ...]
    vocabulary_size: int
    dtype: str
    limits: Limits
