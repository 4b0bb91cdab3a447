"""From messages that `wire.check` let pass to the core's words."""

from __future__ import annotations

from collections.abc import Iterable

from neuroglot.v1 import analysis_pb2, group_pb2
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
}
_SCOPES = {
    analysis_pb2.SCOPE_UNSPECIFIED: core.Scope.LAST_PROMPT_TOKEN,
    analysis_pb2.SCOPE_LAST_PROMPT_TOKEN: core.Scope.LAST_PROMPT_TOKEN,
    analysis_pb2.SCOPE_ALL_PROMPT_TOKENS: core.Scope.ALL_PROMPT_TOKENS,
    analysis_pb2.SCOPE_LAST_PROMPT_TOKEN_AND_GENERATED: core.Scope.LAST_PROMPT_TOKEN_AND_GENERATED,
    analysis_pb2.SCOPE_ALL_TOKENS: core.Scope.ALL_TOKENS,
}


def group(message: group_pb2.Group) -> core.Group:
    """A group, with its rows in their order."""
    return core.Group(message.id, tuple(_row(row) for row in message.rows))


def analysis(message: analysis_pb2.Analysis) -> core.Analysis:
    """An analysis; numbers that are 0 where the contract gives 0 another meaning become that."""
    return core.Analysis(
        thresholds=tuple(message.thresholds) or core.Analysis.thresholds,
        type_map=message.type_map,
        active_bitmaps=message.active_bitmaps,
        contribution=_contribution(message.contribution) if message.HasField("contribution") else None,
        prediction=_prediction(message.prediction) if message.HasField("prediction") else None,
        variants=tuple(
            core.Variant(variant.name, tuple(_intervention(intervention) for intervention in variant.interventions))
            for variant in message.variants
        ),
    )


def _row(message: group_pb2.Row) -> core.Row:
    return core.Row(
        label=message.label,
        prompt=message.text if message.WhichOneof("prompt") == "text" else tuple(message.token_ids.ids),
        answers=tuple(message.answers),
        separator=message.separator if message.HasField("separator") else None,
    )


def _contribution(message: analysis_pb2.Contribution) -> core.Contribution:
    return core.Contribution(message.top_fraction or core.Contribution.top_fraction)


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
            return core.Convert(message.convert.value if message.convert.HasField("value") else None)
        case "override":
            return core.Override(message.override.value)
        case "scale":
            return core.Scale(message.scale.factor)
        case "add":
            return core.Add(message.add.value)
    raise AssertionError("wire.check lets no intervention pass without an action that the contract has")


def _selection(message: analysis_pb2.Selection) -> core.Selection:
    match message.WhichOneof("by"):
        case "types":
            return core.ByType(tuple(_NEURON_TYPES[neuron_type] for neuron_type in message.types.types))
        case "neurons":
            chosen = message.neurons
            return core.ByNeuron(chosen.component, chosen.layers, chosen.neurons, chosen.bits)
        case "control":
            control = message.control
            return core.Control(_selection(control.of), _CONTROL_KINDS[control.kind], control.draw, control.seed)
        case "union":
            return core.Union(_selections(message.union.selections))
        case "intersection":
            return core.Intersection(_selections(message.intersection.selections))
        case "difference":
            return core.Difference(_selections(message.difference.selections))
    raise AssertionError("wire.check lets no selection pass without a choice that the contract has")


def _selections(messages: Iterable[analysis_pb2.Selection]) -> tuple[core.Selection, ...]:
    return tuple(_selection(message) for message in messages)
