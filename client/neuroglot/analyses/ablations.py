"""Which variants an analysis of accuracy compares: without each type, and without its controls."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from neuroglot.errors import AnalysisError
from neuroglot.interventions import Intervention, deactivate
from neuroglot.neurons import NeuronType
from neuroglot.results import BASELINE
from neuroglot.selections import ControlKind, control

ABLATED = (NeuronType.ALL_SHARED, NeuronType.SPECIFIC, NeuronType.PARTIAL_SHARED)
"""The types that are deactivated, in the order of the paper's Table 2."""


@dataclass(frozen=True)
class Ablations:
    """The variants of one analysis: each type deactivated, and for each as many random active neurons, several draws.

    Attributes:
        draws: draws of each control, at least 1.
        seed: of the draws.
        component: `encoder` or `decoder`, where neurons are deactivated in this one alone; None for all.

    Raises:
        AnalysisError: fewer than 1 draw.
    """

    draws: int
    seed: int
    component: str | None = None

    def __post_init__(self) -> None:
        """Refuse an ablation without a control."""
        if self.draws < 1:
            raise AnalysisError(f"{self.draws} draws give no control to compare with: ask for 1 or more")

    def without(self, kind: NeuronType) -> str:
        """Name of the variant that deactivates a type."""
        return f"w/o {kind.label}"

    def control(self, kind: NeuronType, draw: int) -> str:
        """Name of the variant that deactivates random neurons instead, active in the row and as many."""
        return f"control of {kind.label}, draw {draw}"

    def controls(self, kind: NeuronType) -> tuple[str, ...]:
        """Names of all controls of a type."""
        return tuple(self.control(kind, draw) for draw in range(self.draws))

    @property
    def names(self) -> tuple[str, ...]:
        """All variants, the baseline first."""
        return BASELINE, *self.variants()

    def where(self, components: Collection[str]) -> str:
        """A sentence on where neurons are deactivated, a space before it; empty where there is only one place.

        >>> Ablations(draws=3, seed=0).where(["encoder", "decoder"])
        ' Neurons are deactivated in encoder and decoder alike.'

        Args:
            components: names of the model's components.
        """
        if len(components) == 1:
            return ""
        place = f"the {self.component} alone" if self.component else f"{' and '.join(components)} alike"
        return f" Neurons are deactivated in {place}."

    def variants(self) -> Mapping[str, Intervention]:
        """The variants by name, ready to be sent."""
        variants = {self.without(kind): deactivate(kind, component=self.component) for kind in ABLATED}
        for kind in ABLATED:
            for draw in range(self.draws):
                chosen = control(kind, ControlKind.RANDOM_ACTIVE, draw=draw, seed=self.seed)
                variants[self.control(kind, draw)] = deactivate(chosen, component=self.component)
        return variants
