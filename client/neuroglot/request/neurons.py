"""Types of neurons and sets of neurons, as analyses return them and interventions select them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neuroglot import arguments
from neuroglot.definitions.packing import pack_bits, unpack_bits
from neuroglot.errors import InvalidSelectionError
from neuroglot.frames import frame

if TYPE_CHECKING:
    import pandas as pd

SET_FORMAT = "neuroglot.neuron_set"
SET_FORMAT_VERSION = 1


class NeuronType(IntEnum):
    """Type of a neuron in a group of L rows, by the number s of rows in which it is active (Eq. 4 to 7).

    The value is the code in packed type maps and the column index in arrays over types.
    """

    NON_ACTIVATED = 0
    """s = 0."""
    SPECIFIC = 1
    """s = 1."""
    PARTIAL_SHARED = 2
    """1 < s < L."""
    ALL_SHARED = 3
    """s = L."""

    @property
    def label(self) -> str:
        """The type in the paper's spelling: `all-shared`."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def from_label(cls, label: str) -> NeuronType:
        """Return the type with a label.

        >>> NeuronType.from_label("all-shared")
        <NeuronType.ALL_SHARED: 3>

        Raises:
            InvalidSelectionError: no type has this label; the message lists the labels.
        """
        for member in cls:
            if member.label == label:
                return member
        raise InvalidSelectionError(
            f"{arguments.shown(label)} is no type of neuron: the types are {', '.join(member.label for member in cls)}"
        )


NON_ACTIVATED = NeuronType.NON_ACTIVATED
SPECIFIC = NeuronType.SPECIFIC
PARTIAL_SHARED = NeuronType.PARTIAL_SHARED
ALL_SHARED = NeuronType.ALL_SHARED


_PAIRS = "pairs (layer, neuron) of integers, [(0, 17)]"


def _pair(name: str, given: object) -> tuple[int, int]:
    """Check a pair (layer, neuron)."""
    pair = arguments.integers(name, given, "a pair (layer, neuron) of integers, (0, 17)", InvalidSelectionError)
    if len(pair) != 2:
        raise arguments.refuse(name, given, "a pair (layer, neuron) of integers, (0, 17)", InvalidSelectionError)
    return pair[0], pair[1]


