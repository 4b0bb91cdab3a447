"""How large the answer to a request will be, before it is run."""

from __future__ import annotations

from neuroglot_server.core import Analysis, ComponentDescription, ModelDescription

_COUNT_BYTES = 3
"""Of a count or a neuron's index, which protobuf writes in as many bytes as it needs."""
_VALUE_BYTES = 4
_TYPES = 4
_PREDICTION_BYTES = 128
"""Of what is said of one row under one variant, its text apart."""
_TOKEN_BYTES = 12
"""Of a generated token: its id, and its share of the text."""


def result_bytes(model: ModelDescription, analysis: Analysis, rows: int) -> int:
    """About how many bytes the result of a group of so many rows takes up as a message."""
    of_components = sum(_component(component, analysis, rows) for component in model.components)
    prediction = analysis.prediction
    if prediction is None:
        return of_components
    tokens = prediction.max_tokens if prediction.generate else 0
    of_row = _PREDICTION_BYTES + tokens * _TOKEN_BYTES
    return of_components + (1 + len(analysis.variants)) * rows * of_row


def _component(component: ComponentDescription, analysis: Analysis, rows: int) -> int:
    """One component's part, all thresholds of it; which the top contributors are is sent with the first alone."""
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
