"""What an answer holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BASELINE = "baseline"
"""The name under which the results of the run without interventions come back."""


@dataclass(frozen=True)
class RowResult:
    """What was run for a row; see `neuroglot.gold` for all that concerns the gold tokens."""

    label: str
    prompt_tokens: int
    gold_token_ids: tuple[int, ...]
    gold_is_joint: bool
    r_index: int = 0


@dataclass(frozen=True, eq=False)
class ContributionResult:
    """Contributions by type.

    Attributes:
        top_k: how many neurons of a layer count as top contributors.
        top_counts: top contributors of each type, int64 `[rows, layers, 4]`.
        sums: sum of the contributions of each type, float32 `[rows, layers, 4]`.
    """

    top_k: int
    top_counts: NDArray[np.int64]
    sums: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ThresholdResult:
    """Types at one threshold.

    Attributes:
        threshold: the threshold.
        type_counts: neurons of each type, int64 `[layers, 4]`; None where the group has one row.
        active_counts: active neurons, int64 `[layers, rows]`.
        near_threshold: activations within 1e-5 of the threshold, over all layers and rows.
        type_map: packed type codes, 2 bits a neuron; empty unless asked for.
        active_bitmaps: packed active neurons of each row; empty unless asked for.
        contribution: None unless asked for, and where the group has one row.
    """

    threshold: float
    type_counts: NDArray[np.int64] | None
    active_counts: NDArray[np.int64]
    near_threshold: int
    type_map: bytes = b""
    active_bitmaps: tuple[bytes, ...] = ()
    contribution: ContributionResult | None = None


@dataclass(frozen=True)
class ComponentResult:
    """Types and contributions in one component, a `ThresholdResult` a threshold."""

    component: str
    layers: int
    neurons: int
    thresholds: tuple[ThresholdResult, ...]


@dataclass(frozen=True)
class RowPrediction:
    """What the model says after a prompt; the fields are those of the message of this name.

    Where `error` is not empty, all else is unset.
    """

    error: str = ""
    exact: bool | None = None
    gold_log_probability: float | None = None
    token_ids: tuple[int, ...] = ()
    text: str = ""
    matches: bool | None = None
    starts_with_answer: bool | None = None
    selected_neurons: int = 0
    selected_active_neurons: int = 0


@dataclass(frozen=True)
class VariantResult:
    """Predictions under one variant, one a row; the baseline's name is `BASELINE`."""

    name: str
    predictions: tuple[RowPrediction, ...]


@dataclass(frozen=True)
class GroupResult:
    """What came out for a group.

    Attributes:
        group_id: the group's id.
        rows: in the order of the group's rows.
        components: the neurons, a component each.
        variants: the baseline first; empty unless predictions were asked for.
        queue_time_ms: how long its rows waited for a batch, the longest chain of them.
        compute_time_ms: how long batches with its rows ran.
    """

    group_id: str
    rows: tuple[RowResult, ...]
    components: tuple[ComponentResult, ...]
    variants: tuple[VariantResult, ...]
    queue_time_ms: float
    compute_time_ms: float


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of one text: their ids, and how the vocabulary spells them."""

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
