"""What is seen of one row, and what is done to it: the same two words for the exported graph and for transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Observation:
    """What a model computes on one row.

    Attributes:
        activations: `[layers, positions, neurons]`, before mask and override.
        coefficients: what multiplies the value rows, after mask and override, same shape; None where not gated.
        logits: `[positions, vocabulary]`.
    """

    activations: Floats
    coefficients: Floats | None
    logits: Floats

    def last_position(self) -> Observation:
        """What is seen at the last position only."""
        coefficients = None if self.coefficients is None else self.coefficients[:, -1:]
        return Observation(self.activations[:, -1:], coefficients, self.logits[-1:])

    def taps(self) -> dict[str, Floats]:
        """What there is, by name."""
        taps = {"activations": self.activations, "coefficients": self.coefficients, "logits": self.logits}
        return {name: tap for name, tap in taps.items() if tap is not None}


@dataclass(frozen=True)
class Intervention:
    """What is done to one row's activations: `mask * activation + override`.

    Attributes:
        mask: `[layers, positions, neurons]`.
        override: same shape.
    """

    mask: Floats
    override: Floats
