"""Messages of the contract: groups, options, interventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, assert_never

from neuroglot import arguments
from neuroglot.request.groups import Group, prompt_of
from neuroglot.request.interventions import (
    Action,
    Add,
    Convert,
    Deactivate,
    Intervention,
    Override,
    Scale,
    Scope,
)
from neuroglot.request.neurons import NeuronSet
from neuroglot.request.options import (
    AnalysisOptions,
    ContributionOptions,
    EffectiveScoreOptions,
    Priority,
    ScoreTarget,
)
from neuroglot.request.selections import (
    ByType,
    Combination,
    Control,
    ControlKind,
    Selection,
    TopContribution,
    Uploaded,
)
from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2

_SCOPES = {
    Scope.LAST_PROMPT_TOKEN: analysis_pb2.SCOPE_LAST_PROMPT_TOKEN,
    Scope.ALL_PROMPT_TOKENS: analysis_pb2.SCOPE_ALL_PROMPT_TOKENS,
    Scope.LAST_PROMPT_TOKEN_AND_GENERATED: analysis_pb2.SCOPE_LAST_PROMPT_TOKEN_AND_GENERATED,
    Scope.ALL_TOKENS: analysis_pb2.SCOPE_ALL_TOKENS,
}
_CONTROL_KINDS = {
    ControlKind.RANDOM: analysis_pb2.CONTROL_KIND_RANDOM,
    ControlKind.RANDOM_ACTIVE: analysis_pb2.CONTROL_KIND_RANDOM_ACTIVE,
    ControlKind.RANDOM_MASS: analysis_pb2.CONTROL_KIND_RANDOM_MASS,
}

_SCORE_TARGETS = {
    ScoreTarget.FIRST_GOLD_TOKEN: analysis_pb2.SCORE_TARGET_FIRST_GOLD_TOKEN,
    ScoreTarget.ALL_GOLD_TOKENS: analysis_pb2.SCORE_TARGET_ALL_GOLD_TOKENS,
    ScoreTarget.GOLD_MINUS_DISTRACTOR: analysis_pb2.SCORE_TARGET_GOLD_MINUS_DISTRACTOR,
}
_PRIORITIES = {
    Priority.BULK: service_pb2.PRIORITY_BULK,
    Priority.INTERACTIVE: service_pb2.PRIORITY_INTERACTIVE,
}


class _PromptField(TypedDict, total=False):
    """The field of a row that holds its prompt."""

    text: str
    token_ids: group_pb2.TokenIds


def analysis_message(options: AnalysisOptions, *, predict: bool) -> analysis_pb2.Analysis:
    """The options as a message, with predictions or without."""
    contribution, score = options.contribution_options, options.effective_score_options
    return analysis_pb2.Analysis(
        thresholds=options.thresholds,
        type_map=options.type_map,
        active_bitmaps=options.active,
        contribution=_contribution_message(contribution) if contribution else None,
        effective_score=_score_message(score) if score else None,
        dead=options.dead,
        prediction=analysis_pb2.Prediction(generate=options.generate, max_tokens=options.max_tokens)
        if predict
        else None,
        variants=[
            analysis_pb2.Variant(name=name, interventions=map(intervention_message, interventions))
            for name, interventions in options.interventions.items()
        ],
    )


def _contribution_message(options: ContributionOptions) -> analysis_pb2.Contribution:
    return analysis_pb2.Contribution(
        top_fraction=options.top_fraction if options.top_count is None else 0,
        top_k=options.top_count or 0,
        raw=options.raw,
        neurons=options.leading,
    )


def _score_message(options: EffectiveScoreOptions) -> analysis_pb2.EffectiveScore:
    return analysis_pb2.EffectiveScore(target=_SCORE_TARGETS[ScoreTarget(options.target)], neurons=options.leading)


def priority_message(priority: Priority | str | None) -> service_pb2.Priority.ValueType:
    """How urgent a request is; None leaves it to the method.

    Raises:
        ValueError: an unknown priority.
    """
    if priority is None:
        return service_pb2.PRIORITY_UNSPECIFIED
    return _PRIORITIES[arguments.member(Priority, "priority", priority)]


def group_message(group: Group, group_id: str) -> group_pb2.Group:
    """A group under an id, as a message."""
    rows = [
        group_pb2.Row(
            label=language,
            **_prompt_field(prompt),
            answers=group.answers.get(language, ()),
            separator=group.separators[language],
            choices=group.choices.get(language, ()),
            distractor=group.distractors.get(language, ""),
        )
        for language, prompt in group.prompts.items()
    ]
    return group_pb2.Group(id=group_id, rows=rows)


def row_message(prompt: str | Sequence[int]) -> group_pb2.Row:
    """A prompt by itself, text or token ids, as a message.

    Raises:
        InvalidGroupError: it is neither, or empty.
    """
    return group_pb2.Row(label="prompt", **_prompt_field(prompt_of("the prompt", prompt)))


def _prompt_field(prompt: str | Sequence[int]) -> _PromptField:
    return {"text": prompt} if isinstance(prompt, str) else {"token_ids": group_pb2.TokenIds(ids=prompt)}


def neuron_set_message(neurons: NeuronSet) -> analysis_pb2.NeuronSet:
    """A neuron set as a message."""
    return analysis_pb2.NeuronSet(
        component=neurons.component, layers=neurons.layers, neurons=neurons.neurons, bits=neurons.bits
    )


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
        case Convert(value, mean_of_active):
            return analysis_pb2.Intervention(
                convert=analysis_pb2.Convert(value=value, mean_of_active=mean_of_active),
            )
        case Override(value, values):
            return analysis_pb2.Intervention(override=analysis_pb2.Override(value=value, values=values))
        case Scale(factor, values):
            return analysis_pb2.Intervention(scale=analysis_pb2.Scale(factor=factor, values=values))
        case Add(value, values):
            return analysis_pb2.Intervention(add=analysis_pb2.Add(value=value, values=values))
        case never:
            assert_never(never)


def _selection_message(selection: Selection) -> analysis_pb2.Selection:
    match selection:
        case ByType(types):
            names = [f"NEURON_TYPE_{neuron_type.name}" for neuron_type in types]
            return analysis_pb2.Selection(
                types=analysis_pb2.TypeSelection(types=map(analysis_pb2.NeuronType.Value, names))
            )
        case NeuronSet():
            return analysis_pb2.Selection(neurons=neuron_set_message(selection))
        case Uploaded(name):
            return analysis_pb2.Selection(uploaded=name)
        case TopContribution(fraction, count):
            return analysis_pb2.Selection(
                top_contribution=analysis_pb2.TopContribution(fraction=fraction or 0, top_k=count or 0)
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
