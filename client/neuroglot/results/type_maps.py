"""Types, contributions and effective scores of neurons, as arrays and neuron sets.

R is the number of rows of the group, in the order of its languages. The four columns of every array over types are
`NeuronType`'s: non_activated, specific, partial_shared, all_shared. Every array is new: change it as you like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neuroglot import arguments
from neuroglot.definitions.packing import unpack_codes
from neuroglot.errors import NotInResultError
from neuroglot.frames import frame
from neuroglot.request.neurons import NeuronSet, NeuronType
from neuroglot.v1 import result_pb2

if TYPE_CHECKING:
    import pandas as pd

_TYPE_LABELS = np.array([one.label for one in NeuronType])


@dataclass(frozen=True, eq=False, repr=False)
class Leading:
    """The neurons of the largest values of each row and layer, the largest first.

    Attributes:
        neurons: which they are, int64 `[R, layers, count]`.
        values: their contributions or effective scores, float64 `[R, layers, count]`.
        codes: their types, `NeuronType`'s values, uint8 `[R, layers, count]`.
        labels: labels of the rows.
    """

    neurons: NDArray[np.int64]
    values: NDArray[np.float64]
    codes: NDArray[np.uint8]
    labels: tuple[str, ...]

    @classmethod
    def from_message(cls, message: result_pb2.LeadingNeurons, labels: tuple[str, ...], layers: int) -> Leading:
        """Read the message."""
        shape = (len(labels), layers, message.count)
        return cls(
            neurons=np.array(message.neurons, dtype=np.int64).reshape(shape),
            values=np.array(message.values, dtype=np.float64).reshape(shape),
            codes=np.frombuffer(message.codes, dtype=np.uint8).reshape(shape).copy(),
            labels=labels,
        )

    def to_frame(self) -> pd.DataFrame:
        """A table with the columns label, layer, rank (from 0), neuron, value and type.

        Raises:
            InstallationError: pandas is not installed.
        """
        rows, layers, ranks = np.indices(self.neurons.shape)
        return frame(
            {
                "label": np.array(self.labels)[rows.ravel()],
                "layer": layers.ravel(),
                "rank": ranks.ravel(),
                "neuron": self.neurons.ravel(),
                "value": self.values.ravel(),
                "type": _TYPE_LABELS[self.codes.ravel()],
            }
        )

    def __repr__(self) -> str:
        _, layers, count = self.neurons.shape
        return f"<Leading: {count} neurons in each of {layers} layers of {', '.join(self.labels)}>"


@dataclass(frozen=True, eq=False, repr=False)
class Contribution:
    """Contributions (Eq. 3) by type, in one component at one threshold.

    Attributes:
        top_k: how many neurons of a layer count as its top contributors.
        top_counts: top contributors of each type, int64 `[R, layers, 4]`; the four add up to `top_k`.
        sums: sum of the contributions of each type, float64 `[R, layers, 4]`; the four add up to 1, unless
            contributions were asked for raw.
        leading: the largest contributors, one by one; None unless asked for.
        labels: labels of the rows.
    """

    top_k: int
    top_counts: NDArray[np.int64]
    sums: NDArray[np.float64]
    leading: Leading | None
    labels: tuple[str, ...]

    def means(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean contribution of a neuron of each type, float64 `[R, layers, 4]`; 0 where a type has no neurons.

        Args:
            counts: neurons of each type, `[layers, 4]`: `Types.counts()`.
        """
        return _means(self.sums, counts)

    def to_frame(self) -> pd.DataFrame:
        """A table with the columns label, layer, type, top_count and sum.

        Raises:
            InstallationError: pandas is not installed.
        """
        return _by_type(self.labels, {"top_count": self.top_counts, "sum": self.sums})

    def __repr__(self) -> str:
        _, layers, _ = self.sums.shape
        return f"<Contribution: top {self.top_k} neurons in each of {layers} layers of {', '.join(self.labels)}>"


@dataclass(frozen=True, eq=False, repr=False)
class EffectiveScores:
    """Effective scores `m_i * (v_i . E_r)` by type, in one component at one threshold.

    A type without neurons has 0 everywhere, a row without an answer NaN.

    Attributes:
        maxima: the largest score of each type, float64 `[R, layers, 4]`.
        minima: the smallest, float64 `[R, layers, 4]`.
        sums: their sum, float64 `[R, layers, 4]`.
        leading: the neurons of the highest scores, one by one; None unless asked for.
        labels: labels of the rows.
    """

    maxima: NDArray[np.float64]
    minima: NDArray[np.float64]
    sums: NDArray[np.float64]
    leading: Leading | None
    labels: tuple[str, ...]

    def means(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean score of a neuron of each type, float64 `[R, layers, 4]`; 0 where a type has no neurons.

        Args:
            counts: neurons of each type, `[layers, 4]`: `Types.counts()`.
        """
        return _means(self.sums, counts)

    def to_frame(self) -> pd.DataFrame:
        """A table with the columns label, layer, type, maximum, minimum and sum.

        Raises:
            InstallationError: pandas is not installed.
        """
        return _by_type(self.labels, {"maximum": self.maxima, "minimum": self.minima, "sum": self.sums})

    def __repr__(self) -> str:
        _, layers, _ = self.sums.shape
        return f"<EffectiveScores: by type in each of {layers} layers of {', '.join(self.labels)}>"


def _by_type(labels: tuple[str, ...], columns: Mapping[str, NDArray[np.int64 | np.float64]]) -> pd.DataFrame:
    """A table of arrays `[R, layers, 4]`: a row for each label, layer and type."""
    rows, layers, types = np.indices(next(iter(columns.values())).shape)
    return frame(
        {
            "label": np.array(labels)[rows.ravel()],
            "layer": layers.ravel(),
            "type": _TYPE_LABELS[types.ravel()],
            **{name: values.ravel() for name, values in columns.items()},
        }
    )


def _means(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums by counts; 0 where nothing is counted."""
    if not isinstance(counts, np.ndarray) or counts.shape != sums.shape[1:]:
        raise arguments.refuse("counts", counts, f"an array of shape {list(sums.shape[1:])}, Types.counts()")
    return np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)


