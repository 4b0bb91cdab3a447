"""What is sent: groups and what is wanted of them, as messages of the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from neuroglot.errors import InvalidSelectionError
from neuroglot.groups import Group
from neuroglot.interventions import Action, Add, Convert, Deactivate, Intervention, Override, Scale, Scope
from neuroglot.neurons import NeuronSet
from neuroglot.selections import ByType, Combination, Control, ControlKind, Selection, neuron_sets
from neuroglot.v1 import analysis_pb2, group_pb2, model_pb2

_SCOPES = {
    Scope.LAST_PROMPT_TOKEN: analysis_pb2.SCOPE_LAST_PROMPT_TOKEN,
    Scope.ALL_PROMPT_TOKENS: analysis_pb2.SCOPE_ALL_PROMPT_TOKENS,
    Scope.LAST_PROMPT_TOKEN_AND_GENERATED: analysis_pb2.SCOPE_LAST_PROMPT_TOKEN_AND_GENERATED,
    Scope.ALL_TOKENS: analysis_pb2.SCOPE_ALL_TOKENS,
}
_CONTROL_KINDS = {
    ControlKind.RANDOM: analysis_pb2.CONTROL_KIND_RANDOM,
    ControlKind.RANDOM_ACTIVE: analysis_pb2.CONTROL_KIND_RANDOM_ACTIVE,
}

Variants = Mapping[str, Intervention | Sequence[Intervention]]
"""Interventions by the name of the variant; several are applied together."""


def as_variants(variants: Variants) -> dict[str, tuple[Intervention, ...]]:
    """The variants that are meant, each with all its interventions.

    Raises:
        InvalidSelectionError: a variant without interventions, or with something else.
    """
    several = {
        name: (interventions,) if isinstance(interventions, Intervention) else interventions
        for name, interventions in variants.items()
    }
    for name, interventions in several.items():
        if (
            not isinstance(interventions, Sequence)
            or not interventions
            or not all(isinstance(intervention, Intervention) for intervention in interventions)
        ):
            raise InvalidSelectionError(
                f"variant {name!r} is {interventions!r}: give an intervention, `deactivate(ALL_SHARED)`, or several"
            )
    return {name: tuple(interventions) for name, interventions in several.items()}


@dataclass(frozen=True)
class Wanted:
    """What is wanted of every group; `Model.analyze` explains the fields.

    Raises:
        ValueError: a share of top contributors that is no share.
    """

    variants: Mapping[str, tuple[Intervention, ...]]
    thresholds: tuple[float, ...]
    type_map: bool
    active: bool
    contribution: bool | float
    predict: bool | None
    generate: bool
    max_tokens: int

    def __post_init__(self) -> None:
        """Refuse a share that the contract would read as something else (0 there is the default)."""
        if not isinstance(self.contribution, bool) and not 0 < self.contribution <= 1:
            raise ValueError(
                f"contribution={self.contribution!r} is no share of a layer's neurons: give a number above 0 and up to "
                "1, or True for the default"
            )

    def check_fits(self, model: model_pb2.Model) -> None:
        """Refuse neuron sets of another model before they cost a round trip.

        Raises:
            InvalidSelectionError: a set's component, geometry or source is not the model's.
        """
        for name, interventions in self.variants.items():
            for intervention in interventions:
                for neurons in neuron_sets(intervention.selection):
                    _check_fits(neurons, model, name)

    def message(self, group: Group) -> analysis_pb2.Analysis:
        """The message for a group; by default a group is predicted from if it has answers or there are variants."""
        predict = bool(group.answers or self.variants) if self.predict is None else self.predict
        contribution = None
        if self.contribution is not False:
            fraction = 0.0 if self.contribution is True else self.contribution
            contribution = analysis_pb2.Contribution(top_fraction=fraction)
        return analysis_pb2.Analysis(
            thresholds=self.thresholds,
            type_map=self.type_map,
            active_bitmaps=self.active,
            contribution=contribution,
            prediction=analysis_pb2.Prediction(generate=self.generate, max_tokens=self.max_tokens) if predict else None,
            variants=[
                analysis_pb2.Variant(name=name, interventions=map(intervention_message, interventions))
                for name, interventions in self.variants.items()
            ],
        )


def group_message(group: Group, group_id: str) -> group_pb2.Group:
    """A group under an id, as a message."""
    rows = [
        group_pb2.Row(
            label=language,
            text=prompt,
            answers=group.answers.get(language, ()),
            separator=group.separators[language],
        )
        for language, prompt in group.prompts.items()
    ]
    return group_pb2.Group(id=group_id, rows=rows)


def intervention_message(intervention: Intervention) -> analysis_pb2.Intervention:
    """An intervention as a message."""
    message = _action_message(intervention.action)
    message.selection.CopyFrom(_selection_message(intervention.selection))
    message.layers.extend(intervention.layers or ())
    message.component = intervention.component or ""
    message.scope = _SCOPES[intervention.scope]
    return message


def _action_message(action: Action) -> analysis_pb2.Intervention:
    """An intervention of which only the action is set."""
    match action:
        case Deactivate():
            return analysis_pb2.Intervention(deactivate=analysis_pb2.Deactivate())
        case Convert(value):
            return analysis_pb2.Intervention(convert=analysis_pb2.Convert(value=value))
        case Override(value):
            return analysis_pb2.Intervention(override=analysis_pb2.Override(value=value))
        case Scale(factor):
            return analysis_pb2.Intervention(scale=analysis_pb2.Scale(factor=factor))
        case Add(value):
            return analysis_pb2.Intervention(add=analysis_pb2.Add(value=value))
        case never:
            assert_never(never)


def _selection_message(selection: Selection) -> analysis_pb2.Selection:
    match selection:
        case ByType(types):
            names = [f"NEURON_TYPE_{neuron_type.name}" for neuron_type in types]
            return analysis_pb2.Selection(
                types=analysis_pb2.TypeSelection(types=map(analysis_pb2.NeuronType.Value, names))
            )
        case NeuronSet(component, layers, neurons, bits):
            return analysis_pb2.Selection(
                neurons=analysis_pb2.NeuronSet(component=component, layers=layers, neurons=neurons, bits=bits)
            )
        case Control(of, kind, draw, seed):
            return analysis_pb2.Selection(
                control=analysis_pb2.Control(of=_selection_message(of), kind=_CONTROL_KINDS[kind], draw=draw, seed=seed)
            )
        case Combination(operation, selections):
            parts = analysis_pb2.SelectionList(selections=map(_selection_message, selections))
            match operation:
                case "union":
                    return analysis_pb2.Selection(union=parts)
                case "intersection":
                    return analysis_pb2.Selection(intersection=parts)
                case "difference":
                    return analysis_pb2.Selection(difference=parts)
                case never_operation:
                    assert_never(never_operation)
        case never:
            assert_never(never)


def _check_fits(neurons: NeuronSet, model: model_pb2.Model, variant: str) -> None:
    geometries = {component.name: (component.layers, component.neurons) for component in model.components}
    geometry = geometries.get(neurons.component)
    if geometry != (neurons.layers, neurons.neurons) or neurons.source not in ("", model.source):
        components = ", ".join(f"{name} ({layers} x {width})" for name, (layers, width) in geometries.items())
        raise InvalidSelectionError(
            f"variant {variant!r} has {neurons!r}, and {model.name!r} is {model.source} with {components}: component, "
            "layers, neurons and source must be the same (`bound_to` moves a set to a model of the same geometry)"
        )
