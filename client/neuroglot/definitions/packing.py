"""Packed arrays of neurons: how bits and type codes travel and are stored.

Both pack along the last axis, neurons; the lowest bits of a byte hold the first neuron, and each layer starts on a
byte, so that a layer can be cut out without shifting. What is left of a layer's last byte is 0. For 10 neurons:

    bits   neuron 0 is bit 0 of byte 0, neuron 8 is bit 0 of byte 1             2 bytes a layer
    codes  neuron 0 is bits 0-1 of byte 0, neuron 4 is bits 0-1 of byte 1       3 bytes a layer
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SHIFTS = np.array([0, 2, 4, 6], dtype=np.uint8)
_LARGEST_CODE = 3


def pack_bits(mask: NDArray[np.bool_]) -> bytes:
    """Pack one bit a neuron.

    >>> pack_bits(np.array([[True, False, True], [False, False, True]])).hex()
    '0504'

    Args:
        mask: `[..., layers, neurons]`.

    Returns:
        `ceil(neurons / 8)` bytes for each layer, in the order of the leading axes.
    """
    return np.packbits(np.asarray(mask, dtype=np.bool_), axis=-1, bitorder="little").tobytes()


def unpack_bits(packed: bytes, shape: Sequence[int]) -> NDArray[np.bool_]:
    """Undo `pack_bits`.

    >>> unpack_bits(bytes.fromhex("0504"), (2, 3)).astype(int).tolist()
    [[1, 0, 1], [0, 0, 1]]

    Args:
        packed: what `pack_bits` gave.
        shape: `(..., layers, neurons)`.

    Returns:
        A new array of that shape.

    Raises:
        ValueError: the number of bytes does not fit the shape, or a bit past the last neuron is set.
    """
    neurons = shape[-1]
    rows = check_bits(packed, shape)
    bits = np.unpackbits(rows, axis=-1, bitorder="little").view(np.bool_)
    return bits[..., :neurons].copy()


def check_bits(packed: bytes, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Refuse what `unpack_bits` refuses, without unpacking it.

    Returns:
        A view of the bytes, `[..., layers, bytes a layer]`.

    Raises:
        ValueError: as `unpack_bits`.
    """
    neurons = shape[-1]
    rows = _packed_rows(packed, shape, neurons_per_byte=8)
    if used := neurons % 8:
        _refuse_padding(rows[..., -1] >> np.uint8(used), neurons)
    return rows


def pack_codes(codes: NDArray[np.uint8]) -> bytes:
    """Pack two bits a neuron.

    >>> pack_codes(np.array([[3, 0, 1, 2, 1]], dtype=np.uint8)).hex()
    '9301'

    Args:
        codes: `[..., layers, neurons]`, each 0 to 3.

    Returns:
        `ceil(neurons / 4)` bytes for each layer, in the order of the leading axes.

    Raises:
        ValueError: a code is larger than 3.
    """
    codes = np.ascontiguousarray(codes, dtype=np.uint8)
    if codes.size and codes.max() > _LARGEST_CODE:
        raise ValueError(f"a code of two bits is 0 to {_LARGEST_CODE}, and {int(codes.max())} is among those given")
    if rest := -codes.shape[-1] % 4:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, rest)])
    fours = codes.view("<u4")  # of four codes each is a byte, and all go to the lowest one
    packed: NDArray[np.uint8] = (fours | fours >> 6 | fours >> 12 | fours >> 18).astype(np.uint8)
    return packed.tobytes()


def unpack_codes(packed: bytes, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Undo `pack_codes`.

    >>> unpack_codes(bytes.fromhex("9301"), (1, 5)).tolist()
    [[3, 0, 1, 2, 1]]

    Args:
        packed: what `pack_codes` gave.
        shape: `(..., layers, neurons)`.

    Returns:
        A new array of that shape, each code 0 to 3.

    Raises:
        ValueError: the number of bytes does not fit the shape, or a bit past the last neuron is set.
    """
    *leading, neurons = shape
    rows = _packed_rows(packed, shape, neurons_per_byte=4)
    fours: NDArray[np.uint8] = (rows[..., np.newaxis] >> _SHIFTS) & np.uint8(_LARGEST_CODE)
    codes = fours.reshape(*leading, rows.shape[-1] * 4)
    _refuse_padding(codes[..., neurons:], neurons)
    return codes[..., :neurons].copy()


def _packed_rows(packed: bytes, shape: Sequence[int], neurons_per_byte: int) -> NDArray[np.uint8]:
    """View bytes as `[..., layers, bytes a layer]`."""
    *leading, neurons = shape
    row_bytes = -(-neurons // neurons_per_byte)
    expected = int(np.prod(leading, dtype=np.int64)) * row_bytes
    if len(packed) != expected:
        raise ValueError(
            f"{len(packed)} bytes do not hold an array of shape {tuple(shape)} at {8 // neurons_per_byte} bits a "
            f"neuron: that takes {expected}"
        )
    return np.frombuffer(packed, dtype=np.uint8).reshape(*leading, row_bytes)


def _refuse_padding(padding: NDArray[np.bool_] | NDArray[np.uint8], neurons: int) -> None:
    if padding.any():
        raise ValueError(f"a bit past the last of {neurons} neurons is set: those are 0 in a packed layer")
