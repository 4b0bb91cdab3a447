"""Types, contributions and effective scores of neurons, as arrays and neuron sets.

R is the number of rows of the group, in the order of its languages. The four columns of every array over types are
`NeuronType`'s: non_activated, specific, partial_shared, all_shared. Every returned array is a copy and may be modified.
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
    """The neurons with the largest values in each row and layer, in descending order.

    Attributes:
        neurons: indices of the neurons, int64 `[R, layers, count]`.
        values: contributions or effective scores of the neurons, float64 `[R, layers, count]`.
        codes: types of the neurons as `NeuronType` values, uint8 `[R, layers, count]`.
        labels: labels of the rows.
    """

    neurons: NDArray[np.int64]
    values: NDArray[np.float64]
    codes: NDArray[np.uint8]
    labels: tuple[str, ...]

    @classmethod
    def from_message(cls, message: result_pb2.LeadingNeurons, labels: tuple[str, ...], layers: int) -> Leading:
        """Decode the message."""
        shape = (len(labels), layers, message.count)
        return cls(
            neurons=np.array(message.neurons, dtype=np.int64).reshape(shape),
            values=np.array(message.values, dtype=np.float64).reshape(shape),
            codes=np.frombuffer(message.codes, dtype=np.uint8).reshape(shape).copy(),
            labels=labels,
        )

    def to_frame(self) -> pd.DataFrame:
        """Return a table with the columns label, layer, rank (from 0), neuron, value and type.

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
        top_k: number of neurons of a layer that count as its top contributors.
        top_counts: top contributors of each type, int64 `[R, layers, 4]`; the four add up to `top_k`.
        sums: sum of the contributions of each type, float64 `[R, layers, 4]`; the four add up to 1, unless
            raw contributions were requested.
        leading: the individual largest contributors; None unless requested.
        labels: labels of the rows.
    """

    top_k: int
    top_counts: NDArray[np.int64]
    sums: NDArray[np.float64]
    leading: Leading | None
    labels: tuple[str, ...]

    def means(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean contribution per neuron of each type, float64 `[R, layers, 4]`; 0 for a type without neurons.

        Args:
            counts: number of neurons of each type, int64 `[layers, 4]`, from `Types.counts`.
        """
        return _means(self.sums, counts)

    def to_frame(self) -> pd.DataFrame:
        """Return a table with the columns label, layer, type, top_count and sum.

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

    Values are 0 for a type without neurons, and NaN for a row without an answer.

    Attributes:
        maxima: largest score of each type, float64 `[R, layers, 4]`.
        minima: smallest score of each type, float64 `[R, layers, 4]`.
        sums: sum of the scores of each type, float64 `[R, layers, 4]`.
        leading: the individual neurons with the highest scores; None unless requested.
        labels: labels of the rows.
    """

    maxima: NDArray[np.float64]
    minima: NDArray[np.float64]
    sums: NDArray[np.float64]
    leading: Leading | None
    labels: tuple[str, ...]

    def means(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean score per neuron of each type, float64 `[R, layers, 4]`; 0 for a type without neurons.

        Args:
            counts: number of neurons of each type, int64 `[layers, 4]`, from `Types.counts`.
        """
        return _means(self.sums, counts)

    def to_frame(self) -> pd.DataFrame:
        """Return a table with the columns label, layer, type, maximum, minimum and sum.

        Raises:
            InstallationError: pandas is not installed.
        """
        return _by_type(self.labels, {"maximum": self.maxima, "minimum": self.minima, "sum": self.sums})

    def __repr__(self) -> str:
        _, layers, _ = self.sums.shape
        return f"<EffectiveScores: by type in each of {layers} layers of {', '.join(self.labels)}>"


def _by_type(labels: tuple[str, ...], columns: Mapping[str, NDArray[np.int64 | np.float64]]) -> pd.DataFrame:
    """Flatten arrays `[R, layers, 4]` into a table: a row for each label, layer and type."""
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
    """Divide sums by counts; 0 where a count is 0."""
    if not isinstance(counts, np.ndarray) or counts.shape != sums.shape[1:]:
        raise arguments.refuse("counts", counts, f"an array of shape {list(sums.shape[1:])}, Types.counts()")
    return np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)


class Types:
    """The types of one component's neurons at one threshold.

    Attributes:
        threshold: a neuron is active where its activation exceeds it.
        labels: labels of the rows, R of them.
        layers: number of layers.
        neurons: number of neurons per layer.
        near_threshold: number of activations, over all layers and rows, so close to the threshold that rounding may
            decide their side; at threshold 0 only those above it.
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
        """Count the neurons of each type, int64 `[layers, 4]`; each layer adds up to `neurons`.

        Raises:
            NotInResultError: the group has only one row.
        """
        self._require_types()
        return np.array(self._message.type_counts, dtype=np.int64).reshape(self.layers, len(NeuronType))

    def shares(self) -> NDArray[np.float64]:
        """Return each type's share of the layer's neurons, float64 `[layers, 4]`; each layer adds up to 1.

        Raises:
            NotInResultError: the group has only one row.
        """
        return self.counts() / self.neurons

    def to_frame(self) -> pd.DataFrame:
        """Return a table with the columns layer, type, count and share: a row for each layer and type.

        Raises:
            NotInResultError: the group has only one row.
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
        """Count the active neurons of each layer in each row, int64 `[layers, R]`."""
        return np.array(self._message.active_counts, dtype=np.int64).reshape(self.layers, len(self.labels))

    def codes(self) -> NDArray[np.uint8]:
        """Return the type of every neuron as a `NeuronType` value, uint8 `[layers, neurons]`.

        Raises:
            NotInResultError: the group has only one row, or the type map was not requested.
        """
        self._require_types()
        if not self._message.type_map:
            raise NotInResultError("the types of single neurons were not asked for: analyze with type_map=True")
        return unpack_codes(self._message.type_map, (self.layers, self.neurons))

    def __getitem__(self, neuron_type: NeuronType | str) -> NeuronSet:
        """Return the neurons of a type.

        Args:
            neuron_type: a `NeuronType`, or its label.

        Raises:
            InvalidSelectionError: the type is unknown.
            NotInResultError: the group has only one row, or the type map was not requested.
        """
        if not isinstance(neuron_type, NeuronType):
            neuron_type = NeuronType.from_label(neuron_type)
        return NeuronSet.from_mask(self.codes() == neuron_type, component=self._component, source=self._source)

    def active(self, label: str) -> NeuronSet:
        """Return the neurons that are active in a row.

        Raises:
            NotInResultError: the result has no row of this label, or active neurons were not requested.
        """
        return self._of_row(
            label,
            self._message.active_bitmaps,
            "the active neurons of each row were not asked for: analyze with active=True",
        )

    def dead_counts(self) -> NDArray[np.int64]:
        """Count the neurons of each layer that are inactive at every position of a row's prompt, int64 `[layers, R]`.

        Raises:
            NotInResultError: dead neurons were not requested.
        """
        if not self._message.dead_counts:
            raise NotInResultError("dead neurons were not asked for: analyze with dead=True")
        return np.array(self._message.dead_counts, dtype=np.int64).reshape(self.layers, len(self.labels))

    def dead(self, label: str) -> NeuronSet:
        """Return the neurons that are inactive at every position of a row's prompt.

        Raises:
            NotInResultError: the result has no row of this label, or dead neurons were not requested.
        """
        return self._of_row(
            label,
            self._message.dead_bitmaps,
            "the dead neurons of each row were not asked for: analyze with dead=True and active=True",
        )

    def top_contributors(self, label: str) -> NeuronSet:
        """Return a row's top contributors, `contribution.top_k` of each layer; the same at all thresholds.

        Raises:
            NotInResultError: the result has no row of this label, or top contributors were not requested.
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
            NotInResultError: the group has only one row, or contributions were not requested.
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
            NotInResultError: the group has only one row, effective scores were not requested, or the component is an
                encoder, whose neurons do not write to the decoder's residual stream.
        """
        self._require_types()
        if not self._message.HasField("effective_score"):
            raise NotInResultError(
                "an encoder has no effective scores: its neurons do not write to the decoder's residual stream; use "
                "those of the decoder"
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

    def _of_row(self, label: str, bitmaps: Sequence[bytes], not_requested: str) -> NeuronSet:
        """Return one row's set; raise for an unknown label, or with the message `not_requested` without bitmaps."""
        if not isinstance(label, str) or label not in self.labels:
            raise NotInResultError(
                f"there is no row {arguments.shown(label)} in this result: it has {', '.join(self.labels)}"
            )
        if not bitmaps:
            raise NotInResultError(not_requested)
        bits = bitmaps[self.labels.index(label)]
        return NeuronSet(self._component, self.layers, self.neurons, bits, self._source)

    def _require_types(self) -> None:
        if len(self.labels) < 2:
            raise NotInResultError(
                f"the group has one row only ({', '.join(self.labels)}), and a neuron has a type among two or more: "
                "analyze the same example in several languages"
            )
