"""Converts request messages, already checked by `wire.check`, to core types."""

from __future__ import annotations

from collections.abc import Iterable

from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2
from neuroglot_server import core

_NEURON_TYPES = {
    analysis_pb2.NEURON_TYPE_NON_ACTIVATED: core.NeuronType.NON_ACTIVATED,
    analysis_pb2.NEURON_TYPE_SPECIFIC: core.NeuronType.SPECIFIC,
    analysis_pb2.NEURON_TYPE_PARTIAL_SHARED: core.NeuronType.PARTIAL_SHARED,
    analysis_pb2.NEURON_TYPE_ALL_SHARED: core.NeuronType.ALL_SHARED,
}
_CONTROL_KINDS = {
    analysis_pb2.CONTROL_KIND_RANDOM: core.ControlKind.RANDOM,
    analysis_pb2.CONTROL_KIND_RANDOM_ACTIVE: core.ControlKind.RANDOM_ACTIVE,
    analysis_pb2.CONTROL_KIND_RANDOM_MASS: core.ControlKind.RANDOM_MASS,
}
_SCORE_TARGETS = {
    analysis_pb2.SCORE_TARGET_UNSPECIFIED: core.ScoreTarget.FIRST_GOLD_TOKEN,
    analysis_pb2.SCORE_TARGET_FIRST_GOLD_TOKEN: core.ScoreTarget.FIRST_GOLD_TOKEN,
    analysis_pb2.SCORE_TARGET_ALL_GOLD_TOKENS: core.ScoreTarget.ALL_GOLD_TOKENS,
    analysis_pb2.SCORE_TARGET_GOLD_MINUS_DISTRACTOR: core.ScoreTarget.GOLD_MINUS_DISTRACTOR,
}
_PRIORITIES = {
    service_pb2.PRIORITY_BULK: core.Priority.BULK,
    service_pb2.PRIORITY_INTERACTIVE: core.Priority.INTERACTIVE,
}
_SCOPES = {
    analysis_pb2.SCOPE_UNSPECIFIED: core.Scope.LAST_PROMPT_TOKEN,
    analysis_pb2.SCOPE_LAST_PROMPT_TOKEN: core.Scope.LAST_PROMPT_TOKEN,
    analysis_pb2.SCOPE_ALL_PROMPT_TOKENS: core.Scope.ALL_PROMPT_TOKENS,
    analysis_pb2.SCOPE_LAST_PROMPT_TOKEN_AND_GENERATED: core.Scope.LAST_PROMPT_TOKEN_AND_GENERATED,
    analysis_pb2.SCOPE_ALL_TOKENS: core.Scope.ALL_TOKENS,
}


def priority(message: service_pb2.Priority.ValueType, unspecified: core.Priority) -> core.Priority:
    """Convert a priority; `unspecified` is the method's default."""
    return _PRIORITIES.get(message, unspecified)


def group(message: group_pb2.Group) -> core.Group:
    """Convert a group, with its rows in order."""
    return core.Group(message.id, tuple(row(item) for item in message.rows))


def row(message: group_pb2.Row) -> core.Row:
    """Convert a row: one prompt and its answers."""
    return core.Row(
        label=message.label,
        prompt=message.text if message.WhichOneof("prompt") == "text" else tuple(message.token_ids.ids),
        answers=tuple(message.answers),
        separator=message.separator if message.HasField("separator") else None,
        choices=tuple(message.choices),
        distractor=message.distractor,
    )


def analysis(message: analysis_pb2.Analysis) -> core.Analysis:
    """Convert an analysis; a 0 that stands for a default in the contract becomes the default."""
    return core.Analysis(
        thresholds=tuple(message.thresholds) or core.Analysis.thresholds,
        type_map=message.type_map,
        active_bitmaps=message.active_bitmaps,
        contribution=_contribution(message.contribution) if message.HasField("contribution") else None,
        effective_score=_effective_score(message.effective_score) if message.HasField("effective_score") else None,
        dead=message.dead,
        prediction=_prediction(message.prediction) if message.HasField("prediction") else None,
        variants=tuple(
            core.Variant(variant.name, interventions(variant.interventions)) for variant in message.variants
        ),
    )


def interventions(messages: Iterable[analysis_pb2.Intervention]) -> tuple[core.Intervention, ...]:
    """Convert the interventions of one variant, in order."""
    return tuple(_intervention(message) for message in messages)


def neurons(message: analysis_pb2.NeuronSet) -> core.ByNeuron:
    """Convert an explicit set of neurons of one component."""
    return core.ByNeuron(message.component, message.layers, message.neurons, message.bits)


def capture(message: service_pb2.CaptureActivationsRequest) -> core.Capture:
    """Convert the selection of raw activations; the row itself is converted by `row`."""
    return core.Capture(
        component=message.component,
        layers=tuple(message.layers),
        neurons=tuple(message.neurons),
        positions=tuple(message.positions),
        coefficients=message.coefficients,
    )


def _contribution(message: analysis_pb2.Contribution) -> core.Contribution:
    return core.Contribution(
        top_fraction=message.top_fraction or core.Contribution.top_fraction,
        top_k=message.top_k,
        raw=message.raw,
        neurons=message.neurons,
    )


def _effective_score(message: analysis_pb2.EffectiveScore) -> core.EffectiveScore:
    return core.EffectiveScore(_SCORE_TARGETS[message.target], message.neurons)


def _prediction(message: analysis_pb2.Prediction) -> core.Prediction:
    return core.Prediction(message.generate, message.max_tokens or core.Prediction.max_tokens)


def _intervention(message: analysis_pb2.Intervention) -> core.Intervention:
    return core.Intervention(
        selection=_selection(message.selection),
        action=_action(message),
        layers=tuple(message.layers),
        component=message.component,
        scope=_SCOPES[message.scope],
    )


def _action(message: analysis_pb2.Intervention) -> core.Action:
    match message.WhichOneof("action"):
        case "deactivate":
            return core.Deactivate()
        case "convert":
            value = message.convert.value if message.convert.HasField("value") else None
            return core.Convert(value, message.convert.mean_of_active)
        case "override":
            return core.Override(message.override.value, tuple(message.override.values) or None)
        case "scale":
            return core.Scale(message.scale.factor, tuple(message.scale.values) or None)
        case "add":
            return core.Add(message.add.value, tuple(message.add.values) or None)
    raise AssertionError("wire.check refuses an intervention without an action of the contract")


def _selection(message: analysis_pb2.Selection) -> core.Selection:
    match message.WhichOneof("by"):
        case "types":
            return core.ByType(tuple(_NEURON_TYPES[neuron_type] for neuron_type in message.types.types))
        case "neurons":
            return neurons(message.neurons)
        case "uploaded":
            return core.ByUpload(message.uploaded)
        case "top_contribution":
            top = message.top_contribution
            return core.ByContribution(top.fraction or core.ByContribution.top_fraction, top.top_k)
        case "control":
            control = message.control
            return core.Control(_selection(control.of), _CONTROL_KINDS[control.kind], control.draw, control.seed)
        case "union":
            return core.Union(_selections(message.union.selections))
        case "intersection":
            return core.Intersection(_selections(message.intersection.selections))
        case "difference":
            return core.Difference(_selections(message.difference.selections))
    raise AssertionError("wire.check refuses a selection without a choice of the contract")


def _selections(messages: Iterable[analysis_pb2.Selection]) -> tuple[core.Selection, ...]:
    return tuple(_selection(message) for message in messages)
