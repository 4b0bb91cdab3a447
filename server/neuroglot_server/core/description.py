"""What a model is, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass, field

from neuroglot_server.core.limits import BYTES_A_TOKEN

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

    @property
    def text_bytes(self) -> int:
        """Longest text of a prompt."""
        return self.tokens_per_row * BYTES_A_TOKEN


@dataclass(frozen=True)
class Settings:
    """How a model is run.

    Attributes:
        limits: what a request may ask for.
        batch_tokens: most new tokens of a batch of several rows: their number times the new tokens of the longest. On a
            few cores larger batches are slower for each token, and longer for whoever waits; a GPU wants more.
        batch_bytes: most that the keys, values, taps, masks and logits of one batch may take up.
        queue_tokens: most tokens that may wait; over it, `QueueFull`.
        queue_bytes: most that the requests in the house may take up: forked keys and values, taps and results.
        cache_bytes: most that keys, values and results take up that are kept for the next request; 0 for none.
        shared_cache: whether tenants see each other's cached prompts. A hit is faster, which can be timed.
        hang_seconds: a pass that runs longer turns the model's health red until it has ended and the probe is answered.
        threads: threads of ONNX Runtime; 0 for one a core.
        device: where passes run: `cpu`, `cuda` or `cuda:1`.
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
    """One stack of layers."""

    name: str
    layers: int
    neurons: int
    hidden_size: int
    activation_function: str
    gated: bool


@dataclass(frozen=True)
class ModelDescription:
    """A model as it is served; `queue_tokens` is most that may wait or run at once, of all callers together."""

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
