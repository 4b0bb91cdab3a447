"""The interventions that a verification compares: each kind, in each component, on random neurons of every layer."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neuroglot.definitions.bundle import Component
from neuroglot_exporter.verification.observation import Intervention

_SHARE_OF_NEURONS = 0.25


class _Change(NamedTuple):
    """Mask and override of a changed neuron; float16 represents the numbers exactly, too."""

    mask: float
    override: float


_KINDS = {
    "deactivate": _Change(0.0, 0.0),
    "override": _Change(0.0, 1.0),
    "scale": _Change(2.0, 0.0),
    "add": _Change(1.0, 0.5),
}


class Trial(NamedTuple):
    """One kind of intervention in one component.

    Attributes:
        kind: `deactivate`, `override`, `scale` or `add`.
        component: the component.
    """

    kind: str
    component: Component

    @property
    def name(self) -> str:
        """Its name among the measurements: `deactivate.decoder`."""
        return f"{self.kind}.{self.component.name}"

    def on_row(self, row: int) -> Intervention:
        """The intervention on a row: random neurons that depend on the row's number, the same at every call."""
        generator = np.random.default_rng([zlib.crc32(self.name.encode()), row])
        chosen = generator.random((self.component.layers, 1, self.component.neurons)) < _SHARE_OF_NEURONS
        change = _KINDS[self.kind]
        return Intervention(
            component=self.component.name,
            mask=np.where(chosen, change.mask, 1.0).astype(np.float32),
            override=np.where(chosen, change.override, 0.0).astype(np.float32),
        )


def trials(components: Sequence[Component]) -> list[Trial]:
    """Every kind in every component."""
    return [Trial(kind, component) for component in components for kind in _KINDS]
