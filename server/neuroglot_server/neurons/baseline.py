"""The baseline of a group: its rows without interventions. Types, contributions, selections and edits refer to it."""

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
    """Activations of one component in the rows of a group, at the last prompt token of each.

    Derived arrays are computed on first access and cached.

    Attributes:
        component: the component's name.
        group_id: the group's id.
        labels: the rows' labels.
        activations: `[R, layers, neurons]`, in the model's dtype.
        coefficients: factors of the value rows, of the same shape; the activations unless the FFN is gated.
        norms: L2 norms of the value rows, float32 `[layers, neurons]`.
        threshold: activation above which a neuron is active for selections by type, controls and `Convert`.
        results: results of the rows' steps. Referenced because `Measure` identifies a baseline by their `id`.
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
        """Build the baseline from the results of the rows' steps; the other arguments are as the attributes."""
        # `np.array` takes half of the time of `np.stack` here.
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
        """Types of the neurons, uint8 `[layers, neurons]`; undefined for a group of one row."""
        return types.type_codes(self.activity)

    @cached_property
    def contributions(self) -> NDArray[np.float32]:
        """Contributions (Eq. 3), float32 `[R, layers, neurons]`."""
        return contribution.contributions(self.coefficients, self.norms)

    @cached_property
    def magnitudes(self) -> NDArray[np.float32]:
        """Contributions before the division by the layer's sum, float32 `[R, layers, neurons]`."""
        return contribution.magnitudes(self.coefficients, self.norms)

    @cached_property
    def mean_of_active(self) -> NDArray[np.float32]:
        """Mean activation over the rows in which a neuron is active, `[layers, neurons]`; NaN if in none."""
        sums = np.where(self.activity, self.activations, 0).sum(axis=0, dtype=np.float32)
        counts = np.count_nonzero(self.activity, axis=0)
        means: NDArray[np.float32] = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        return means
