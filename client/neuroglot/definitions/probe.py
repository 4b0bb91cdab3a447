"""The probe of a bundle: a fixed request, and the comparison of a model's result with the one recorded at export.

The exporter writes it, a server runs it before it serves a model, and `neuroglot verify --probe` runs it on a running
server. `proto/neuroglot/v1/probe.proto` defines its content.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from neuroglot.definitions.bundle import PROBE, Manifest, open_file
from neuroglot.definitions.packing import unpack_bits, unpack_codes
from neuroglot.errors import BundleError
from neuroglot.v1.probe_pb2 import Probe
from neuroglot.v1.result_pb2 import ComponentResult, GroupResult, RowPrediction

_MAX_FILE_BYTES = 16 * 2**20

MIN_ROWS = 2
"""Minimum number of rows of a probe: in a smaller group neurons have no types."""


@dataclass(frozen=True)
class ComponentComparison:
    """Comparison of the neurons of one component.

    Attributes:
        component: name of the component.
        neurons: number of activities compared, over all layers and rows.
        flips: number of neurons that are active in one result and inactive in the other.
        flips_allowed: maximum number of flips, among the uncertain neurons.
        types: number of types compared, those of neurons that are certain in every row.
    """

    component: str
    neurons: int
    flips: int
    flips_allowed: int
    types: int


@dataclass(frozen=True)
class Comparison:
    """Comparison of a probe's result with the recorded one.

    Attributes:
        components: comparison of the neurons of each component.
        log_probabilities: number of log-probabilities compared.
        largest_difference: largest difference of a log-probability, in nats; NaN if one is not finite.
        allowed_difference: largest difference that passes, in nats.
        differences: the failed comparisons, a sentence each; empty if the result passes.
    """

    components: tuple[ComponentComparison, ...]
    log_probabilities: int
    largest_difference: float
    allowed_difference: float
    differences: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first difference in one sentence, with the number of further ones."""
        more = f" (and {len(self.differences) - 1} more)" if len(self.differences) > 1 else ""
        return f"{self.differences[0]}{more}" if self.differences else "no difference"


def to_json(probe: Probe) -> str:
    """The text of `probe.json`."""
    return json_format.MessageToJson(probe, preserving_proto_field_name=True, indent=1) + "\n"


def from_json(text: str | bytes) -> Probe:
    """Read the text of `probe.json`.

    Raises:
        ValueError: it is not the JSON of a probe, or the probe does not fit together.
    """
    try:
        probe = json_format.Parse(text, Probe(), max_recursion_depth=20)
    except (json_format.ParseError, DecodeError, RecursionError) as error:
        raise ValueError(f"not the JSON of a probe: {error}") from None
    _check(probe)
    return probe


def read_probe(folder: Path, manifest: Manifest) -> Probe | None:
    """The probe of a bundle; None for a bundle that was exported before there were probes.

    Args:
        folder: the bundle.
        manifest: its manifest, whose components and vocabulary the probe must fit.

    Raises:
        BundleError: the probe is damaged, or another model's.
    """
    if PROBE not in manifest.files:
        return None
    file, facts = folder / PROBE, manifest.model
    try:
        size = manifest.files[PROBE].size
        if size > _MAX_FILE_BYTES:
            raise ValueError(f"it has {size} bytes, expected at most {_MAX_FILE_BYTES}")
        with open_file(folder, PROBE) as content:
            probe = from_json(content.read(size + 1))
        given = [(one.component, one.layers, one.neurons) for one in probe.expected.components]
        expected = [(one.name, one.layers, one.neurons) for one in facts.components]
        if given != expected:
            raise ValueError(f"its components are {given}, expected {expected}")
        largest = max(token for row in probe.group.rows for token in row.token_ids.ids)
        if largest >= facts.vocabulary_size:
            raise ValueError(f"it has token {largest}, expected tokens below {facts.vocabulary_size}")
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} is damaged ({error}): export the model again") from None
    return probe


def compare(probe: Probe, result: GroupResult) -> Comparison:
    """Compare the answer to a probe with what was recorded.

    Args:
        probe: as `from_json` gives it.
        result: the answer to its `group` and `analysis`.
    """
    differences = list(_row_differences(probe, result))
    components = []
    if differences:  # the answer is to another request: its numbers mean nothing
        return Comparison((), 0, math.nan, probe.log_probability_tolerance, tuple(differences))
    for index, expected in enumerate(probe.expected.components):
        given = result.components[index] if index < len(result.components) else ComponentResult()
        try:
            compared, wrong = _compare_component(probe, index, given)
        except (ValueError, IndexError) as error:
            differences.append(f"the {expected.component} has no active neurons and types of every row ({error})")
        else:
            components.append(compared)
            differences += wrong
    largest, count = 0.0, 0
    for name, label, what, expected_value, value in _log_probabilities(probe, result):
        count += 1
        difference = abs(value - expected_value)
        largest = float(np.maximum(largest, difference))  # keeps what is no number
        if not difference <= probe.log_probability_tolerance:
            differences.append(
                f"the log-probability of the {what} of row {label!r} under {name!r} is {value:.6g}, expected "
                f"{expected_value:.6g} within {probe.log_probability_tolerance:.2g}"
            )
    return Comparison(tuple(components), count, largest, probe.log_probability_tolerance, tuple(differences))


