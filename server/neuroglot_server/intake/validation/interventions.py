"""Validates interventions and their selections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from neuroglot.definitions.packing import check_bits
from neuroglot.errors import Violation
from neuroglot_server.core import (
    Add,
    ByContribution,
    ByNeuron,
    ByType,
    ByUpload,
    Control,
    Convert,
    Deactivate,
    Difference,
    Intersection,
    Intervention,
    ModelDescription,
    Override,
    Scale,
    Selection,
    Union,
    limits,
)
from neuroglot_server.intake.validation.violations import finite, no_component, no_layer, top


def check_count(interventions: Sequence[Intervention], path: str) -> Iterator[Violation]:
    """Yield violations of the maximum number and the nesting depth of selections."""
    sizes = [_size(intervention.selection) for intervention in interventions]
    selections, depth = sum(size for size, _ in sizes), max((depth for _, depth in sizes), default=0)
    if selections > limits.SELECTIONS:
        yield Violation(path, f"has {selections} selections, expected at most {limits.SELECTIONS}: send fewer")
    if depth > limits.SELECTION_DEPTH:
        wrong = f"has selections nested {depth} deep, expected at most {limits.SELECTION_DEPTH}"
        yield Violation(path, wrong)


def check_intervention(
    intervention: Intervention, path: str, model: ModelDescription, rows: int
) -> Iterator[Violation]:
    """Yield the violations of an intervention on a group with a number of rows."""
    yield from _action(intervention, path, model)
    yield from _selection(intervention.selection, f"{path}.selection", model, rows)
    components = [component for component in model.components if intervention.component in ("", component.name)]
    if not components:
        yield no_component(f"{path}.component", intervention.component, model)
        return
    layers = max(component.layers for component in components)
    wrong = ((index, layer) for index, layer in enumerate(intervention.layers) if not 0 <= layer < layers)
    for index, layer in wrong:
        yield no_layer(f"{path}.layers[{index}]", layer, layers, model)


def _action(intervention: Intervention, path: str, model: ModelDescription) -> Iterator[Violation]:
    match intervention.action:
        case Deactivate():
            return
        case Convert(value, mean_of_active):
            if value is not None:
                yield from finite(f"{path}.convert.value", value, model)
                if mean_of_active:
                    yield Violation(
                        f"{path}.convert.value", f"is {value:g}, but the mean of active is requested: leave one out"
                    )
        case Override(value, values):
            yield from _numbers(intervention.selection, f"{path}.override", "value", value, values, model)
        case Scale(factor, values):
            yield from _numbers(intervention.selection, f"{path}.scale", "factor", factor, values, model)
        case Add(value, values):
            yield from _numbers(intervention.selection, f"{path}.add", "value", value, values, model)


def _numbers(
    selection: Selection, path: str, field: str, number: float, values: Sequence[float] | None, model: ModelDescription
) -> Iterator[Violation]:
    """Yield the violations of one number for all neurons, or one number per neuron."""
    yield from finite(f"{path}.{field}", number, model)
    if values is None:
        return
    if number != 0:
        yield Violation(
            f"{path}.{field}", f"is {number:g}, but there is a number for each neuron: leave one of them out"
        )
    if not isinstance(selection, ByNeuron):
        yield Violation(
            f"{path}.values",
            f"has {len(values)} numbers, one per neuron, but the selection does not name its neurons: choose them by "
            "`neurons` or `uploaded`, or give one number for all",
        )
        return
    neurons = int.from_bytes(selection.bits).bit_count()
    if len(values) != neurons:
        yield Violation(f"{path}.values", f"has {len(values)} numbers, expected one for each of the {neurons} neurons")
        return
    wrong = ~(np.abs(np.array(values)) <= np.finfo(np.dtype(model.dtype)).max)  # also finds NaN
    for index in np.flatnonzero(wrong).tolist():
        yield from finite(f"{path}.values[{index}]", values[index], model)


def _parts(selection: Selection) -> tuple[str, Sequence[Selection]]:
    """Return the name of a selection's field in the API, and its nested selections."""
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
        case ByUpload():
            return "uploaded", ()
        case ByContribution():
            return "top_contribution", ()


def _size(selection: Selection) -> tuple[int, int]:
    """Return the number of selections, including nested ones, and the nesting depth."""
    nested = [_size(part) for part in _parts(selection)[1]]
    return 1 + sum(size for size, _ in nested), 1 + max((depth for _, depth in nested), default=0)


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
            yield from check_neurons(selection, path, model)
        case ByContribution(fraction, top_k):
            yield from top(path, "fraction", fraction, top_k, model)
        case ByUpload():
            return  # validated at upload
        case Control():
            yield from _selection(parts[0], f"{path}.of", model, rows)
        case Union() | Intersection() | Difference():
            if not parts:
                yield Violation(f"{path}.selections", "is empty, expected at least one selection")
            for index, part in enumerate(parts):
                yield from _selection(part, f"{path}.selections[{index}]", model, rows)


def check_neurons(given: ByNeuron, path: str, model: ModelDescription) -> Iterator[Violation]:
    """Yield the violations of a set of neurons."""
    component = next((part for part in model.components if given.component in ("", part.name)), None)
    if component is None:
        yield no_component(f"{path}.component", given.component, model)
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
            check_bits(given.bits, (given.layers, given.neurons))
        except ValueError as error:
            yield Violation(f"{path}.bits", f"{error}")
