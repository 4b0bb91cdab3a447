"""Estimates the size of a result before it is computed."""

from __future__ import annotations

from neuroglot_server.core import Analysis, ComponentDescription, ModelDescription

_COUNT_BYTES = 3
"""Typical size of a count or a neuron's index, which protobuf writes as a varint."""
_VALUE_BYTES = 4
_TYPES = 4
_PREDICTION_BYTES = 128
"""Size of the prediction of one row under one variant, without its text."""
_TOKEN_BYTES = 12
"""Size of a generated token: its id, and its share of the text."""


def result_bytes(model: ModelDescription, analysis: Analysis, rows: int) -> int:
    """Estimate the size of a group's result as a message, in bytes.

    Args:
        model: the model.
        analysis: what is computed.
        rows: number of rows of the group.
    """
    components = sum(_component(component, analysis, rows) for component in model.components)
    prediction = analysis.prediction
    if prediction is None:
        return components
    tokens = prediction.max_tokens if prediction.generate else 0
    row_run = _PREDICTION_BYTES + tokens * _TOKEN_BYTES
    return components + (1 + len(analysis.variants)) * rows * row_run


def _component(component: ComponentDescription, analysis: Analysis, rows: int) -> int:
    """Estimate one component's part over all thresholds; only the first has the bitmaps of the top contributors."""
    layers, neurons = component.layers, component.neurons
    bitmaps = rows * layers * -(-neurons // 8)
    size = layers * (_TYPES + rows) * _COUNT_BYTES
    if analysis.type_map:
        size += layers * -(-neurons // 4)
    if analysis.active_bitmaps:
        size += bitmaps
    if analysis.dead:
        size += layers * rows * _COUNT_BYTES + (bitmaps if analysis.active_bitmaps else 0)
    by_type = rows * layers * _TYPES
    leading = rows * layers * (_COUNT_BYTES + _VALUE_BYTES + 1)
    if (contribution := analysis.contribution) is not None:
        size += by_type * (_COUNT_BYTES + _VALUE_BYTES) + leading * contribution.neurons
    if (score := analysis.effective_score) is not None:
        size += by_type * 3 * _VALUE_BYTES + leading * score.neurons
    top = bitmaps if analysis.active_bitmaps and contribution is not None else 0
    return size * len(analysis.thresholds) + top
