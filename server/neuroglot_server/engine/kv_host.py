"""Keys and values in the host's memory, as numpy arrays."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.engine.devices import Device, runtime
from neuroglot_server.engine.graph import Signature
from neuroglot_server.engine.passes import Outputs, scored_positions
from neuroglot_server.engine.steps import BLOCK, KeyValues, RowStep, Sources

Arrays = Sequence[NDArray[np.floating]]
"""Keys and values of a batch, `[rows, heads, tokens, head_size]` each, in the order of the graph's outputs."""


_WORTH_THREADS = 2**23
"""Bytes. Fewer are copied by one thread in less time than it takes to wake others."""

_MOST_COPIERS = 4
"""Threads that copy. Memory is not written faster by more of them; new pages are, which one thread gets one by one."""

_Item = TypeVar("_Item")


class HostMemory:
    """Runs passes of a session whose inputs and outputs are numpy arrays; see `Memory`."""

    def __init__(self, session: Any, signature: Signature, threads: int) -> None:
        """Prepare passes of a session of ONNX Runtime, with as many threads as it has; 0 for one a core."""
        self._session = session
        self._signature = signature
        self._value = runtime(Device("cpu")).OrtValue.ortvalue_from_numpy
        copiers = min(threads or os.cpu_count() or 1, _MOST_COPIERS)
        self._copiers = ThreadPoolExecutor(copiers, thread_name_prefix="copies")
        self._rooms: dict[str, NDArray[np.floating]] = {}

    def run(
        self, steps: Sequence[RowStep], feeds: dict[str, NDArray[np.generic]], names: Sequence[str], options: Any
    ) -> tuple[Outputs, Sequence[KeyValues | None]]:
        """Run one pass."""
        interface = self._signature.interface
        if interface.past:
            feeds.update(self._fed(interface.past, "past", [step.past for step in steps]))
        if interface.cross:
            feeds.update(self._fed(interface.cross, "cross", [step.cross for step in steps]))
        present = interface.present if any(step.keep for step in steps) else ()
        arrays = self._run(steps, feeds, [*names, *present], options)
        return dict(zip(names, arrays, strict=False)), self._kept(steps, arrays[len(names) :])

    def release(self) -> None:
        """Give back what is kept for the next pass."""
        self._rooms.clear()

    def _run(
        self, steps: Sequence[RowStep], feeds: dict[str, NDArray[np.generic]], names: Sequence[str], options: Any
    ) -> Arrays:
        """The outputs of these names."""
        if "logits" not in names:
            arrays: Arrays = self._session.run(names, feeds, options)
            return arrays
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, self._value(np.ascontiguousarray(array)))
        for name in names:
            if name == "logits":
                binding.bind_ortvalue_output(name, self._value(self._logits(steps)))
            else:
                binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding, options)
        return [value.numpy() for value in binding.get_outputs()]

    def _fed(self, names: Sequence[str], kind: str, rows: Sequence[KeyValues]) -> dict[str, NDArray[np.generic]]:
        """The feeds of keys and values: once for all rows that go on from the same, where the graph picks them."""
        if not self._signature.forks:
            return dict(zip(names, self._together(kind, rows), strict=True))
        sources = Sources.of(rows)
        feeds: dict[str, NDArray[np.generic]] = {f"{kind}_rows": sources.places}
        return feeds | dict(zip(names, self._together(kind, sources.different), strict=True))

    def _together(self, kind: str, rows: Sequence[KeyValues]) -> NDArray[np.floating]:
        """Keys and values of rows, padded with zeros on the left: `[2 * layers, rows, heads, longest, head_size]`."""
        signature = self._signature
        width = max(row.length for row in rows)
        together = self._room(kind, (2 * signature.layers, len(rows), signature.heads, width, signature.head_size))

        def copy(index: int) -> None:
            row = rows[index]
            column = width - row.length
            together[:, index, :, :column] = 0
            for piece in row.pieces:
                assert isinstance(piece, np.ndarray)
                together[:, index, :, column : column + piece.shape[2]] = piece
                column += piece.shape[2]

        self._each(copy, range(len(rows)), together.nbytes)
        return together

    def _logits(self, steps: Sequence[RowStep]) -> NDArray[np.floating]:
        """Where logits go: in the work space of the runtime, which grows by doubling, they would take up twice that."""
        return self._room("logits", (len(steps), scored_positions(steps), self._signature.vocabulary))

    def _room(self, kind: str, shape: tuple[int, ...]) -> NDArray[np.floating]:
        """An array that the next pass uses again: getting new pages takes longer than writing on them."""
        size = math.prod(shape)
        room = self._rooms.get(kind)
        if room is None or room.size < size:
            self._rooms.pop(kind, None)
            room = self._rooms[kind] = np.empty(size, self._signature.dtype)
        return room[:size].reshape(shape)

    def _kept(self, steps: Sequence[RowStep], present: Arrays) -> Sequence[KeyValues | None]:
        """What the steps keep, copied, so that none of it holds on to the whole batch."""
        if not present:
            return [None] * len(steps)
        kept: list[KeyValues | None] = []
        blocks: list[_Block] = []
        for row, step in enumerate(steps):
            of_row = _blocks(row, step, present) if step.keep else []
            kept.append(KeyValues(tuple(block.piece for block in of_row)) if step.keep else None)
            blocks += of_row
        self._each(_Block.fill, blocks, sum(block.piece.nbytes for block in blocks))
        return kept

    def _each(self, copy: Callable[[_Item], None], items: Sequence[_Item], size: int) -> None:
        """Copy every item, so many bytes of all."""
        for _ in (map if size < _WORTH_THREADS else self._copiers.map)(copy, items):
            pass  # what a thread raised is raised here


class _Block(NamedTuple):
    """Keys and values of some of a row's new tokens, to be copied.

    Attributes:
        piece: where to, `[2 * layers, heads, tokens, head_size]`. All are made on one thread, for what several threads
            get of the system goes back to it late.
        sources: from where, `[heads, tokens, head_size]` each.
    """

    piece: NDArray[np.floating]
    sources: list[NDArray[np.floating]]

    def fill(self) -> None:
        """Copy."""
        np.stack(self.sources, out=self.piece)


def _blocks(row: int, step: RowStep, present: Arrays) -> list[_Block]:
    """Keys and values of a step's new tokens, in the blocks that others may need: so they are copied only once."""
    new = len(step.tokens)
    blocks = []
    for start, stop in pairwise((0, *range(BLOCK - step.past_length % BLOCK, new, BLOCK), new)):
        sources = [array[row, :, array.shape[2] - new + start : array.shape[2] - new + stop] for array in present]
        blocks.append(_Block(np.empty((len(present), *sources[0].shape), sources[0].dtype), sources))
    return blocks
