"""Neuron sets behave as Python's sets of (layer, neuron) do, and know which model they belong to."""

from __future__ import annotations

import json
import operator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroglot import InvalidSelectionError, NeuronSet, NeuronType

LAYERS, NEURONS = 3, 11
Indices = set[tuple[int, int]]
INDICES = st.sets(st.tuples(st.integers(0, LAYERS - 1), st.integers(0, NEURONS - 1)))


def neuron_set(indices: Indices, source: str = "tests") -> NeuronSet:
    return NeuronSet.from_indices(indices, component="decoder", layers=LAYERS, neurons=NEURONS, source=source)


@given(INDICES, INDICES, st.sampled_from([operator.or_, operator.and_, operator.xor, operator.sub]))
def test_operators_are_those_of_sets(ours: Indices, theirs: Indices, combine) -> None:
    combined = combine(neuron_set(ours), neuron_set(theirs))
    assert set(combined) == combine(ours, theirs)
    assert combined == neuron_set(combine(ours, theirs))
    assert hash(combined) == hash(neuron_set(combine(ours, theirs)))


@given(INDICES, INDICES, st.sampled_from([operator.le, operator.lt, operator.ge, operator.gt, operator.eq]))
def test_comparisons_are_those_of_sets(ours: Indices, theirs: Indices, compare) -> None:
    assert compare(neuron_set(ours), neuron_set(theirs)) == compare(ours, theirs)


@given(INDICES)
def test_a_set_is_its_neurons(indices: Indices) -> None:
    neurons = neuron_set(indices)
    everything = {(layer, neuron) for layer in range(LAYERS) for neuron in range(NEURONS)}
    assert list(neurons) == sorted(indices)
    assert len(neurons) == len(indices)
    assert bool(neurons) == bool(indices)
    assert set(~neurons) == everything - indices
    assert ~~neurons == neurons
    assert {pair for pair in everything if pair in neurons} == indices
    assert neurons.counts().tolist() == [sum(layer == one for one, _ in indices) for layer in range(LAYERS)]
    assert NeuronSet.from_mask(neurons.to_mask(), component="decoder", source="tests") == neurons


def test_what_is_outside_is_not_in_the_set() -> None:
    everything = ~neuron_set(set())
    assert (LAYERS, 0) not in everything
    assert (0, NEURONS) not in everything
    assert (-1, 0) not in everything


def test_a_set_does_not_follow_its_mask() -> None:
    mask = np.zeros((2, 3), dtype=np.bool_)
    neurons = NeuronSet.from_mask(mask, component="decoder")
    mask[:] = True
    neurons.to_mask()[:] = True
    assert len(neurons) == 0


@pytest.mark.parametrize(
    ("component", "layers", "neurons", "source"),
    [
        ("encoder", 3, 11, "tests"),
        ("decoder", 2, 11, "tests"),
        ("decoder", 3, 12, "tests"),
        ("decoder", 3, 11, "other"),
    ],
)
def test_sets_of_different_homes_do_not_combine(component: str, layers: int, neurons: int, source: str) -> None:
    other = NeuronSet.from_indices([], component=component, layers=layers, neurons=neurons, source=source)
    with pytest.raises(InvalidSelectionError) as raised:
        neuron_set({(0, 0)}) | other
    assert "decoder (3 x 11, tests)" in str(raised.value)
    assert f"{component} ({layers} x {neurons}, {source})" in str(raised.value)


def test_a_set_without_a_source_fits_any_and_takes_the_others() -> None:
    bound, free = neuron_set({(0, 1)}), neuron_set({(0, 2)}, source="")
    assert (bound | free) == (free | bound) == neuron_set({(0, 1), (0, 2)})
    assert (free | free).source == ""
    assert neuron_set({(0, 1)}, source="other").bound_to("tests") == bound


