"""Which variants an analysis of accuracy compares: without each type, and without its controls."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product

from neuroglot.request.interventions import Intervention, deactivate
from neuroglot.request.neurons import NeuronType
from neuroglot.request.selections import ControlKind, control
from neuroglot.results.results import BASELINE

ABLATED = (NeuronType.ALL_SHARED, NeuronType.SPECIFIC, NeuronType.PARTIAL_SHARED)
"""The types that are deactivated, in the order of the paper's Table 2."""


RANDOM_NEURONS: Mapping[ControlKind, str] = {
    ControlKind.RANDOM: "as many random neurons",
    ControlKind.RANDOM_ACTIVE: "as many random neurons that are active in the row",
    ControlKind.RANDOM_MASS: "random neurons of the same contribution",
}
"""What a control deactivates, in words."""


@dataclass(frozen=True)
class Ablations:
    """The variants of one analysis: each type deactivated, and for each random neurons in its place, several draws.

    Attributes:
        draws: draws of each control, at least 1.
        seed: of the draws.
        component: `encoder` or `decoder`, where neurons are deactivated in this one alone; None for all.
        kinds: from which neurons the controls are drawn; the first is the one that figures and headlines are about.
    """

    draws: int = 3
    seed: int = 0
    component: str | None = None
    kinds: tuple[ControlKind, ...] = (ControlKind.RANDOM_ACTIVE,)

    def without(self, kind: NeuronType) -> str:
        """Name of the variant that deactivates a type."""
        return f"w/o {kind.label}"

    def control(self, kind: NeuronType, drawn: ControlKind) -> str:
        """Name of one kind of control of a type."""
        return f"{drawn.replace('_', '-')} control of {kind.label}"

    def controls(self, kind: NeuronType, drawn: ControlKind | None = None) -> tuple[str, ...]:
        """Names of the variants that deactivate random neurons in place of a type, a draw each.

        Args:
            kind: the type.
            drawn: from which neurons they are drawn; None for the first of `kinds`.
        """
        control_of = self.control(kind, drawn or self.kinds[0])
        return tuple(f"{control_of}, draw {draw}" for draw in range(self.draws))

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
        for kind, drawn in product(ABLATED, self.kinds):
            for draw, name in enumerate(self.controls(kind, drawn)):
                chosen = control(kind, drawn, draw=draw, seed=self.seed)
                variants[name] = deactivate(chosen, component=self.component)
        return variants
