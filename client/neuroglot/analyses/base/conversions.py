"""Conversion variants: inactive neurons of a type made active, and the same neurons set to 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neuroglot.request.interventions import Intervention, convert
from neuroglot.request.neurons import NeuronType

CONVERTED: Mapping[str, tuple[NeuronType, ...]] = {
    "specific": (NeuronType.SPECIFIC,),
    "partial-shared": (NeuronType.PARTIAL_SHARED,),
    "both": (NeuronType.SPECIFIC, NeuronType.PARTIAL_SHARED),
}
"""The types converted to all-shared, in the order of the paper's Table 3."""


@dataclass(frozen=True)
class Conversions:
    """The conversion variants of one analysis, each with a twin that sets the same activations to 0.

    Attributes:
        value: new activation of the inactive neurons; None for the next float above the threshold, as in the paper.
        mean_of_active: use the mean over the group's languages in which the neuron is active instead of `value`.
        component: `encoder` or `decoder` to convert neurons in that component only; None for all components.
    """

    value: float | None = None
    mean_of_active: bool = False
    component: str | None = None

    def converted(self, name: str) -> str:
        """Return the name of the variant that makes the neurons active."""
        return f"convert {name}"

    def zeroed(self, name: str) -> str:
        """Return the name of its twin, which sets the same activations to 0."""
        return f"zero inactive {name}"

    def variants(self) -> Mapping[str, Intervention]:
        """Return the interventions by name of the variant."""
        return {
            self.converted(name): convert(
                kinds, self.value, mean_of_active=self.mean_of_active, component=self.component
            )
            for name, kinds in CONVERTED.items()
        } | {self.zeroed(name): convert(kinds, 0.0, component=self.component) for name, kinds in CONVERTED.items()}