def test_only_sets_combine_with_sets() -> None:
    with pytest.raises(TypeError):
        neuron_set({(0, 0)}) | {(0, 1)}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ((3, 0), r"layer 3 of 'decoder' does not exist: it has 3 \(0 to 2\)"),
        ((-1, 0), r"layer -1 of 'decoder' does not exist"),
        ((0, 11), r"neuron 11 of 'decoder' does not exist: it has 11 \(0 to 10\) a layer"),
    ],
)
def test_neurons_that_do_not_exist_are_refused(index: tuple[int, int], message: str) -> None:
    with pytest.raises(InvalidSelectionError, match=message):
        neuron_set({index})


def test_malformed_masks_and_bits_are_refused() -> None:
    with pytest.raises(InvalidSelectionError, match=r"a bool array .*, and this is int64 of shape \[2\]"):
        NeuronSet.from_mask(np.array([0, 1]), component="decoder")
    with pytest.raises(InvalidSelectionError, match="5 bytes do not hold"):
        NeuronSet("decoder", 3, 11, bytes(5))
    with pytest.raises(InvalidSelectionError, match="past the last of 11"):
        NeuronSet("decoder", 1, 11, b"\x00\x08")
    with pytest.raises(InvalidSelectionError, match="0 layers"):
        NeuronSet("decoder", 0, 11, b"")


def test_repr_tells_size_and_home() -> None:
    assert repr(neuron_set({(0, 0), (2, 10)})) == "<NeuronSet: 2 of 33 neurons of decoder (3 x 11, tests)>"


@given(indices=INDICES)
def test_saved_sets_come_back(indices: Indices, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("sets") / "set.neurons"
    neuron_set(indices, source="ärger/ß\n").save(path)
    assert NeuronSet.load(path) == neuron_set(indices, source="ärger/ß\n")


def test_a_saved_set_describes_itself(tmp_path: Path) -> None:
    path = tmp_path / "set.neurons"
    neuron_set({(0, 0), (1, 8)}).save(str(path))
    line, bits = path.read_bytes().split(b"\n", 1)
    assert bits == bytes([1, 0, 0, 1, 0, 0])
    header = json.loads(line)
    assert header.pop("sha256")
    assert header == {
        "format": "neuroglot.neuron_set",
        "version": 1,
        "source": "tests",
        "component": "decoder",
        "layers": 3,
        "neurons": 11,
        "count": 2,
    }


def damage(path: Path, change: str) -> None:
    line, bits = path.read_bytes().split(b"\n", 1)
    header = json.loads(line)
    match change:
        case "cut":
            bits = bits[:-1]
        case "flipped":
            bits = bytes([bits[0] ^ 2]) + bits[1:]
        case "newer":
            header["version"] = 2
        case "no source":
            del header["source"]
        case "other geometry":
            header["neurons"] = 40
        case "layers as text":
            header["layers"] = "three"
        case "other format":
            header["format"] = "something"
    path.write_bytes(json.dumps(header).encode() + b"\n" + bits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cut", "damaged: its 5 bytes of neurons are not those written"),
        ("flipped", "damaged: its 6 bytes"),
        ("newer", "has version 2 of the format, this neuroglot reads version 1: upgrade"),
        ("no source", "damaged.*'source'"),
        ("other geometry", "6 bytes do not hold"),
        ("layers as text", "damaged"),
        ("other format", "holds no neuron set"),
    ],
)
def test_files_that_are_no_sets_are_refused(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "set.neurons"
    neuron_set({(0, 0)}).save(path)
    damage(path, change)
    with pytest.raises(InvalidSelectionError, match=message):
        NeuronSet.load(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"[1, 2]\n", b"\x93NUMPY\x01\x00", b"{}"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(InvalidSelectionError, match="holds no neuron set"):
        NeuronSet.load(path)


def test_types_have_the_papers_names() -> None:
    assert [one.label for one in NeuronType] == ["non-activated", "specific", "partial-shared", "all-shared"]
    assert [NeuronType.from_label(one.label) for one in NeuronType] == list(NeuronType)
    with pytest.raises(InvalidSelectionError, match=r"'shared' is no type.*: the types are non-activated, specific"):
        NeuronType.from_label("shared")
