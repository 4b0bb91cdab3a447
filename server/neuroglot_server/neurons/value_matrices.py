"""The value rows of a decoder's neurons and the output embedding, as they lie in the bundle's weights.

They are mapped, not read: they take up no memory of the server's own beside the runtime's.
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
"""Value rows that are multiplied at once: those of a float16 bundle are widened first, and into memory of their own."""

Tokens = Mapping[int, float]
"""Tokens, each with what its embedding is multiplied with before they are added up."""


@dataclass(frozen=True, eq=False)
class ValueMatrices:
    """What projects the neurons of a decoder onto tokens.

    Attributes:
        values: `[neurons, hidden]` of every layer.
        output_embedding: `[vocabulary, hidden]`.
        output_scale: what hidden states are multiplied with before they meet the output embedding.
    """

    values: Sequence[NDArray[np.floating]]
    output_embedding: NDArray[np.floating]
    output_scale: float

    @classmethod
    def of_bundle(cls, folder: Path, facts: ModelFacts) -> ValueMatrices:
        """Map those of a bundle's decoder."""
        decoder = next(component for component in facts.components if component.name == DECODER)
        return cls(
            values=[_mapped(folder, matrix) for matrix in decoder.values],
            output_embedding=_mapped(folder, facts.output_embedding),
            output_scale=facts.output_scale,
        )

    def projections(self, rows: Sequence[Tokens]) -> Pieces[NDArray[np.float32]]:
        """v_i . E for every neuron, E being the weighted sum of the output embeddings of each row's tokens.

        It yields after each block of value rows.

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
        """The weighted sum of the output embeddings of tokens, as hidden states meet it, `[hidden]`."""
        embeddings = self.output_embedding[list(tokens)].astype(np.float32)
        weights = np.array([self.output_scale * weight for weight in tokens.values()], dtype=np.float32)
        direction: NDArray[np.float32] = weights @ embeddings
        return direction


class Projections:
    """Projections of what was asked for lately: a task asks for the same few labels again and again.

    Each tenant's are apart, for that something is known already can be timed. Used on any thread.
    """

    def __init__(self, matrices: ValueMatrices, most_bytes: int, *, shared: bool) -> None:
        """Keep up to so many bytes, and where they are shared for all tenants together."""
        self._matrices = matrices
        self._most = most_bytes // (4 * len(matrices.values) * len(matrices.values[0]))
        self._shared = shared
        self._kept: OrderedDict[Hashable, NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def of(self, rows: Sequence[Tokens], tenant: str) -> Pieces[NDArray[np.float32]]:
        """As `ValueMatrices.projections`, but what is kept is not computed again."""
        owner = "" if self._shared else tenant
        keys: list[Hashable] = [(owner, *sorted(tokens.items())) for tokens in rows]
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: tokens for key, tokens in zip(keys, rows, strict=True) if key not in found}
        if missing:
            computed = yield from self._matrices.projections(list(missing.values()))
            found.update(zip(missing, computed, strict=True))
        with self._lock:
            for key in keys:
                self._kept[key] = found[key]
                self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return np.stack([found[key] for key in keys])


def _mapped(folder: Path, matrix: StoredMatrix) -> NDArray[np.floating]:
    dtype = np.dtype(matrix.dtype).newbyteorder("<")
    return np.asarray(np.memmap(folder / matrix.file, dtype, "r", matrix.offset, (matrix.rows, matrix.columns)))
