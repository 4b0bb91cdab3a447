"""A decoder's value rows and output embedding, memory-mapped from the bundle's weights.

The mapping takes no memory in addition to the runtime's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from neuroglot.definitions.bundle import ModelFacts, StoredMatrix
from neuroglot_server.core import DECODER
from neuroglot_server.kernels.kernel_thread import Pieces

_BLOCK = 1024
"""Value rows per multiplication. Those of a float16 bundle are copied to float32 first, one block at a time."""

Tokens = Mapping[int, float]
"""Token ids and the weights of their output embeddings in a sum."""


@dataclass(frozen=True, eq=False)
class ValueMatrices:
    """Projects the neurons of a decoder onto tokens.

    Attributes:
        values: value rows of each layer, `[neurons, hidden]`.
        output_embedding: `[vocabulary, hidden]`.
        output_scale: factor of hidden states before the output embedding.
    """

    values: Sequence[NDArray[np.floating]]
    output_embedding: NDArray[np.floating]
    output_scale: float

    @classmethod
    def of_bundle(cls, folder: Path, facts: ModelFacts) -> ValueMatrices:
        """Map the matrices of a bundle's decoder."""
        decoder = next(component for component in facts.components if component.name == DECODER)
        return cls(
            values=[_mapped(folder, matrix) for matrix in decoder.values],
            output_embedding=_mapped(folder, facts.output_embedding),
            output_scale=facts.output_scale,
        )

    def projections(self, rows: Sequence[Tokens]) -> Pieces[NDArray[np.float32]]:
        """Compute v_i . E for every neuron, where E is the weighted sum of the output embeddings of a row's tokens.

        Yields after each block of value rows.

        Returns:
            float32 `[rows, layers, neurons]`.
        """
        directions = np.stack([self._direction(tokens) for tokens in rows])
        neurons = len(self.values[0])
        found = np.empty((len(rows), len(self.values), neurons), dtype=np.float32)
        for layer, matrix in enumerate(self.values):
            for start in range(0, neurons, _BLOCK):
                block = matrix[start : start + _BLOCK].astype(np.float32, copy=False)
                np.matmul(directions, block.T, out=found[:, layer, start : start + _BLOCK])
                yield
        return found

    def _direction(self, tokens: Tokens) -> NDArray[np.float32]:
        """The weighted sum of the tokens' output embeddings, times the output scale, float32 `[hidden]`."""
        embeddings = self.output_embedding[list(tokens)].astype(np.float32)
        weights = np.array([self.output_scale * weight for weight in tokens.values()], dtype=np.float32)
        direction: NDArray[np.float32] = weights @ embeddings
        return direction


class Projections:
    """An LRU cache of projections: the rows of a task often have the same few labels.

    Tenants have separate entries unless the cache is shared, because a hit can be told from its latency. Thread-safe.
    """

    def __init__(self, matrices: ValueMatrices, max_bytes: int, *, shared: bool) -> None:
        """Create an empty cache.

        Args:
            matrices: compute the projections.
            max_bytes: the capacity.
            shared: whether tenants share entries.
        """
        self._matrices = matrices
        self._max_entries = max_bytes // (4 * len(matrices.values) * len(matrices.values[0]))
        self._shared = shared
        self._cached: OrderedDict[Hashable, NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def of(self, rows: Sequence[Tokens], tenant: str) -> Pieces[NDArray[np.float32]]:
        """Like `ValueMatrices.projections`, but computes only the rows that are not cached."""
        owner = "" if self._shared else tenant
        keys: list[Hashable] = [(owner, *sorted(tokens.items())) for tokens in rows]
        with self._lock:
            found = {key: self._cached[key] for key in keys if key in self._cached}
        missing = {key: tokens for key, tokens in zip(keys, rows, strict=True) if key not in found}
        if missing:
            computed = yield from self._matrices.projections(list(missing.values()))
            found.update(zip(missing, computed, strict=True))
        with self._lock:
            for key in keys:
                self._cached[key] = found[key]
                self._cached.move_to_end(key)
            while len(self._cached) > self._max_entries:
                self._cached.popitem(last=False)
        return np.stack([found[key] for key in keys])


def _mapped(folder: Path, matrix: StoredMatrix) -> NDArray[np.floating]:
    dtype = np.dtype(matrix.dtype).newbyteorder("<")
    return np.asarray(np.memmap(folder / matrix.file, dtype, "r", matrix.offset, (matrix.rows, matrix.columns)))