class Types:
    """The types of one component's neurons at one threshold.

    Attributes:
        threshold: a neuron is active where its activation exceeds it.
        labels: labels of the rows, R of them.
        layers: number of layers.
        neurons: neurons a layer.
        near_threshold: activations so close to the threshold that rounding may decide their side, at 0 those above it,
            over all layers and rows.
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
        self._top_bitmaps = tuple(component.thresholds[0].contribution.top_bitmaps)

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

    def to_frame(self) -> pd.DataFrame:
        """A table with the columns layer, type, count and share: a row for each layer and type.

        Raises:
            NotInResultError: the group has one row only.
            InstallationError: pandas is not installed.
        """
        layers, types = np.indices((self.layers, len(NeuronType)))
        return frame(
            {
                "layer": layers.ravel(),
                "type": _TYPE_LABELS[types.ravel()],
                "count": self.counts().ravel(),
                "share": self.shares().ravel(),
            }
        )

    def __repr__(self) -> str:
        rows = (
            f"{self._component}, {self.layers} x {self.neurons}, threshold {self.threshold:g}, {', '.join(self.labels)}"
        )
        if len(self.labels) < 2:
            return f"<Types of {rows}: one row has none>"
        totals = zip(self.counts().sum(axis=0), _TYPE_LABELS, strict=True)
        return f"<Types of {rows}: {', '.join(f'{count} {label}' for count, label in totals)}>"

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

    def __getitem__(self, neuron_type: NeuronType | str) -> NeuronSet:
        """The neurons of a type, given as such or by its label; errors as in `codes`.

        Raises:
            InvalidSelectionError: there is no such type.
        """
        if not isinstance(neuron_type, NeuronType):
            neuron_type = NeuronType.from_label(neuron_type)
        return NeuronSet.from_mask(self.codes() == neuron_type, component=self._component, source=self._source)

    def active(self, label: str) -> NeuronSet:
        """The neurons that are active in a row.

        Raises:
            NotInResultError: there is no such row, or active neurons were not asked for.
        """
        return self._of_row(
            label,
            self._message.active_bitmaps,
            "the active neurons of each row were not asked for: analyze with active=True",
        )

    def dead_counts(self) -> NDArray[np.int64]:
        """Neurons of each layer that are inactive at every position of a row's prompt, int64 `[layers, R]`.

        Raises:
            NotInResultError: they were not asked for.
        """
        if not self._message.dead_counts:
            raise NotInResultError("dead neurons were not asked for: analyze with dead=True")
        return np.array(self._message.dead_counts, dtype=np.int64).reshape(self.layers, len(self.labels))

    def dead(self, label: str) -> NeuronSet:
        """The neurons that are inactive at every position of a row's prompt.

        Raises:
            NotInResultError: there is no such row, or they were not asked for.
        """
        return self._of_row(
            label,
            self._message.dead_bitmaps,
            "the dead neurons of each row were not asked for: analyze with dead=True and active=True",
        )

    def top_contributors(self, label: str) -> NeuronSet:
        """The neurons that contribute most in a row, `contribution.top_k` of each layer; the same at all thresholds.

        Raises:
            NotInResultError: there is no such row, or they were not asked for.
        """
        return self._of_row(
            label,
            self._top_bitmaps,
            "the top contributors of each row were not asked for: analyze with contribution=True and active=True",
        )

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
            leading=self._leading(message),
            labels=self.labels,
        )

    @cached_property
    def effective_score(self) -> EffectiveScores:
        """Effective scores by type.

        Raises:
            NotInResultError: the group has one row only, effective scores were not asked for, or this is an encoder,
                which does not write to where tokens are told apart.
        """
        self._require_types()
        if not self._message.HasField("effective_score"):
            raise NotInResultError(
                "an encoder has no effective scores: it does not write to where tokens are told apart; look at the "
                "decoder's"
                if self._component == "encoder"
                else "effective scores were not asked for: analyze with effective_score=True"
            )
        message = self._message.effective_score
        shape = (len(self.labels), self.layers, len(NeuronType))
        maxima, minima, sums = (
            np.array(values, dtype=np.float64).reshape(shape)
            for values in (message.maxima, message.minima, message.sums)
        )
        return EffectiveScores(maxima, minima, sums, self._leading(message), self.labels)

    def _leading(self, message: result_pb2.ContributionResult | result_pb2.EffectiveScoreResult) -> Leading | None:
        if not message.HasField("leading"):
            return None
        return Leading.from_message(message.leading, self.labels, self.layers)

    def _of_row(self, label: str, bitmaps: Sequence[bytes], unasked: str) -> NeuronSet:
        """One row's set; an error where there is no such row, or with `unasked` where no sets came."""
        if not isinstance(label, str) or label not in self.labels:
            raise NotInResultError(
                f"there is no row {arguments.shown(label)} in this result: it has {', '.join(self.labels)}"
            )
        if not bitmaps:
            raise NotInResultError(unasked)
        bits = bitmaps[self.labels.index(label)]
        return NeuronSet(self._component, self.layers, self.neurons, bits, self._source)

    def _require_types(self) -> None:
        if len(self.labels) < 2:
            raise NotInResultError(
                f"the group has one row only ({', '.join(self.labels)}), and a neuron has a type among two or more: "
                "analyze the same example in several languages"
            )
