"""Packed arrays: against the definition bit by bit, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neuroglot.definitions.packing import pack_bits, pack_codes, unpack_bits, unpack_codes

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=37)


@given(hnp.arrays(np.bool_, SHAPES))
def test_bits_come_back(mask: np.ndarray) -> None:
    packed = pack_bits(mask)
    assert len(packed) == math.prod(mask.shape[:-1]) * -(-mask.shape[-1] // 8)
    unpacked = unpack_bits(packed, mask.shape)
    assert unpacked.dtype == np.bool_
    assert np.array_equal(unpacked, mask)


@given(hnp.arrays(np.uint8, SHAPES, elements=st.integers(0, 3)))
def test_codes_come_back(codes: np.ndarray) -> None:
    packed = pack_codes(codes)
    assert len(packed) == math.prod(codes.shape[:-1]) * -(-codes.shape[-1] // 4)
    unpacked = unpack_codes(packed, codes.shape)
    assert unpacked.dtype == np.uint8
    assert np.array_equal(unpacked, codes)


@given(hnp.arrays(np.bool_, (3, 13)), st.integers(0, 2), st.integers(0, 12))
def test_the_place_of_a_bit(mask: np.ndarray, layer: int, neuron: int) -> None:
    assert pack_bits(mask)[layer * 2 + neuron // 8] >> neuron % 8 & 1 == mask[layer, neuron]


@given(hnp.arrays(np.uint8, (3, 13), elements=st.integers(0, 3)), st.integers(0, 2), st.integers(0, 12))
def test_the_place_of_a_code(codes: np.ndarray, layer: int, neuron: int) -> None:
    assert pack_codes(codes)[layer * 4 + neuron // 4] >> 2 * (neuron % 4) & 3 == codes[layer, neuron]


def test_what_is_unpacked_can_be_changed() -> None:
    unpack_bits(b"\x01", (1, 8))[0, 0] = False
    unpack_codes(b"\x01", (1, 4))[0, 0] = 2


@pytest.mark.parametrize(("unpack", "needed"), [(unpack_bits, 4), (unpack_codes, 6)])
@pytest.mark.parametrize("given_bytes", [0, 3, 5, 7])
def test_bytes_that_do_not_fit_are_refused(unpack, needed: int, given_bytes: int) -> None:
    with pytest.raises(ValueError, match=rf"{given_bytes} bytes do not hold .*\(2, 9\).* takes {needed}"):
        unpack(bytes(given_bytes), (2, 9))


def test_bits_past_the_last_neuron_are_refused() -> None:
    with pytest.raises(ValueError, match="past the last of 9 neurons"):
        unpack_bits(b"\xff\x03", (1, 9))
    with pytest.raises(ValueError, match="past the last of 9 neurons"):
        unpack_codes(b"\x00\x00\x04", (1, 9))


def test_codes_past_three_are_refused() -> None:
    with pytest.raises(ValueError, match="0 to 3, and 4 is"):
        pack_codes(np.array([[0, 4]], dtype=np.uint8))
