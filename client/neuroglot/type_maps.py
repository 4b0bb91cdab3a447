"""Types and contributions of neurons, as arrays and neuron sets.

R is the number of rows of the group, in the order of its languages. The four columns of every array over types are
`NeuronType`'s: non_activated, specific, partial_shared, all_shared. Every array is new: change it as you like.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from neuroglot.errors import NotInResultError
from neuroglot.neurons import NeuronSet, NeuronType
from neuroglot.packing import unpack_codes
from neuroglot.v1 import result_pb2


@dataclass(frozen=True, eq=False)
class Contribution:
    """Contributions (Eq. 3) by type, in one component at one threshold.

    Attributes:
        top_k: how many neurons of a layer count as its top contributors.
        top_counts: top contributors of each type, int64 `[R, layers, 4]`; the four add up to `top_k`.
        sums: sum of the contributions of each type, float64 `[R, layers, 4]`; the four add up to 1.
    """

    top_k: int
    top_counts: NDArray[np.int64]
    sums: NDArray[np.float64]

    def means(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean contribution of a neuron of each type, float64 `[R, layers, 4]`; 0 where a type has no neurons.

        Args:
            counts: neurons of each type, `[layers, 4]`: `Types.counts()`.
        """
        return np.divide(self.sums, counts, out=np.zeros_like(self.sums), where=counts > 0)


class Types:
    """The types of one component's neurons at one threshold.

    Attributes:
        threshold: a neuron is active where its activation exceeds it.
        labels: labels of the rows, R of them.
        layers: number of layers.
        neurons: neurons a layer.
        near_threshold: activations so close to the threshold that rounding may decide their side, over all layers and
            rows.
    """

    def __init__(
        self,
        message: result_pb2.ThresholdResult,
        component: result_pb2.ComponentResult,
        labels: tuple[str, ...],
        source: str,
    ) -> None:
        self._message = message
        self._component = component.component
        self._source = source
        self.threshold = message.threshold
        self.labels = labels
        self.layers = component.layers
        self.neurons = component.neurons
        self.near_threshold = message.near_threshold

    def counts(self) -> NDArray[np.int64]:
        """Neurons of each type, int64 `[layers, 4]`; each row adds up to `neurons`.

        Raises:
            NotInResultError: the group has one row only.
        """
        self._require_types()
        return np.array(self._message.type_counts, dtype=np.int64).reshape(self.layers, len(NeuronType))

    def shares(self) -> NDArray[np.float64]:
        """Share of the layer's neurons that are of each type, float64 `[layers, 4]`; each row adds up to 1.

        Raises:
            NotInResultError: the group has one row only.
        """
        return self.counts() / self.neurons

    def active_counts(self) -> NDArray[np.int64]:
        """Active neurons of each layer in each row, int64 `[layers, R]`."""
        return np.array(self._message.active_counts, dtype=np.int64).reshape(self.layers, len(self.labels))

    def codes(self) -> NDArray[np.uint8]:
        """The type of every neuron, a `NeuronType`'s value, uint8 `[layers, neurons]`.

        Raises:
            NotInResultError: the group has one row only, or the map was not asked for.
        """
        self._require_types()
        if not self._message.type_map:
            raise NotInResultError("the types of single neurons were not asked for: analyze with type_map=True")
        return unpack_codes(self._message.type_map, (self.layers, self.neurons))

    def __getitem__(self, neuron_type: NeuronType) -> NeuronSet:
        """The neurons of a type; errors as in `codes`."""
        return NeuronSet.from_mask(self.codes() == neuron_type, component=self._component, source=self._source)

    def active(self, label: str) -> NeuronSet:
        """The neurons that are active in a row.

        Raises:
            NotInResultError: there is no such row, or active neurons were not asked for.
        """
        if label not in self.labels:
            raise NotInResultError(f"there is no row {label!r} in this result: it has {', '.join(self.labels)}")
        if not self._message.active_bitmaps:
            raise NotInResultError("the active neurons of each row were not asked for: analyze with active=True")
        bits = self._message.active_bitmaps[self.labels.index(label)]
        return NeuronSet(self._component, self.layers, self.neurons, bits, self._source)

    @cached_property
    def contribution(self) -> Contribution:
        """Contributions by type.

        Raises:
            NotInResultError: the group has one row only, or contributions were not asked for.
        """
        self._require_types()
        if not self._message.HasField("contribution"):
            raise NotInResultError("contributions were not asked for: analyze with contribution=True")
        shape = (len(self.labels), self.layers, len(NeuronType))
        message = self._message.contribution
        return Contribution(
            top_k=message.top_k,
            top_counts=np.array(message.top_counts, dtype=np.int64).reshape(shape),
            sums=np.array(message.sums, dtype=np.float64).reshape(shape),
        )

    def _require_types(self) -> None:
        if len(self.labels) < 2:
            raise NotInResultError(
                f"the group has one row only ({', '.join(self.labels)}), and a neuron has a type among two or more: "
                "analyze the same example in several languages"
            )
