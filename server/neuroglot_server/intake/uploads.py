"""Neuron sets that tenants have uploaded, and resolving their names in requests."""

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
"""Memory of a set beside its bits: its name and dictionary entries."""

Lookup = Callable[[str], ByNeuron]
"""Maps the name of an uploaded set to the set; raises `UploadNotFound`."""


class Uploads:
    """The uploaded neuron sets of one model: one LRU cache per tenant."""

    def __init__(self, max_bytes: int, tenant_bytes: int) -> None:
        """Create an empty store. Each set counts with its bits and a fixed overhead.

        Args:
            max_bytes: maximum bytes of all tenants together.
            tenant_bytes: maximum bytes of one tenant; its newest set is kept however large it is.
        """
        self._max_bytes = max_bytes
        self._tenant_bytes = tenant_bytes
        self._sets: dict[str, OrderedDict[str, ByNeuron]] = {}  # by tenant, the least recently used set first
        self._bytes: Counter[str] = Counter()
        self._total = 0

    @property
    def memory(self) -> MemoryUse:
        """Memory of the sets; may be read on any thread."""
        return MemoryUse(self._total, self._max_bytes)

    def add(self, tenant: str, neurons: ByNeuron) -> str:
        """Store a set, and evict the tenant's least recently used sets if it exceeds `tenant_bytes`.

        If all tenants together exceed `max_bytes`, sets of the tenant with the most bytes are evicted.

        Returns:
            The set's name, a hash of its content.
        """
        name = _name(neurons)
        own = self._sets.setdefault(tenant, OrderedDict())
        if name not in own:
            own[name] = neurons
            self._bytes[tenant] += _size(neurons)
            self._total += _size(neurons)
        own.move_to_end(name)
        while self._bytes[tenant] > self._tenant_bytes and len(own) > 1:
            self._drop(tenant)
        while self._total > self._max_bytes:
            candidates = [other for other, sets in self._sets.items() if other != tenant or len(sets) > 1]
            if not candidates:
                break
            self._drop(max(candidates, key=self._bytes.__getitem__))
        return name

    def _drop(self, tenant: str) -> None:
        """Evict the least recently used set of a tenant."""
        _, dropped = self._sets[tenant].popitem(last=False)
        self._bytes[tenant] -= _size(dropped)
        self._total -= _size(dropped)
        if not self._sets[tenant]:
            del self._sets[tenant], self._bytes[tenant]

    def resolve(self, tenant: str, name: str) -> ByNeuron:
        """Return a tenant's set by name.

        Raises:
            UploadNotFound: the tenant has not uploaded it, or it was evicted.
        """
        own = self._sets.get(tenant, OrderedDict())
        if name not in own:
            raise UploadNotFound(name)
        own.move_to_end(name)
        return own[name]


def with_uploads(analysis: Analysis, lookup: Lookup) -> Analysis:
    """Replace the names of uploaded sets in an analysis by the sets.

    Raises:
        UploadNotFound: there is no set of a name.
    """
    if not analysis.variants:
        return analysis
    variants = (
        replace(variant, interventions=interventions_with_uploads(variant.interventions, lookup))
        for variant in analysis.variants
    )
    return replace(analysis, variants=tuple(variants))


def interventions_with_uploads(interventions: Iterable[Intervention], lookup: Lookup) -> tuple[Intervention, ...]:
    """Replace the names of uploaded sets in interventions by the sets; raises as `with_uploads`."""
    return tuple(
        replace(intervention, selection=_with_uploads(intervention.selection, lookup)) for intervention in interventions
    )


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
