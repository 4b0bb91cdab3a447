"""Sets of neurons that tenants have uploaded, and requests in which their names are replaced by them."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

from neuroglot_server.core import (
    Analysis,
    ByNeuron,
    ByUpload,
    Control,
    Difference,
    Intersection,
    Intervention,
    MemoryUse,
    Selection,
    Union,
    UploadNotFound,
)

Lookup = Callable[[str], ByNeuron]
"""From the name of an uploaded set to the set; raises `UploadNotFound`."""


class Uploads:
    """The sets that one model has been given, each tenant's apart."""

    def __init__(self, most_bytes: int) -> None:
        """Keep sets up to so many bytes of bits, of all tenants together; the newest is kept however large it is."""
        self._most_bytes = most_bytes
        self._bytes = 0
        self._sets: OrderedDict[tuple[str, str], ByNeuron] = OrderedDict()

    @property
    def memory(self) -> MemoryUse:
        """What the sets take up; may be read on any thread."""
        return MemoryUse(self._bytes, self._most_bytes)

    def add(self, tenant: str, neurons: ByNeuron) -> str:
        """Keep a set, and drop those that were not used for longest where it needs their room.

        Returns:
            The set's name, which follows from its content.
        """
        name = _name(neurons)
        if (tenant, name) not in self._sets:
            self._sets[tenant, name] = neurons
            self._bytes += len(neurons.bits)
        self._sets.move_to_end((tenant, name))
        while self._bytes > self._most_bytes and len(self._sets) > 1:
            _, dropped = self._sets.popitem(last=False)
            self._bytes -= len(dropped.bits)
        return name

    def resolve(self, tenant: str, name: str) -> ByNeuron:
        """The set of a name.

        Raises:
            UploadNotFound: the tenant has not uploaded it, or it was dropped.
        """
        if (tenant, name) not in self._sets:
            raise UploadNotFound(name)
        self._sets.move_to_end((tenant, name))
        return self._sets[tenant, name]


def with_uploads(analysis: Analysis, lookup: Lookup) -> Analysis:
    """An analysis whose variants choose by neuron what they chose by the name of an upload.

    Raises:
        UploadNotFound: there is none of that name.
    """
    if not analysis.variants:
        return analysis
    variants = (
        replace(variant, interventions=interventions_with_uploads(variant.interventions, lookup))
        for variant in analysis.variants
    )
    return replace(analysis, variants=tuple(variants))


def interventions_with_uploads(interventions: Iterable[Intervention], lookup: Lookup) -> tuple[Intervention, ...]:
    """Interventions, likewise."""
    return tuple(replace(one, selection=_with_uploads(one.selection, lookup)) for one in interventions)


def _with_uploads(selection: Selection, lookup: Lookup) -> Selection:
    match selection:
        case ByUpload(name):
            return lookup(name)
        case Control(of):
            return replace(selection, of=_with_uploads(of, lookup))
        case Union(parts) | Intersection(parts) | Difference(parts):
            return replace(selection, selections=tuple(_with_uploads(part, lookup) for part in parts))
        case _:
            return selection


def _name(neurons: ByNeuron) -> str:
    geometry = json.dumps([neurons.component, neurons.layers, neurons.neurons])
    return hashlib.sha256(geometry.encode() + b"\n" + neurons.bits).hexdigest()
