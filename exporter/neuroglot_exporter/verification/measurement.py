"""Differences between the exported graphs and transformers, and their tolerances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from neuroglot.v1.probe_pb2 import Probe
from neuroglot_exporter.verification.observation import Floats


@dataclass(frozen=True)
class Tolerance:
    """Tolerances for a data type of the bundle; transformers always computes in float32.

    Attributes:
        difference: maximum difference, relative to the largest value that transformers computes.
        floor: minimum of that largest value.
        type_flips: maximum share of neurons that are active in only one of the two.
    """

    difference: float
    floor: float
    type_flips: float


TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(difference=1e-4, floor=1.0, type_flips=1e-3),
    "float16": Tolerance(difference=2e-2, floor=0.0, type_flips=5e-3),
}
"""By the bundle's data type."""


@dataclass(frozen=True)
class Measurement:
    """The difference between two arrays.

    Attributes:
        difference: the largest absolute difference.
        magnitude: the largest absolute value that transformers computes.
        values: how many values were compared.
        type_flips: number of activations that are active (above 0) in only one of the two; None for other arrays.
        effect: the largest change by the intervention in transformers; None without an intervention.
    """

    difference: float
    magnitude: float
    values: int
    type_flips: int | None = None
    effect: float | None = None

    def allowed(self, tolerance: Tolerance) -> float:
        """The largest difference that passes."""
        return tolerance.difference * max(tolerance.floor, self.magnitude)

    def excess(self, tolerance: Tolerance) -> str:
        """A description of what exceeds the tolerance; empty if nothing does. A difference of NaN does."""
        allowed = self.allowed(tolerance)
        if not self.difference <= allowed:
            return f"by {self.difference:.2g} (allowed is {allowed:.2g}, values reach {self.magnitude:.2g})"
        if self.type_flips is not None and self.type_flips > tolerance.type_flips * self.values:
            return (
                f"in the type of {self.type_flips:,} of {self.values:,} neurons (allowed is a share of "
                f"{tolerance.type_flips:g})"
            )
        return ""

    def merged(self, other: Measurement) -> Measurement:
        """Merge two measurements: the larger difference, the sum of the counts."""
        return Measurement(
            difference=float(np.maximum(self.difference, other.difference)),  # keeps NaN
            magnitude=float(np.maximum(self.magnitude, other.magnitude)),
            values=self.values + other.values,
            type_flips=None
            if self.type_flips is None or other.type_flips is None
            else self.type_flips + other.type_flips,
            effect=None if self.effect is None or other.effect is None else max(self.effect, other.effect),
        )


@dataclass(frozen=True)
class Verification:
    """The result of a comparison.

    Attributes:
        texts: how many texts: in left-padded batches through the graphs, each alone through transformers.
        positions: their tokens, by component.
        tolerance: the tolerance of the bundle's data type.
        measurements: by what was compared: `decoder.activations`, `decoder.coefficients` (where gated), `logits`; the
            same with `past.` before it, at the last position, after the keys and values of the others;
            `deactivate.decoder.logits` and so on, with random neurons of every layer changed, others in every row.
        probe: the probe with the results of transformers, for the bundle.
        probe_differences: differences of the graphs' results for the probe, a sentence each.
        seconds: how long it took.
    """

    texts: int
    positions: Mapping[str, int]
    tolerance: Tolerance
    measurements: Mapping[str, Measurement]
    probe: Probe
    probe_differences: tuple[str, ...]
    seconds: float

    @property
    def excesses(self) -> dict[str, str]:
        """Descriptions of what exceeds the tolerance, by what was compared; empty if the bundle passes."""
        found = {name: measured.excess(self.tolerance) for name, measured in self.measurements.items()}
        return {name: excess for name, excess in found.items() if excess}

    def to_json(self) -> dict[str, Any]:
        """All but the probe, for JSON. Numbers that are not finite become None."""
        measurements = {name: asdict(measured) for name, measured in self.measurements.items()}
        for measured in measurements.values():
            for name, value in measured.items():
                if isinstance(value, float) and not math.isfinite(value):
                    measured[name] = None
        return {
            "texts": self.texts,
            "positions": dict(self.positions),
            "tolerance": asdict(self.tolerance),
            "measurements": measurements,
            "seconds": self.seconds,
        }


def difference_message(excesses: Mapping[str, str]) -> str:
    """Format the excesses in one line."""
    listed = ", ".join(f"{name} {excess}" for name, excess in excesses.items())
    return f"the exported graph differs from transformers: {listed}"


def probe_message(differences: Sequence[str]) -> str:
    """Format the differences for the probe in one line."""
    return f"the exported graph differs from transformers in its answer to the probe: {'; '.join(differences[:3])}"


def compare(computed: Mapping[str, Floats], expected: Mapping[str, Floats]) -> dict[str, Measurement]:
    """Measure each of the taps that the graphs computed."""
    return {
        tap: measure(values, expected[tap], activations=tap.endswith("activations")) for tap, values in computed.items()
    }


def measure(
    computed: Floats, expected: Floats, *, activations: bool = False, without: Floats | None = None
) -> Measurement:
    """Measure one array; `without` is what transformers computes without the intervention."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which no tolerance allows
        difference = _largest(computed - expected)
    return Measurement(
        difference=difference,
        magnitude=_largest(expected),
        values=expected.size,
        type_flips=int(np.count_nonzero((computed > 0) != (expected > 0))) if activations else None,
        effect=None if without is None else _largest(without - expected),
    )


def _largest(array: Floats) -> float:
    return float(np.abs(array).max())
