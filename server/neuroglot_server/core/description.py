"""Descriptions of models, and their settings and limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from neuroglot_server.core.limits import BYTES_A_TOKEN

ENCODER = "encoder"
DECODER = "decoder"
"""Names of components: a causal model has a decoder, an encoder-decoder both."""


@dataclass(frozen=True)
class Limits:
    """Limits on the size of a request.

    Attributes:
        tokens_per_row: maximum tokens of a row: of its prompt and its longest answer together.
        rows_per_group: maximum rows per group.
        variants_per_group: maximum variants per group, not counting the baseline.
        groups_in_flight: maximum groups in flight per stream; enforced by the transport.
    """

    tokens_per_row: int = 1024
    rows_per_group: int = 64
    variants_per_group: int = 64
    groups_in_flight: int = 32

    @property
    def text_bytes(self) -> int:
        """Maximum size of the text of a prompt."""
        return self.tokens_per_row * BYTES_A_TOKEN


@dataclass(frozen=True)
class Settings:
    """Settings of a served model.

    Attributes:
        limits: limits on the size of a request.
        batch_tokens: maximum new tokens of a batch of several rows: number of rows times new tokens of the longest row.
            On a few CPU cores, larger batches are slower per token and add latency; a GPU needs larger ones.
        batch_bytes: maximum memory of one batch: keys, values, captured activations, masks and logits.
        queue_tokens: maximum tokens in flight (queued or running); `QueueFull` above.
        queue_bytes: maximum memory of the requests in flight: forked keys and values, activations and results.
        cache_bytes: maximum memory of keys, values and results cached for later requests; 0 disables the caches.
        shared_cache: whether tenants share cached prompts. Response times then reveal whether a prompt was cached.
        hang_seconds: a forward pass that takes longer makes the model NOT_SERVING until it ends and the model passes
            its probe.
        threads: ONNX Runtime threads; 0 for one per core.
        device: device to run on: `cpu`, `cuda` or `cuda:1`.
    """

    limits: Limits = field(default_factory=Limits)
    batch_tokens: int = 512
    batch_bytes: int = 384 * 2**20
    queue_tokens: int = 1_000_000
    queue_bytes: int = 2**30
    cache_bytes: int = 256 * 2**20
    shared_cache: bool = False
    hang_seconds: float = 300.0
    threads: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class ComponentDescription:
    """A component of a model: one stack of layers."""

    name: str
    layers: int
    neurons: int
    hidden_size: int
    activation_function: str
    gated: bool


@dataclass(frozen=True)
class ModelDescription:
    """A served model; `queue_tokens` is the maximum of tokens in flight over all callers."""

    name: str
    family: str
    source: str
    source_revision: str
    bundle_identity: str
    components: tuple[ComponentDescription, ...]
    vocabulary_size: int
    dtype: str
    limits: Limits
    queue_tokens: int = Settings.queue_tokens
