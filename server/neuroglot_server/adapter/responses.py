"""From the core's words to messages."""

from __future__ import annotations

from importlib.metadata import version

from neuroglot.v1 import model_pb2, result_pb2, service_pb2
from neuroglot_server import core

SERVER_VERSION = version("neuroglot")


def model(description: core.ModelDescription) -> model_pb2.Model:
    """A model as it is served."""
    limits = description.limits
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
            tokens_per_row=limits.tokens_per_row,
            rows_per_group=limits.rows_per_group,
            variants_per_group=limits.variants_per_group,
            groups_in_flight=limits.groups_in_flight,
        ),
    )


def tokenized(text: core.TokenizedText) -> service_pb2.TokenizedText:
    """The tokens of one text."""
    return service_pb2.TokenizedText(ids=text.ids, tokens=text.tokens)


def group_result(result: core.GroupResult, description: core.ModelDescription) -> result_pb2.GroupResult:
    """What came out for a group, and what made it."""
    return result_pb2.GroupResult(
        group_id=result.group_id,
        rows=[
            result_pb2.RowResult(
                label=row.label,
                prompt_tokens=row.prompt_tokens,
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
        provenance=result_pb2.Provenance(
            model=description.name,
            bundle_identity=description.bundle_identity,
            server_version=SERVER_VERSION,
            queue_time_ms=result.queue_time_ms,
            compute_time_ms=result.compute_time_ms,
            source=description.source,
        ),
    )


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
    )


def _contribution(result: core.ContributionResult) -> result_pb2.ContributionResult:
    return result_pb2.ContributionResult(
        top_k=result.top_k, top_counts=result.top_counts.ravel().tolist(), sums=result.sums.ravel().tolist()
    )


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
    )
