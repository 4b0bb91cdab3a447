"""Keys and values in a device's memory: between passes, they never leave it.

Those of a row lie in pieces `[2 * layers, 1, heads, tokens, head_size]`, those of a batch in one block with an entry a
row. A pass reads its past from a block and writes what it gives into another; both are bound layer by layer, by the
address at which a layer begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.engine.devices import Device
from neuroglot_server.engine.graph import Signature
from neuroglot_server.engine.kv_graphs import Assembly
from neuroglot_server.engine.passes import Outputs
from neuroglot_server.engine.steps import Ending, KeyValues, Piece, RowStep, Sources


class DevicePiece:
    """Keys and values of some tokens of one row; to be sliced and copied like `[2 * layers, heads, tokens, head_size]`.

    Attributes:
        shape: that.
    """

    def __init__(self, value: Any, tokens: range, assembly: Assembly) -> None:
        """Stand for some tokens of what lies on a device; nothing is copied."""
        self._value = value
        self._tokens = tokens
        self._assembly = assembly
        layers, _, heads, _, head_size = value.shape()
        self.shape = (layers, heads, len(tokens), head_size)

    @property
    def nbytes(self) -> int:
        """What they take up, in bytes."""
        return math.prod(self.shape) * self._assembly.dtype.itemsize

    def __getitem__(self, slices: tuple[slice, slice, slice]) -> DevicePiece:
        """Some of the tokens; as of an array, `piece[:, :, start:stop]`."""
        everything, heads, tokens = slices
        if not everything == heads == slice(None):
            raise ValueError(f"got {slices}, expected piece[:, :, start:stop]: only tokens can be cut off")
        return DevicePiece(self._value, self._tokens[tokens], self._assembly)

    def copy(self) -> DevicePiece:
        """The same tokens, by themselves."""
        (value,) = self._assembly.cut(self._value, [(0, self._tokens)])
        return DevicePiece(value, range(len(self._tokens)), self._assembly)

    @property
    def value(self) -> Any:
        """These tokens and no others, on the device."""
        return self._value if len(self._tokens) == self._value.shape()[3] else self.copy().value


class Last(NamedTuple):
    """Keys and values, of past and new tokens, that the last pass gave.

    They are kept after a pass of one new token a row, as in generation: the next one is likely to run the same rows,
    and this is then its past as it stands. (After passes of several tokens a row there would be padding in between.)

    Attributes:
        batch: stands for the pass in `Ending.batch`; what is kept of its rows does not hold on to the whole.
        rows: how many it had.
        longest: tokens of past and new of the longest.
        block: what it gave.
    """

    batch: object
    rows: int
    longest: int
    block: Any

    def is_past_of(self, steps: Sequence[RowStep]) -> bool:
        """Whether these steps go on where the pass ended: all of its rows, in their order."""
        endings = [step.past.ending for step in steps]
        rows = [ending.row for ending in endings if ending is not None and ending.batch is self.batch]
        return rows == [*range(self.rows)] and max(step.past_length for step in steps) == self.longest


class DeviceMemory:
    """Runs passes of a session whose keys and values stay on its device; see `Memory`.

    Masks and ids are copied to the device, and what is wanted of neurons and logits is copied from it.
    """

    def __init__(self, session: Any, signature: Signature, device: Device) -> None:
        """Prepare passes of a session of ONNX Runtime."""
        self._session = session
        self._signature = signature
        self._device = device
        self._assembly = Assembly(device, signature.dtype)
        self._last: Last | None = None

    def run(
        self, steps: Sequence[RowStep], feeds: dict[str, NDArray[np.generic]], names: Sequence[str], options: Any
    ) -> tuple[Outputs, Sequence[KeyValues | None]]:
        """Run one pass."""
        interface = self._signature.interface
        binding = self._session.io_binding()
        whole = not self._signature.trailing or _goes_on(steps)
        if self._signature.trailing and whole:
            feeds["present_from"] = np.zeros(1, np.int64)
        past = cross = None
        if interface.past:
            past = self._past(steps, feeds)
        if interface.cross:
            cross = self._block([step.cross for step in steps], "cross_rows", feeds)
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, self._assembly.of_host(array))
        for name in names:
            binding.bind_output(name, "cpu")
        self._bind(binding.bind_input, interface.past, past)
        self._bind(binding.bind_input, interface.cross, cross)
        present = None
        if any(step.keep for step in steps):
            longest = max(len(step.tokens) for step in steps if step.keep or whole)
            if past is not None and whole:
                longest += past.shape()[3]
            present = self._assembly.empty(self._shape(len(steps), longest, len(interface.present)))
            self._bind(binding.bind_output, interface.present, present)
        self._session.run_with_iobinding(binding, options)
        arrays = [value.numpy() for value in binding.get_outputs()[: len(names)]]
        return dict(zip(names, arrays, strict=True)), self._kept(steps, present)

    def release(self) -> None:
        """Give back what the next pass may go on from; what rows keep of it is cut off it as if there were others."""
        self._last = None

    def _shape(self, rows: int, tokens: int, parts: int) -> tuple[int, ...]:
        return (parts, rows, self._signature.heads, tokens, self._signature.head_size)

    def _bind(self, bind: Any, names: Sequence[str], block: Any) -> None:
        """Bind the layers of a block to inputs or outputs."""
        if block is None:
            return
        shape = block.shape()[1:]
        stride = math.prod(shape) * self._signature.dtype.itemsize
        for index, name in enumerate(names):
            address = block.data_ptr() + index * stride
            bind(name, self._device.kind, self._device.index, self._signature.dtype, shape, address)

    def _past(self, steps: Sequence[RowStep], feeds: dict[str, NDArray[np.generic]]) -> Any:
        last, self._last = self._last, None
        if last is not None and last.is_past_of(steps):
            return last.block
        return self._block([step.past for step in steps], "past_rows", feeds)

    def _block(self, rows: Sequence[KeyValues], name: str, feeds: dict[str, NDArray[np.generic]]) -> Any:
        """Keys and values that rows go on from, padded with zeros on the left; the graph is told who takes which.

        Those of older exports take those of every row; then rows that fork from the same are stacked once.
        """
        width = max(row.length for row in rows)
        sources = Sources.of(rows)
        index = sources.places
        if self._signature.forks:
            feeds[name] = index
            index = np.arange(len(sources.different))
        parts = 2 * self._signature.layers
        if not width:
            return self._assembly.empty(self._shape(len(index), 0, parts))
        nothing = self._assembly.empty(self._shape(1, 0, parts))
        values = [self._assembly.joined(list(map(_whole, row.pieces)) or [nothing]) for row in sources.different]
        return self._assembly.stacked(values, width, index.tolist())

    def _kept(self, steps: Sequence[RowStep], present: Any) -> Sequence[KeyValues | None]:
        """What the steps keep, copied, so that none of it holds on to the whole batch."""
        if present is None:
            return [None] * len(steps)
        if self._signature.interface.past and _goes_on(steps):
            self._last = Last(object(), len(steps), max(step.past_length for step in steps) + 1, present)
        end = present.shape()[3]
        rows = [row for row, step in enumerate(steps) if step.keep]
        values = self._assembly.cut(present, [(row, range(end - len(steps[row].tokens), end)) for row in rows])
        kept: list[KeyValues | None] = [None] * len(steps)
        for row, value in zip(rows, values, strict=True):
            piece = DevicePiece(value, range(len(steps[row].tokens)), self._assembly)
            kept[row] = KeyValues((piece,), None if self._last is None else Ending(self._last.batch, row))
        return kept


def _whole(piece: Piece) -> Any:
    assert isinstance(piece, DevicePiece)
    return piece.value


def _goes_on(steps: Sequence[RowStep]) -> bool:
    """Whether a pass is of one new token a row, of which all go on: what it gives as a whole is the next one's past."""
    return all(step.keep and len(step.tokens) == 1 for step in steps)
