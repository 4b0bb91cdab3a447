"""What a request must be before any of it runs; everything that is wrong is named at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import numpy as np

from neuroglot.errors import Violation
from neuroglot.packing import unpack_bits
from neuroglot_server.core import (
    BASELINE,
    Action,
    Add,
    Analysis,
    ByNeuron,
    ByType,
    Control,
    Convert,
    Deactivate,
    Difference,
    Group,
    Intersection,
    Intervention,
    InvalidRequest,
    ModelDescription,
    Override,
    Row,
    Scale,
    Selection,
    Union,
    Variant,
)
from neuroglot_server.kernels.scoring import normalised

MOST_THRESHOLDS = 32
MOST_VIOLATIONS = 50
MOST_SELECTIONS = 1024
"""Most selections in all variants of a request, those inside others included."""

_SEPARATORS = ("", " ")


def check(group: Group, analysis: Analysis, model: ModelDescription) -> None:
    """Refuse what the model could not run.

    Raises:
        InvalidRequest: names every field that is wrong, up to `MOST_VIOLATIONS`.
    """
    refuse(chain(_group(group, model), _analysis(analysis, model, len(group.rows))))


def refuse(violations: Iterable[Violation]) -> None:
    """Raise `InvalidRequest` if there are any."""
    found = list(islice(violations, MOST_VIOLATIONS))
    if found:
        raise InvalidRequest(found)


def _group(group: Group, model: ModelDescription) -> Iterator[Violation]:
    most = model.limits.rows_per_group
    if not 1 <= len(group.rows) <= most:
        yield Violation("group.rows", f"has {len(group.rows)} rows, expected 1 to {most}: give one row a language")
        return
    first_of: dict[str, int] = {}
    for index, row in enumerate(group.rows):
        path = f"group.rows[{index}]"
        if not row.label:
            yield Violation(f"{path}.label", "is empty, expected a name, by convention the language: 'en'")
        elif row.label in first_of:
            yield Violation(
                f"{path}.label",
                f"is {row.label!r}, which is the label of rows[{first_of[row.label]}] too: give every row its own",
            )
        first_of.setdefault(row.label, index)
        yield from _row(row, path, model)


def _row(row: Row, path: str, model: ModelDescription) -> Iterator[Violation]:
    if not row.prompt:
        field = "text" if isinstance(row.prompt, str) else "token_ids.ids"
        yield Violation(f"{path}.{field}", "is empty, expected a prompt of at least one token")
    elif not isinstance(row.prompt, str):
        for place, token in enumerate(row.prompt):
            if not 0 <= token < model.vocabulary_size:
                yield Violation(
                    f"{path}.token_ids.ids[{place}]",
                    f"is {token}, expected a token of {model.name!r}: 0 to {model.vocabulary_size - 1}",
                )
    for place, answer in enumerate(row.answers):
        if not normalised(answer):
            yield Violation(
                f"{path}.answers[{place}]",
                f"is {answer!r}, which has nothing to compare with: give a word or leave it out",
            )
    if row.separator is not None and row.separator not in _SEPARATORS:
        yield Violation(f"{path}.separator", f"is {row.separator!r}, expected ' ' or '', or none for the default")


def _analysis(analysis: Analysis, model: ModelDescription, rows: int) -> Iterator[Violation]:
    if not 1 <= len(analysis.thresholds) <= MOST_THRESHOLDS:
        yield Violation(
            "analysis.thresholds", f"has {len(analysis.thresholds)} thresholds, expected 1 to {MOST_THRESHOLDS}"
        )
    for index, threshold in enumerate(analysis.thresholds):
        yield from _finite(f"analysis.thresholds[{index}]", threshold, model)
    if analysis.contribution is not None and not 0 < analysis.contribution.top_fraction <= 1:
        yield Violation(
            "analysis.contribution.top_fraction",
            f"is {analysis.contribution.top_fraction:g}, expected more than 0 and at most 1",
        )
    if analysis.prediction is not None and analysis.prediction.max_tokens < 1:
        yield Violation("analysis.prediction.max_tokens", "is less than 1, expected at least one token to generate")
    yield from _variants(analysis, model, rows)


def _variants(analysis: Analysis, model: ModelDescription, rows: int) -> Iterator[Violation]:
    variants = analysis.variants
    most = model.limits.variants_per_group
    if len(variants) > most:
        yield Violation("analysis.variants", f"has {len(variants)} variants, expected at most {most}: send fewer")
        return
    if variants and analysis.prediction is None:
        yield Violation(
            "analysis.prediction", "is missing, and variants are compared by their predictions: ask for predictions"
        )
    selections = sum(_size(part.selection) for variant in variants for part in variant.interventions)
    if selections > MOST_SELECTIONS:
        yield Violation(
            "analysis.variants", f"has {selections} selections, expected at most {MOST_SELECTIONS}: send fewer"
        )
        return
    first_of: dict[str, int] = {}
    for index, variant in enumerate(variants):
        path = f"analysis.variants[{index}]"
        if not variant.name:
            yield Violation(f"{path}.name", "is empty, expected a name for the results of this variant")
        elif variant.name == BASELINE:
            yield Violation(f"{path}.name", f"is {BASELINE!r}, which is the run without interventions: choose another")
        elif variant.name in first_of:
            yield Violation(
                f"{path}.name",
                f"is {variant.name!r}, which is the name of variants[{first_of[variant.name]}] too: choose another",
            )
        first_of.setdefault(variant.name, index)
        yield from _variant(variant, path, model, rows)


def _variant(variant: Variant, path: str, model: ModelDescription, rows: int) -> Iterator[Violation]:
    if not variant.interventions:
        yield Violation(
            f"{path}.interventions", "is empty, which is the baseline, and that always runs: leave this variant out"
        )
    for index, intervention in enumerate(variant.interventions):
        yield from _intervention(intervention, f"{path}.interventions[{index}]", model, rows)


def _intervention(intervention: Intervention, path: str, model: ModelDescription, rows: int) -> Iterator[Violation]:
    yield from _action(intervention.action, path, model)
    yield from _selection(intervention.selection, f"{path}.selection", model, rows)
    components = [component for component in model.components if intervention.component in ("", component.name)]
    if not components:
        yield _no_component(f"{path}.component", intervention.component, model)
        return
    layers = max(component.layers for component in components)
    wrong = ((place, layer) for place, layer in enumerate(intervention.layers) if not 0 <= layer < layers)
    for place, layer in wrong:
        yield Violation(
            f"{path}.layers[{place}]",
            f"is {layer}, expected a layer of {model.name!r}: it has {layers} (0 to {layers - 1})",
        )


def _no_component(path: str, given: str, model: ModelDescription) -> Violation:
    names = ", ".join(component.name for component in model.components)
    return Violation(path, f"is {given!r}, expected a component of {model.name!r}: {names}")


def _action(action: Action, path: str, model: ModelDescription) -> Iterator[Violation]:
    match action:
        case Override(value):
            yield from _finite(f"{path}.override.value", value, model)
        case Scale(factor):
            yield from _finite(f"{path}.scale.factor", factor, model)
        case Add(value):
            yield from _finite(f"{path}.add.value", value, model)
        case Convert(value) if value is not None:
            yield from _finite(f"{path}.convert.value", value, model)
        case Convert() | Deactivate():
            return


def _finite(path: str, value: float, model: ModelDescription) -> Iterator[Violation]:
    most = float(np.finfo(np.dtype(model.dtype)).max)
    if not math.isfinite(value) or abs(value) > most:
        yield Violation(path, f"is {value:g}, expected a finite number of {model.dtype}: -{most:g} to {most:g}")


def _parts(selection: Selection) -> tuple[str, Sequence[Selection]]:
    """The name of a selection's field in the contract, and the selections inside it."""
    match selection:
        case Union(parts):
            return "union", parts
        case Intersection(parts):
            return "intersection", parts
        case Difference(parts):
            return "difference", parts
        case Control(of):
            return "control", (of,)
        case ByType():
            return "types", ()
        case ByNeuron():
            return "neurons", ()


