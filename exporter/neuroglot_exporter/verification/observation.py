"""Observations of a row and interventions on it, for the exported graphs and for transformers alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]

ENCODER, DECODER = "encoder", "decoder"
"""The names of components."""


@dataclass(frozen=True)
class Observation:
    """The activations and logits that a model computes on one row.

    Attributes:
        activations: by component, `[layers, positions, neurons]`, before mask and override.
        coefficients: by component, what multiplies the value rows, after mask and override, same shape; no entry if
            not gated.
        logits: `[kept, vocabulary]`, of the decoder's last positions.
    """

    activations: Mapping[str, Floats]
    coefficients: Mapping[str, Floats]
    logits: Floats

    def last_position(self) -> Observation:
        """The observation at the decoder's last position only."""
        return Observation(
            {DECODER: self.activations[DECODER][:, -1:]},
            {DECODER: self.coefficients[DECODER][:, -1:]} if DECODER in self.coefficients else {},
            self.logits[-1:],
        )

    def taps(self) -> dict[str, Floats]:
        """All arrays, by name: `decoder.activations`, `decoder.coefficients`, `logits`."""
        return (
            {f"{component}.activations": values for component, values in self.activations.items()}
            | {f"{component}.coefficients": values for component, values in self.coefficients.items()}
            | {"logits": self.logits}
        )


@dataclass(frozen=True)
class Intervention:
    """A change of one row's activations in one component: `mask * activation + override`.

    Attributes:
        component: its name.
        mask: `[layers, positions, neurons]`, or `[layers, 1, neurons]` for the same at every position.
        override: same shape.
    """

    component: str
    mask: Floats
    override: Floats
