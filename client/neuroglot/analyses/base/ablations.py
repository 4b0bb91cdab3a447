"""Ablation variants: each neuron type deactivated, and random neurons deactivated as its control."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product

from neuroglot.request.interventions import Intervention, deactivate
from neuroglot.request.neurons import NeuronType
from neuroglot.request.selections import ControlKind, control
from neuroglot.results.results import BASELINE

ABLATED = (NeuronType.ALL_SHARED, NeuronType.SPECIFIC, NeuronType.PARTIAL_SHARED)
"""The deactivated types, in the order of the paper's Table 2."""


RANDOM_NEURONS: Mapping[ControlKind, str] = {
    ControlKind.RANDOM: "as many random neurons",
    ControlKind.RANDOM_ACTIVE: "as many random neurons that are active in the row",
    ControlKind.RANDOM_MASS: "random neurons of the same contribution",
}
"""The neurons that each kind of control deactivates, as text in captions."""


@dataclass(frozen=True)
class Ablations:
    """The ablation variants of one analysis: each type deactivated, and several draws of random neurons as controls.

    Attributes:
        draws: number of draws of each control, at least 1.
        seed: seed of the draws.
        component: `encoder` or `decoder` to deactivate neurons in that component only; None for all components.
        kinds: kinds of controls; figures and headlines show the first.
    """

    draws: int = 3
    seed: int = 0
    component: str | None = None
    kinds: tuple[ControlKind, ...] = (ControlKind.RANDOM_ACTIVE,)

    def without(self, kind: NeuronType) -> str:
        """Return the name of the variant that deactivates a type."""
        return f"w/o {kind.label}"

    def control(self, kind: NeuronType, drawn: ControlKind) -> str:
        """Return the name of one kind of control of a type, without its draw."""
        return f"{drawn.replace('_', '-')} control of {kind.label}"

    def controls(self, kind: NeuronType, drawn: ControlKind | None = None) -> tuple[str, ...]:
        """Return the names of the control variants of a type, one a draw.

        Args:
            kind: the type.
            drawn: the kind of control; None for the first of `kinds`.
        """
        control_of = self.control(kind, drawn or self.kinds[0])
        return tuple(f"{control_of}, draw {draw}" for draw in range(self.draws))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all variants, the baseline first."""
        return BASELINE, *self.variants()

    def where(self, components: Collection[str]) -> str:
        """Return a sentence naming the ablated components, with a leading space; empty for a model with one component.

        >>> Ablations(draws=3, seed=0).where(["encoder", "decoder"])
        ' Neurons are deactivated in encoder and decoder alike.'

        Args:
            components: names of the model's components.
        """
        if len(components) == 1:
            return ""
        components_text = f"the {self.component} alone" if self.component else f"{' and '.join(components)} alike"
        return f" Neurons are deactivated in {components_text}."

    def variants(self) -> Mapping[str, Intervention]:
        """Return the interventions by name of the variant."""
        variants = {self.without(kind): deactivate(kind, component=self.component) for kind in ABLATED}
        for kind, drawn in product(ABLATED, self.kinds):
            for draw, name in enumerate(self.controls(kind, drawn)):
                chosen = control(kind, drawn, draw=draw, seed=self.seed)
                variants[name] = deactivate(chosen, component=self.component)
        return variants