def _compare_component(probe: Probe, index: int, given: ComponentResult) -> tuple[ComponentComparison, list[str]]:
    """One component, and what does not pass of it.

    Raises:
        ValueError, IndexError: the answer does not have what was asked for.
    """
    expected = probe.expected.components[index]
    name, shape = expected.component, (expected.layers, expected.neurons)
    if (given.component, given.layers, given.neurons) != (name, *shape):
        raise ValueError(f"it is {given.component!r}, {given.layers} x {given.neurons}")
    threshold = given.thresholds[0]
    active = _bitmaps(threshold.active_bitmaps, shape, len(probe.group.rows))
    recorded = _bitmaps(expected.thresholds[0].active_bitmaps, shape, len(probe.group.rows))
    certain = ~_bitmaps(probe.uncertain[index].bitmaps, shape, len(probe.group.rows))
    flipped = active != recorded
    allowed = math.ceil(probe.type_flips_tolerance * flipped.size)
    differences = []
    if (wrong := flipped & certain).any():
        row, layer, neuron = (int(one) for one in np.argwhere(wrong)[0])
        differences.append(
            f"neuron {neuron} of layer {layer} of the {name} is {_activity(active[row, layer, neuron])} in row "
            f"{probe.group.rows[row].label!r}, expected {_activity(recorded[row, layer, neuron])}, as are "
            f"{int(wrong.sum()) - 1:,} more of {wrong.size:,}"
        )
    elif (flips := int(flipped.sum())) > allowed:
        differences.append(
            f"{flips:,} of {flipped.size:,} neurons of the {name} are active in one and not in the other, expected at "
            f"most {allowed:,}"
        )
    same = certain.all(axis=0)
    types, recorded_types = (unpack_codes(one.type_map, shape) for one in (threshold, expected.thresholds[0]))
    if (wrong_types := (types != recorded_types) & same).any() and not differences:
        layer, neuron = (int(one) for one in np.argwhere(wrong_types)[0])
        differences.append(
            f"the type of neuron {neuron} of layer {layer} of the {name} has code {types[layer, neuron]}, expected "
            f"{recorded_types[layer, neuron]}"
        )
    return ComponentComparison(name, flipped.size, int(flipped.sum()), allowed, int(same.sum())), differences


def _row_differences(probe: Probe, result: GroupResult) -> Iterator[str]:
    """Rows that are not those of the probe: another tokenizer reads the answers."""
    if len(result.rows) != len(probe.group.rows):
        yield f"the answer has {len(result.rows)} rows, expected {len(probe.group.rows)}"
        return
    for row, expected in zip(result.rows, probe.expected.rows, strict=True):
        if list(row.gold_token_ids) != list(expected.gold_token_ids):
            yield (
                f"the answer of row {expected.label!r} is read as the tokens {list(row.gold_token_ids)}, expected "
                f"{list(expected.gold_token_ids)}: the tokenizer is not the export's"
            )


def _log_probabilities(probe: Probe, result: GroupResult) -> Iterator[tuple[str, str, str, float, float]]:
    """Variant, row's label, `answer` or `choice`, expected and given log-probability; NaN where there is none."""
    given = {variant.name: variant.predictions for variant in result.variants}
    for variant in probe.expected.variants:
        predictions = given.get(variant.name, ())
        for index, expected in enumerate(variant.predictions):
            label = probe.group.rows[index].label
            one = predictions[index] if index < len(predictions) else RowPrediction()
            answer = one.gold_log_probability if one.HasField("gold_log_probability") else math.nan
            yield variant.name, label, "answer", expected.gold_log_probability, answer
            for number, value in enumerate(expected.choice_log_probabilities):
                choices = one.choice_log_probabilities
                yield variant.name, label, "choice", value, choices[number] if number < len(choices) else math.nan


def _check(probe: Probe) -> None:
    """Refuse a probe whose parts do not fit together.

    Raises:
        ValueError: says which.
    """
    rows, expected = probe.group.rows, probe.expected
    if len(rows) < MIN_ROWS or not all(row.token_ids.ids for row in rows):
        raise ValueError(f"it has {len(rows)} rows, expected at least {MIN_ROWS}, each with token ids")
    if len(expected.rows) != len(rows) or not expected.components or len(probe.uncertain) != len(expected.components):
        raise ValueError("its request and what is expected do not fit together")
    for component, uncertain in zip(expected.components, probe.uncertain, strict=True):
        if uncertain.component != component.component or len(component.thresholds) != 1:
            raise ValueError(f"what is expected of the {component.component} does not fit together")
        shape = component.layers, component.neurons
        unpack_codes(component.thresholds[0].type_map, shape)
        _bitmaps(component.thresholds[0].active_bitmaps, shape, len(rows))
        _bitmaps(uncertain.bitmaps, shape, len(rows))
    names = ["baseline", *(variant.name for variant in probe.analysis.variants)]
    if [variant.name for variant in expected.variants] != names:
        raise ValueError(
            f"it expects predictions under {[one.name for one in expected.variants]}, and asks for {names}"
        )
    for variant in expected.variants:
        if len(variant.predictions) != len(rows):
            raise ValueError(f"it has {len(variant.predictions)} predictions under {variant.name!r}")
        for prediction in variant.predictions:
            values = (prediction.gold_log_probability, *prediction.choice_log_probabilities)
            if not all(map(math.isfinite, values)):
                raise ValueError(f"it expects a number that is not finite under {variant.name!r}")
    if not 0 < probe.log_probability_tolerance < math.inf or not 0 <= probe.type_flips_tolerance < 1:
        raise ValueError("its tolerances are no positive numbers")


def _bitmaps(packed: Iterable[bytes], shape: tuple[int, int], rows: int) -> NDArray[np.bool_]:
    """One packed bitmap a row as `[rows, layers, neurons]`.

    Raises:
        ValueError: there is not one a row, or one does not fit the shape.
    """
    bitmaps = [unpack_bits(bits, shape) for bits in packed]
    if len(bitmaps) != rows:
        raise ValueError(f"there are {len(bitmaps)} bitmaps, expected {rows}")
    return np.stack(bitmaps)


def _activity(active: np.bool_) -> str:
    return "active" if active else "inactive"
