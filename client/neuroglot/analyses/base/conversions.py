"""Which variants an analysis of conversions compares: neurons made active, and the same neurons zeroed."""

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
"""What is converted to all-shared, in the order of the paper's Table 3."""


@dataclass(frozen=True)
class Conversions:
    """The variants of one analysis: types made active in every language, and beside each the twin that zeroes them.

    Attributes:
        value: the activation that inactive neurons get; None for the next number above the threshold, as the
            paper's text has it.
        mean_of_active: in its place the mean over the group's languages in which the neuron is active.
        component: `encoder` or `decoder`, where neurons are converted in this one alone; None for all.
    """

    value: float | None = None
    mean_of_active: bool = False
    component: str | None = None

    def converted(self, name: str) -> str:
        """Name of the variant that makes the neurons active."""
        return f"convert {name}"

    def zeroed(self, name: str) -> str:
        """Name of its twin, which makes the same activations 0 instead."""
        return f"zero inactive {name}"

    def variants(self) -> Mapping[str, Intervention]:
        """The variants by name, ready to be sent."""
        return {
            self.converted(name): convert(
                kinds, self.value, mean_of_active=self.mean_of_active, component=self.component
            )
            for name, kinds in CONVERTED.items()
        } | {self.zeroed(name): convert(kinds, 0.0, component=self.component) for name, kinds in CONVERTED.items()}