@dataclass(frozen=True, repr=False)
class NeuronSet:
    """An immutable set of neurons of one component of one model, with the operators of Python's sets.

    >>> early = NeuronSet.from_indices([(0, 3), (1, 3)], component="decoder", layers=2, neurons=5)
    >>> late = NeuronSet.from_indices([(1, 3), (1, 4)], component="decoder", layers=2, neurons=5)
    >>> list(early & late), len(early | late), (0, 3) in early - late
    ([(1, 3)], 3, True)

    Two sets combine if they have the same component and geometry, and the same source; an empty source matches any.
    Two exports of one checkpoint have the same source, so their sets combine.

    Attributes:
        component: `decoder` or `encoder`.
        layers: number of layers of the component.
        neurons: number of neurons per layer.
        bits: one bit per neuron, packed by `neuroglot.definitions.packing.pack_bits` from `[layers, neurons]`.
        source: origin of the model's checkpoint (`bigscience/bloomz-560m`); empty for a set that is bound to no model.

    Raises:
        InvalidSelectionError: the bits do not fit the geometry; from an operator: the sets do not combine.
    """

    component: str
    layers: int
    neurons: int
    bits: bytes = field(repr=False)
    source: str = ""

    def __post_init__(self) -> None:
        """Check that the bits fit the geometry, so that every instance is valid."""
        arguments.text("the component of a neuron set", self.component, InvalidSelectionError)
        arguments.text("the source of a neuron set", self.source, InvalidSelectionError)
        for name in ("layers", "neurons"):
            number = arguments.integer(f"{name} of a neuron set", getattr(self, name), InvalidSelectionError)
            object.__setattr__(self, name, number)
        if not isinstance(self.bits, bytes):
            raise arguments.refuse("bits of a neuron set", self.bits, "packed bytes", InvalidSelectionError)
        if min(self.layers, self.neurons) < 1:
            raise InvalidSelectionError(f"no neuron set: {self.layers} layers of {self.neurons} neurons hold none")
        try:
            self.to_mask()
        except ValueError as error:
            raise InvalidSelectionError(f"no neuron set: {error}") from None

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_], *, component: str, source: str = "") -> NeuronSet:
        """Make a set from a bool mask `[layers, neurons]` that is true at its neurons.

        Raises:
            InvalidSelectionError: the mask is not a bool array of two dimensions.
        """
        if not isinstance(mask, np.ndarray):
            raise arguments.refuse("mask", mask, "a bool array of shape [layers, neurons]", InvalidSelectionError)
        if mask.ndim != 2 or mask.dtype != np.bool_:
            raise InvalidSelectionError(
                f"a mask of neurons is a bool array of shape [layers, neurons], and this is {mask.dtype} of shape "
                f"{list(mask.shape)}"
            )
        return cls(component, mask.shape[0], mask.shape[1], pack_bits(mask), source)

    @classmethod
    def from_indices(
        cls, indices: Iterable[tuple[int, int]], *, component: str, layers: int, neurons: int, source: str = ""
    ) -> NeuronSet:
        """Make a set from pairs (layer, neuron), both counted from 0.

        Raises:
            InvalidSelectionError: the component has no such layer or neuron, or the items are not pairs of integers.
        """
        shape = tuple(
            arguments.count(name, value, 1, InvalidSelectionError)
            for name, value in (("layers", layers), ("neurons", neurons))
        )
        mask = np.zeros(shape, dtype=np.bool_)
        for index, pair in enumerate(arguments.items("indices", indices, _PAIRS, InvalidSelectionError)):
            layer, neuron = _pair(f"indices[{index}]", pair)
            for what, number, count in (("layer", layer, layers), ("neuron", neuron, neurons)):
                if not 0 <= number < count:
                    raise InvalidSelectionError(
                        f"{what} {number} of {component!r} does not exist: it has {count} (0 to {count - 1})"
                        + (" a layer" if what == "neuron" else "")
                    )
            mask[layer, neuron] = True
        return cls.from_mask(mask, component=component, source=source)

    def to_mask(self) -> NDArray[np.bool_]:
        """Return a new bool array `[layers, neurons]`, true at the set's neurons."""
        return unpack_bits(self.bits, (self.layers, self.neurons))

    def counts(self) -> NDArray[np.int64]:
        """Count the set's neurons in each layer, int64 `[layers]`."""
        counts: NDArray[np.int64] = self.to_mask().sum(axis=1, dtype=np.int64)
        return counts

    def to_frame(self) -> pd.DataFrame:
        """Return a table of the set's neurons with the columns layer and neuron.

        Raises:
            InstallationError: pandas is not installed.
        """
        layers, neurons = np.nonzero(self.to_mask())
        return frame({"layer": layers, "neuron": neurons})

    def bound_to(self, source: str) -> NeuronSet:
        """Return the set bound to another model of the same geometry, such as a fine-tuned version of a base model."""
        return replace(self, source=source)

    def __or__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, np.bitwise_or)

    def __and__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, np.bitwise_and)

    def __xor__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, np.bitwise_xor)

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, lambda ours, theirs: ours & ~theirs)

    def __invert__(self) -> NeuronSet:
        return replace(self, bits=pack_bits(~self.to_mask()))

    def __le__(self, other: NeuronSet) -> bool:
        return not self - other

    def __lt__(self, other: NeuronSet) -> bool:
        return self <= other and self.bits != other.bits

    def __len__(self) -> int:
        return int.from_bytes(self.bits, "little").bit_count()

    def __contains__(self, neuron: tuple[int, int]) -> bool:
        layer, index = _pair("neuron", neuron)
        if not (0 <= layer < self.layers and 0 <= index < self.neurons):
            return False
        return bool(self.bits[layer * -(-self.neurons // 8) + index // 8] >> index % 8 & 1)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over pairs (layer, neuron), in ascending order."""
        return ((int(layer), int(neuron)) for layer, neuron in np.argwhere(self.to_mask()))

    def __repr__(self) -> str:
        return f"<NeuronSet: {len(self)} of {self.layers * self.neurons} neurons of {self._origin}>"

    @property
    def _origin(self) -> str:
        source = f", {self.source}" if self.source else ""
        return f"{self.component} ({self.layers} x {self.neurons}{source})"

    def _combined(
        self, other: NeuronSet, operation: Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.uint8]]
    ) -> NeuronSet:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        same_geometry = (self.component, self.layers, self.neurons) == (other.component, other.layers, other.neurons)
        sources = {self.source, other.source} - {""}
        if not same_geometry or len(sources) > 1:
            raise InvalidSelectionError(
                f"neurons of {self._origin} do not combine with neurons of {other._origin}: component, layers, neurons "
                "and source must be the same (`bound_to` moves a set to a model of the same geometry)"
            )
        ours, theirs = (np.frombuffer(one.bits, dtype=np.uint8) for one in (self, other))
        return replace(self, bits=operation(ours, theirs).tobytes(), source="".join(sources))

    def save(self, path: str | Path) -> None:
        """Write the set to a file: a header line of JSON, then the packed bits."""
        header = {
            "format": SET_FORMAT,
            "version": SET_FORMAT_VERSION,
            "source": self.source,
            "component": self.component,
            "layers": self.layers,
            "neurons": self.neurons,
            "count": len(self),
            "sha256": hashlib.sha256(self.bits).hexdigest(),
        }
        Path(path).write_bytes(json.dumps(header, ensure_ascii=False).encode() + b"\n" + self.bits)

    @classmethod
    def load(cls, path: str | Path) -> NeuronSet:
        """Read a set that `save` wrote.

        Raises:
            InvalidSelectionError: the file is not a neuron set, has another format version, or is damaged.
        """
        line, _, bits = Path(path).read_bytes().partition(b"\n")
        try:
            header = json.loads(line)
            written_as, version = header["format"], header["version"]
        except (ValueError, KeyError, TypeError):
            written_as, version = None, None
        if written_as != SET_FORMAT:
            raise InvalidSelectionError(f"{path} holds no neuron set: give a file that `NeuronSet.save` wrote")
        if version != SET_FORMAT_VERSION:
            raise InvalidSelectionError(
                f"{path} has version {version} of the format, this neuroglot reads version {SET_FORMAT_VERSION}: "
                "upgrade neuroglot"
            )
        if hashlib.sha256(bits).hexdigest() != header.get("sha256"):
            raise InvalidSelectionError(f"{path} is damaged: its {len(bits)} bytes of neurons are not those written")
        try:
            return cls(header["component"], header["layers"], header["neurons"], bits, header["source"])
        except (KeyError, TypeError, InvalidSelectionError) as error:
            raise InvalidSelectionError(
                f"{path} is damaged: its first line lacks or garbles a field ({error})"
            ) from None