def _size(selection: Selection) -> int:
    return 1 + sum(_size(part) for part in _parts(selection)[1])


def _selection(selection: Selection, path: str, model: ModelDescription, rows: int) -> Iterator[Violation]:
    name, parts = _parts(selection)
    path = f"{path}.{name}"
    match selection:
        case ByType(types):
            if not types:
                yield Violation(f"{path}.types", "is empty, expected at least one type, such as all_shared")
            if rows == 1:
                yield Violation(
                    path, "chooses by type, but the neurons of a single row have none: send two languages or more"
                )
        case ByNeuron():
            yield from _neurons(selection, path, model)
        case Control():
            yield from _selection(parts[0], f"{path}.of", model, rows)
        case Union() | Intersection() | Difference():
            if not parts:
                yield Violation(f"{path}.selections", "is empty, expected at least one selection")
            for index, part in enumerate(parts):
                yield from _selection(part, f"{path}.selections[{index}]", model, rows)


def _neurons(given: ByNeuron, path: str, model: ModelDescription) -> Iterator[Violation]:
    component = next((part for part in model.components if given.component in ("", part.name)), None)
    if component is None:
        yield _no_component(f"{path}.component", given.component, model)
    elif not given.component and len(model.components) > 1:
        names = " or ".join(part.name for part in model.components)
        yield Violation(f"{path}.component", f"is empty, and {model.name!r} has more than one: name {names}")
    elif (given.layers, given.neurons) != (component.layers, component.neurons):
        yield Violation(
            path,
            f"is a set of {given.layers} layers of {given.neurons} neurons, expected the {component.layers} layers of "
            f"{component.neurons} of {model.name!r}: use a set that was made with this model",
        )
    else:
        try:
            unpack_bits(given.bits, (given.layers, given.neurons))
        except ValueError as error:
            yield Violation(f"{path}.bits", f"{error}")
