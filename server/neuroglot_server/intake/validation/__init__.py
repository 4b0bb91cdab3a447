"""Validates requests before they run, and reports all violations at once.

Expects requests whose names of uploaded sets were replaced by the sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise

from neuroglot.errors import Violation
from neuroglot_server.core import Analysis, ByNeuron, Capture, Group, Intervention, ModelDescription, Row
from neuroglot_server.core.limits import TEXTS_BYTES
from neuroglot_server.intake.validation.analyses import check_analysis
from neuroglot_server.intake.validation.groups import check_group, check_row
from neuroglot_server.intake.validation.interventions import check_count, check_intervention
from neuroglot_server.intake.validation.interventions import check_neurons as neurons_violations
from neuroglot_server.intake.validation.violations import MOST_VIOLATIONS, finite, no_component, no_layer, refuse

__all__ = ["MOST_VIOLATIONS", "check", "check_capture", "check_generation", "check_neurons", "check_texts", "refuse"]


def check(group: Group, analysis: Analysis, model: ModelDescription) -> None:
    """Validate a group and its analysis.

    Raises:
        InvalidRequest: with all invalid fields, up to `MOST_VIOLATIONS`.
    """
    refuse(chain(check_group(group, model), check_analysis(analysis, group, model)))


def check_generation(
    row: Row, interventions: Sequence[Intervention], threshold: float, max_tokens: int, model: ModelDescription
) -> None:
    """Validate a generation.

    Raises:
        InvalidRequest: with all invalid fields.
    """
    refuse(_generation(row, interventions, threshold, max_tokens, model))


def check_capture(row: Row, capture: Capture, model: ModelDescription) -> None:
    """Validate a capture, except for its positions, which need the prompt's tokens.

    Raises:
        InvalidRequest: with all invalid fields.
    """
    refuse(chain(check_row(row, "row", model), _capture(capture, model)))


def check_neurons(neurons: ByNeuron, model: ModelDescription) -> None:
    """Validate a neuron set for upload.

    Raises:
        InvalidRequest: with all invalid fields.
    """
    refuse(neurons_violations(neurons, "neurons", model))


def check_texts(texts: Sequence[str]) -> None:
    """Validate the texts of a Tokenize request.

    Raises:
        InvalidRequest: they are too large in total.
    """
    size = sum([len(text.encode(errors="replace")) for text in texts])
    if size > TEXTS_BYTES:
        wrong = f"have {size} bytes together, expected at most {TEXTS_BYTES}: send fewer at once"
        refuse([Violation("texts", wrong)])


def _generation(
    row: Row, interventions: Sequence[Intervention], threshold: float, max_tokens: int, model: ModelDescription
) -> Iterator[Violation]:
    yield from check_row(row, "row", model)
    yield from finite("threshold", threshold, model)
    if max_tokens < 1:
        yield Violation("max_tokens", f"is {max_tokens}, expected at least one token to generate")
    too_many = list(check_count(interventions, "interventions"))
    yield from too_many
    if not too_many:
        for index, intervention in enumerate(interventions):
            yield from check_intervention(intervention, f"interventions[{index}]", model, rows=1)


def _capture(capture: Capture, model: ModelDescription) -> Iterator[Violation]:
    names = [component.name for component in model.components]
    if not capture.component and len(names) > 1:
        yield Violation("component", f"is empty, and {model.name!r} has more than one: name {' or '.join(names)}")
        return
    component = next((part for part in model.components if capture.component in ("", part.name)), None)
    if component is None:
        yield no_component("component", capture.component, model)
        return
    for index, layer in enumerate(capture.layers):
        if not 0 <= layer < component.layers:
            yield no_layer(f"layers[{index}]", layer, component.layers, model)
    for index, neuron in enumerate(capture.neurons):
        if not 0 <= neuron < component.neurons:
            last = component.neurons - 1
            yield Violation(f"neurons[{index}]", f"is {neuron}, expected a neuron of {model.name!r}: 0 to {last}")
    yield from _ascending("layers", capture.layers)
    yield from _ascending("neurons", capture.neurons)


def _ascending(path: str, numbers: Sequence[int]) -> Iterator[Violation]:
    for index, (before, number) in enumerate(pairwise(numbers), start=1):
        if number <= before:
            wrong = f"is {number} after {before}, expected them in ascending order, each once"
            yield Violation(f"{path}[{index}]", wrong)
