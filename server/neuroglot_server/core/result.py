"""What an answer holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BASELINE = "baseline"
"""The name under which the results of the run without interventions come back."""


class RowResult(NamedTuple):
    """What was run for a row; see `neuroglot.definitions.gold` for all that concerns the gold tokens."""

    label: str
    prompt_tokens: int
    last_token_id: int
    gold_token_ids: tuple[int, ...]
    gold_is_joint: bool
    r_index: int = 0


@dataclass(frozen=True, eq=False)
class LeadingNeurons:
    """The neurons of the largest values of each row and layer, the largest first.

    Attributes:
        neurons: int64 `[rows, layers, k]`.
        values: float32, of the same shape.
        codes: the neurons' types, uint8, of the same shape.
    """

    neurons: NDArray[np.int64]
    values: NDArray[np.float32]
    codes: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ContributionResult:
    """Contributions by type.

    Attributes:
        top_k: how many neurons of a layer count as top contributors.
        top_counts: top contributors of each type, int64 `[rows, layers, 4]`.
        sums: sum of the contributions of each type, float32 `[rows, layers, 4]`.
        leading: the largest contributors; None unless asked for.
        top_bitmaps: packed top contributors of each row; empty unless `active_bitmaps` are asked for, and with all
            thresholds but the first, for none changes them.
    """

    top_k: int
    top_counts: NDArray[np.int64]
    sums: NDArray[np.float32]
    leading: LeadingNeurons | None = None
    top_bitmaps: tuple[bytes, ...] = ()


@dataclass(frozen=True, eq=False)
class EffectiveScoreResult:
    """Effective scores by type; a type without neurons has 0 everywhere.

    Attributes:
        maxima: float32 `[rows, layers, 4]`; rows without an answer are NaN, here and below.
        minima: likewise.
        sums: likewise; the mean is the sum by the type's count.
        leading: the neurons of the highest scores; None unless asked for.
    """

    maxima: NDArray[np.float32]
    minima: NDArray[np.float32]
    sums: NDArray[np.float32]
    leading: LeadingNeurons | None = None


@dataclass(frozen=True, eq=False)
class ThresholdResult:
    """Types at one threshold.

    Attributes:
        threshold: the threshold.
        type_counts: neurons of each type, int64 `[layers, 4]`; None where the group has one row.
        active_counts: active neurons, int64 `[layers, rows]`.
        near_threshold: activations within 1e-5 of the threshold, at 0 only those above it, over all layers and rows.
        type_map: packed type codes, 2 bits a neuron; empty unless asked for.
        active_bitmaps: packed active neurons of each row; empty unless asked for.
        contribution: None unless asked for, and where the group has one row.
        effective_score: likewise, and for an encoder, which does not write to where tokens are told apart.
        dead_counts: neurons inactive at every position of the row's prompt, int64 `[layers, rows]`; None unless asked
            for.
        dead_bitmaps: which those are, packed, one a row; empty unless `dead` and `active_bitmaps` are asked for.
    """

    threshold: float
    type_counts: NDArray[np.int64] | None
    active_counts: NDArray[np.int64]
    near_threshold: int
    type_map: bytes = b""
    active_bitmaps: tuple[bytes, ...] = ()
    contribution: ContributionResult | None = None
    effective_score: EffectiveScoreResult | None = None
    dead_counts: NDArray[np.int64] | None = None
    dead_bitmaps: tuple[bytes, ...] = ()


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
    choice_log_probabilities: tuple[float, ...] = ()


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


@dataclass(frozen=True, eq=False)
class CapturedLayer:
    """Raw activations of one layer of one row.

    Attributes:
        layer: the layer.
        positions: the positions, counted from the prompt's first token, `[positions]`.
        values: in the model's dtype, `[positions, neurons]`.
    """

    layer: int
    positions: NDArray[np.int64]
    values: NDArray[np.floating]


@dataclass(frozen=True)
class GeneratedToken:
    """One token of a generation.

    Attributes:
        id: the token.
        text: what it adds to the text so far; may be empty where a character needs more than one token.
        log_probability: in nats.
    """

    id: int
    text: str
    log_probability: float
