"""Converts core types to response messages."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from neuroglot.v1 import model_pb2, result_pb2, service_pb2
from neuroglot_server import core
from neuroglot_server.core import limits

SERVER_VERSION = version("neuroglot")

_CHUNK = 2**14
"""How many numbers are added to a message at a time: other threads wait for the interpreter lock meanwhile."""


def model(
    description: core.ModelDescription, *, quota: core.Quota, request_bytes: int, result_bytes: int
) -> model_pb2.Model:
    """Convert a model's description, with the limits that apply to the caller.

    Args:
        description: the model.
        quota: the tenant's quota.
        request_bytes: maximum size of a request.
        result_bytes: maximum size of a result.
    """
    model_limits = description.limits
    return model_pb2.Model(
        name=description.name,
        family=description.family,
        source=description.source,
        source_revision=description.source_revision,
        bundle_identity=description.bundle_identity,
        components=[
            model_pb2.Component(
                name=component.name,
                layers=component.layers,
                neurons=component.neurons,
                hidden_size=component.hidden_size,
                activation_function=component.activation_function,
                gated=component.gated,
            )
            for component in description.components
        ],
        vocabulary_size=description.vocabulary_size,
        dtype=description.dtype,
        limits=model_pb2.Limits(
            tokens_per_row=model_limits.tokens_per_row,
            rows_per_group=model_limits.rows_per_group,
            variants_per_group=model_limits.variants_per_group,
            groups_in_flight=model_limits.groups_in_flight,
            queue_tokens=description.queue_tokens,
            result_bytes=result_bytes,
            tenant_queue_tokens=quota.queue_tokens or 0,
            tenant_tokens_per_minute=quota.tokens_per_minute or 0,
            tenant_calls=quota.calls or 0,
            request_bytes=request_bytes,
            request_fields=limits.FIELDS,
            text_bytes=model_limits.text_bytes,
            answers_per_row=limits.ANSWERS,
            choices_per_row=limits.CHOICES,
            answer_bytes=limits.ANSWER_BYTES,
            encoded_bytes_per_group=limits.ENCODED_BYTES,
            name_bytes=limits.NAME_BYTES,
            thresholds=limits.THRESHOLDS,
            selections=limits.SELECTIONS,
            selection_depth=limits.SELECTION_DEPTH,
            values_per_intervention=limits.VALUES,
            texts=limits.TEXTS,
            texts_bytes=limits.TEXTS_BYTES,
            token_ids=limits.TOKEN_IDS,
            layers=limits.LAYERS,
            neurons=limits.NEURONS,
            positions=limits.POSITIONS,
        ),
    )


def tokenized(text: core.TokenizedText) -> service_pb2.TokenizedText:
    """Convert the tokens of one text."""
    return service_pb2.TokenizedText(ids=text.ids, tokens=text.tokens)


def group_result(result: core.GroupResult, description: core.ModelDescription) -> result_pb2.GroupResult:
    """Convert the result of a group, with its provenance."""
    return result_pb2.GroupResult(
        group_id=result.group_id,
        rows=[
            result_pb2.RowResult(
                label=row.label,
                prompt_tokens=row.prompt_tokens,
                last_token_id=row.last_token_id,
                gold_token_ids=row.gold_token_ids,
                gold_is_joint=row.gold_is_joint,
                r_index=row.r_index,
            )
            for row in result.rows
        ],
        components=[_component(component) for component in result.components],
        variants=[
            result_pb2.VariantResult(
                name=variant.name, predictions=[_prediction(prediction) for prediction in variant.predictions]
            )
            for variant in result.variants
        ],
        provenance=provenance(description, result.queue_time_ms, result.compute_time_ms),
    )


def provenance(
    description: core.ModelDescription, queue_time_ms: float = 0, compute_time_ms: float = 0
) -> result_pb2.Provenance:
    """Return the provenance of a result.

    Args:
        description: the model.
        queue_time_ms: time in the queue; 0 in a stream of responses, which starts before it is known.
        compute_time_ms: time in batches; 0 likewise.
    """
    return result_pb2.Provenance(
        model=description.name,
        bundle_identity=description.bundle_identity,
        server_version=SERVER_VERSION,
        queue_time_ms=queue_time_ms,
        compute_time_ms=compute_time_ms,
        source=description.source,
    )


def captured_layer(
    layer: core.CapturedLayer, provenance: result_pb2.Provenance | None = None
) -> service_pb2.CaptureActivationsResponse:
    """Convert raw activations of one layer; the first response of a stream has the provenance."""
    return service_pb2.CaptureActivationsResponse(
        layer=layer.layer, positions=layer.positions.tolist(), values=_tensor(layer.values), provenance=provenance
    )


def generated_token(
    token: core.GeneratedToken, provenance: result_pb2.Provenance | None = None
) -> service_pb2.GenerateResponse:
    """Convert one generated token; the first response of a stream has the provenance."""
    return service_pb2.GenerateResponse(
        token_id=token.id, text=token.text, log_probability=token.log_probability, provenance=provenance
    )


def _tensor(values: NDArray[np.floating]) -> service_pb2.Tensor:
    little_endian = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return service_pb2.Tensor(shape=values.shape, dtype=values.dtype.name, data=little_endian.tobytes())


def _component(result: core.ComponentResult) -> result_pb2.ComponentResult:
    return result_pb2.ComponentResult(
        component=result.component,
        layers=result.layers,
        neurons=result.neurons,
        thresholds=[_threshold(threshold) for threshold in result.thresholds],
    )


def _threshold(result: core.ThresholdResult) -> result_pb2.ThresholdResult:
    return result_pb2.ThresholdResult(
        threshold=result.threshold,
        type_counts=None if result.type_counts is None else result.type_counts.ravel().tolist(),
        active_counts=result.active_counts.ravel().tolist(),
        near_threshold=result.near_threshold,
        type_map=result.type_map,
        active_bitmaps=result.active_bitmaps,
        contribution=None if result.contribution is None else _contribution(result.contribution),
        effective_score=None if result.effective_score is None else _effective_score(result.effective_score),
        dead_counts=None if result.dead_counts is None else result.dead_counts.ravel().tolist(),
        dead_bitmaps=result.dead_bitmaps,
    )


def _contribution(result: core.ContributionResult) -> result_pb2.ContributionResult:
    return result_pb2.ContributionResult(
        top_k=result.top_k,
        top_counts=result.top_counts.ravel().tolist(),
        sums=result.sums.ravel().tolist(),
        leading=None if result.leading is None else _leading(result.leading),
        top_bitmaps=result.top_bitmaps,
    )


def _effective_score(result: core.EffectiveScoreResult) -> result_pb2.EffectiveScoreResult:
    return result_pb2.EffectiveScoreResult(
        maxima=result.maxima.ravel().tolist(),
        minima=result.minima.ravel().tolist(),
        sums=result.sums.ravel().tolist(),
        leading=None if result.leading is None else _leading(result.leading),
    )


def _leading(result: core.LeadingNeurons) -> result_pb2.LeadingNeurons:
    message = result_pb2.LeadingNeurons(count=result.neurons.shape[-1], codes=result.codes.tobytes())
    neurons, values = result.neurons.ravel(), result.values.ravel()
    for start in range(0, len(neurons), _CHUNK):
        message.neurons.extend(neurons[start : start + _CHUNK].tolist())
        message.values.extend(values[start : start + _CHUNK].tolist())
    return message


def _prediction(prediction: core.RowPrediction) -> result_pb2.RowPrediction:
    return result_pb2.RowPrediction(
        error=prediction.error,
        exact=prediction.exact,
        gold_log_probability=prediction.gold_log_probability,
        token_ids=prediction.token_ids,
        text=prediction.text,
        matches=prediction.matches,
        starts_with_answer=prediction.starts_with_answer,
        selected_neurons=prediction.selected_neurons,
        selected_active_neurons=prediction.selected_active_neurons,
        choice_log_probabilities=prediction.choice_log_probabilities,
    )
