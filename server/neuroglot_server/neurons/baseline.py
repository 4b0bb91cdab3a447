"""What a group shows without any intervention: what types, contributions, selections and edits are relative to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.engine.steps import StepResult
from neuroglot_server.kernels import contribution, types


@dataclass(frozen=True, eq=False)
class Baseline:
    """What the rows of a group show of one component, at the last prompt token of each.

    What is derived from it is worked out when it is first asked for.

    Attributes:
        component: its name.
        group_id: the group's id.
        labels: the rows' labels.
        activations: `[R, layers, neurons]`, in the model's dtype.
        coefficients: what multiplies the value rows, of the same shape; the activations themselves where not gated.
        norms: of the value rows, float32 `[layers, neurons]`.
        threshold: above which a neuron is active to selections by type, to controls and to `Convert`.
        results: what the rows' steps gave; held, for `Comparison` knows a baseline by their identities.
    """

    component: str
    group_id: str
    labels: tuple[str, ...]
    activations: NDArray[np.floating]
    coefficients: NDArray[np.floating]
    norms: NDArray[np.float32]
    threshold: float = 0.0
    results: Sequence[StepResult] = ()

    @classmethod
    def of(
        cls,
        results: Sequence[StepResult],
        *,
        component: str,
        group_id: str,
        labels: tuple[str, ...],
        norms: NDArray[np.float32],
        threshold: float,
    ) -> Baseline:
        """That of rows whose steps gave these results; the rest as the attributes."""
        # In half of the time that `np.stack` takes.
        activations = np.array([result.activations for result in results if result.activations is not None])
        coefficients = activations
        if any(result.coefficients is not result.activations for result in results):
            coefficients = np.array([result.coefficients for result in results if result.coefficients is not None])
        return cls(component, group_id, labels, activations, coefficients, norms, threshold, results)

    @cached_property
    def activity(self) -> NDArray[np.bool_]:
        """Which neurons are active in each row, bool `[R, layers, neurons]`."""
        return types.active(self.activations, self.threshold)

    @cached_property
    def codes(self) -> NDArray[np.uint8]:
        """Their types, uint8 `[layers, neurons]`; a group of one row has none."""
        return types.type_codes(self.activity)

    @cached_property
    def contributions(self) -> NDArray[np.float32]:
        """Their contributions (Eq. 3), float32 `[R, layers, neurons]`."""
        return contribution.contributions(self.coefficients, self.norms)

    @cached_property
    def magnitudes(self) -> NDArray[np.float32]:
        """The same, not divided by the layer's sum."""
        return contribution.magnitudes(self.coefficients, self.norms)

    @cached_property
    def mean_of_active(self) -> NDArray[np.float32]:
        """Each neuron's mean activation over the rows in which it is active, `[layers, neurons]`; NaN if in none."""
        sums = np.where(self.activity, self.activations, 0).sum(axis=0, dtype=np.float32)
        counts = np.count_nonzero(self.activity, axis=0)
        means: NDArray[np.float32] = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        return means
