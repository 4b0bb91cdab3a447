"""Sets of neurons that tenants have uploaded, and requests in which their names are replaced by them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, OrderedDict
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

_BYTES_AROUND = 512
"""Of a set: its name, and what it is counted and found by."""

Lookup = Callable[[str], ByNeuron]
"""From the name of an uploaded set to the set; raises `UploadNotFound`."""


class Uploads:
    """The sets that one model has been given, each tenant's apart."""

    def __init__(self, most_bytes: int, tenant_bytes: int) -> None:
        """Keep sets up to so many bytes, each counted with what is around its bits.

        Args:
            most_bytes: of all tenants together.
            tenant_bytes: of one tenant; its newest set is kept however large it is.
        """
        self._most_bytes = most_bytes
        self._tenant_bytes = tenant_bytes
        self._sets: dict[str, OrderedDict[str, ByNeuron]] = {}  # of each tenant, the least used one first
        self._bytes: Counter[str] = Counter()
        self._total = 0

    @property
    def memory(self) -> MemoryUse:
        """What the sets take up; may be read on any thread."""
        return MemoryUse(self._total, self._most_bytes)

    def add(self, tenant: str, neurons: ByNeuron) -> str:
        """Keep a set, and drop those of the tenant that were not used for longest where it needs their room.

        Where all tenants together have too much, those are dropped of the one that has the most.

        Returns:
            The set's name, which follows from its content.
        """
        name = _name(neurons)
        mine = self._sets.setdefault(tenant, OrderedDict())
        if name not in mine:
            mine[name] = neurons
            self._bytes[tenant] += _size(neurons)
            self._total += _size(neurons)
        mine.move_to_end(name)
        while self._bytes[tenant] > self._tenant_bytes and len(mine) > 1:
            self._drop(tenant)
        while self._total > self._most_bytes:
            able = [one for one, sets in self._sets.items() if one != tenant or len(sets) > 1]
            if not able:
                break
            self._drop(max(able, key=self._bytes.__getitem__))
        return name

    def _drop(self, tenant: str) -> None:
        """Drop the set of a tenant that was not used for longest."""
        _, dropped = self._sets[tenant].popitem(last=False)
        self._bytes[tenant] -= _size(dropped)
        self._total -= _size(dropped)
        if not self._sets[tenant]:
            del self._sets[tenant], self._bytes[tenant]

    def resolve(self, tenant: str, name: str) -> ByNeuron:
        """The set of a name.

        Raises:
            UploadNotFound: the tenant has not uploaded it, or it was dropped.
        """
        mine = self._sets.get(tenant, OrderedDict())
        if name not in mine:
            raise UploadNotFound(name)
        mine.move_to_end(name)
        return mine[name]


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


def _size(neurons: ByNeuron) -> int:
    return len(neurons.bits) + _BYTES_AROUND


def _name(neurons: ByNeuron) -> str:
    geometry = json.dumps([neurons.component, neurons.layers, neurons.neurons])
    return hashlib.sha256(geometry.encode() + b"\n" + neurons.bits).hexdigest()
