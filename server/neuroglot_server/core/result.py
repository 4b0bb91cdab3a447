"""Results of requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BASELINE = "baseline"
"""Name of the variant without interventions."""


class RowResult(NamedTuple):
    """The tokens of a row as they were run; see `neuroglot.definitions.gold` for the gold tokens."""

    label: str
    prompt_tokens: int
    last_token_id: int
    gold_token_ids: tuple[int, ...]
    gold_is_joint: bool
    r_index: int = 0


@dataclass(frozen=True, eq=False)
class LeadingNeurons:
    """The neurons with the largest values of each row and layer, in descending order.

    Attributes:
        neurons: int64 `[rows, layers, k]`.
        values: float32, of the same shape.
        codes: type codes of the neurons, uint8, of the same shape.
    """

    neurons: NDArray[np.int64]
    values: NDArray[np.float32]
    codes: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ContributionResult:
    """Contributions by type.

    Attributes:
        top_k: number of top contributors per layer.
        top_counts: number of top contributors of each type, int64 `[rows, layers, 4]`.
        sums: sum of the contributions of each type, float32 `[rows, layers, 4]`.
        leading: the largest contributors; None unless requested.
        top_bitmaps: packed top contributors of each row; empty unless `active_bitmaps` are requested. Set for the first
            threshold only, because they do not depend on the threshold.
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
        sums: likewise; the mean is the sum divided by the type's count.
        leading: the neurons with the highest scores; None unless requested.
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
        type_counts: number of neurons of each type, int64 `[layers, 4]`; None if the group has one row.
        active_counts: number of active neurons, int64 `[layers, rows]`.
        near_threshold: number of activations within 1e-5 of the threshold, over all layers and rows; at threshold 0
            only those above it.
        type_map: packed type codes, 2 bits per neuron; empty unless requested.
        active_bitmaps: packed active neurons of each row; empty unless requested.
        contribution: contributions; None unless requested, and if the group has one row.
        effective_score: effective scores; None unless requested, if the group has one row, and for an encoder, whose
            neurons do not write to the decoder's residual stream.
        dead_counts: number of neurons inactive at every position of the row's prompt, int64
            `[layers, rows]`; None unless requested.
        dead_bitmaps: packed dead neurons of each row; empty unless `dead` and `active_bitmaps` are requested.
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
    """Types, contributions and scores in one component, one `ThresholdResult` per threshold."""

    component: str
    layers: int
    neurons: int
    thresholds: tuple[ThresholdResult, ...]


@dataclass(frozen=True)
class RowPrediction:
    """The model's prediction after a prompt; the fields are those of the message of this name.

    If `error` is not empty, all other fields are unset.
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
    """Predictions under one variant, one per row; the baseline's name is `BASELINE`."""

    name: str
    predictions: tuple[RowPrediction, ...]


@dataclass(frozen=True)
class GroupResult:
    """The result of a group.

    Attributes:
        group_id: the group's id.
        rows: in the order of the group's rows.
        components: types, contributions and scores, one result per component.
        variants: predictions, the baseline first; empty unless requested.
        queue_time_ms: time for which its rows waited for batches, along the longest chain of dependent steps.
        compute_time_ms: run time of the batches with its rows.
    """

    group_id: str
    rows: tuple[RowResult, ...]
    components: tuple[ComponentResult, ...]
    variants: tuple[VariantResult, ...]
    queue_time_ms: float
    compute_time_ms: float


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of one text: their ids, and their strings in the vocabulary."""

    ids: tuple[int, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class CapturedLayer:
    """Raw activations of one layer of one row.

    Attributes:
        layer: index of the layer.
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
        id: token id.
        text: text that the token adds; may be empty if a character needs more than one token.
        log_probability: log-probability in nats.
    """

    id: int
    text: str
    log_probability: float
