"""Prepacked weights that were saved: used where they are whole, ignored where they are not, and never in the bundle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from neuroglot.cli import main
from neuroglot.definitions.bundle import describe_files, hash_file, read_manifest
from neuroglot_server.engine import prepacking
from neuroglot_server.engine.graph import interfaces
from neuroglot_server.engine.session import Engine
from neuroglot_server.engine.steps import RowStep, StepResult
from neuroglot_server.scheduler.budget import Extent, Sizes

STEPS = [RowStep((5, 6, 7), taps=True, keep=True), RowStep((8, 9), scored=True, targets=(5, 6), taps=True)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROGLOT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def place(bloom_bundle: Path) -> Path:
    """What `neuroglot prepare` made."""
    result = CliRunner().invoke(main, ["prepare", str(bloom_bundle)])
    assert result.exit_code == 0, result.output
    place = prepacking.place_of(bloom_bundle / "decoder.onnx")
    assert result.output == f"decoder: {place}\n"
    return place


def start(bundle: Path) -> Engine:
    facts = read_manifest(bundle).model
    (component,) = facts.components
    return Engine(bundle / component.graph, component, interfaces(facts)[component.name], threads=1)


def answers(bundle: Path) -> tuple[list[StepResult], bool]:
    """What an engine answers, and whether it maps what was saved."""
    engine = start(bundle)
    mapped = str(prepacking.cache_folder()) in Path("/proc/self/maps").read_text()
    assert mapped == engine.prepacked
    return engine.run(STEPS), mapped


def assert_equal(got: list[StepResult], expected: list[StepResult]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.scores == other.scores
        np.testing.assert_array_equal(one.activations, other.activations)


def test_it_is_mapped_and_answers_are_equal_bit_for_bit(bloom_bundle: Path, tmp_path: Path) -> None:
    expected, mapped = answers(bloom_bundle)
    assert not mapped
    before = describe_files(bloom_bundle)
    place = prepacking.save(bloom_bundle / "decoder.onnx")
    assert describe_files(bloom_bundle) == before
    assert place.parent == tmp_path / "cache" / "prepacked"
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    got, mapped = answers(bloom_bundle)
    assert mapped
    assert_equal(got, expected)


def test_a_pass_is_charged_the_keys_and_values_of_all_layers_at_once(place: Path, bloom_bundle: Path) -> None:
    """ONNX Runtime saves the nodes in an order of its own, in which every layer picks before the first is done."""
    signature = start(bloom_bundle).signature
    forked = Extent(1, past=100)
    plain, saved = (Sizes.of(signature, signature, prepacked=prepacked).row(forked) for prepacked in (False, True))
    picked = 100 * 2 * signature.layers * signature.heads * signature.head_size * signature.dtype.itemsize
    assert saved == picked
    assert plain == picked * 2 // signature.layers


def test_what_was_saved_is_not_saved_again(place: Path, bloom_bundle: Path) -> None:
    before = (place / "graph.data").stat().st_mtime_ns
    assert prepacking.save(bloom_bundle / "decoder.onnx") == place
    assert (place / "graph.data").stat().st_mtime_ns == before


def cut(place: Path) -> None:
    os.truncate(place / "graph.data", 100)


def change(place: Path) -> None:
    content = bytearray((place / "graph.data").read_bytes())
    content[len(content) // 2] ^= 1
    (place / "graph.data").write_bytes(content)


def lose(place: Path) -> None:
    (place / "graph.data").unlink()


def scribble(place: Path) -> None:
    (place / "entry.json").write_text("{}}")


def forge(place: Path) -> None:
    """No graph, though size and hash are right: as by another version of this program."""
    (place / "graph.onnx").write_bytes(b"no graph")
    entries = json.loads((place / "entry.json").read_text())
    entries["graph.onnx"] = {"size": 8, "sha256": hash_file(place / "graph.onnx")}
    (place / "entry.json").write_text(json.dumps(entries))


@pytest.mark.parametrize("damage", [cut, change, lose, scribble, forge])
def test_what_is_damaged_is_ignored_and_said(
    damage: Callable[[Path], None], place: Path, bloom_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, mapped = answers(bloom_bundle)
    assert mapped
    damage(place)
    got, mapped = answers(bloom_bundle)
    assert not mapped
    assert_equal(got, expected)
    assert str(place) in caplog.text


def test_what_is_damaged_is_prepared_anew(place: Path, bloom_bundle: Path) -> None:
    cut(place)
    prepacking.save(bloom_bundle / "decoder.onnx")
    assert prepacking.saved(bloom_bundle / "decoder.onnx") == place / "graph.onnx"


def test_another_bundle_has_a_place_of_its_own(
    place: Path, bloom_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bloom_bundle, copy)
    assert prepacking.place_of(copy / "decoder.onnx") == place
    assert prepacking.place_of(copy / "encoder.onnx") != place
    monkeypatch.setattr(prepacking, "_processor", lambda: "another processor")
    assert prepacking.saved(copy / "decoder.onnx") is None


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepacking.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("NEUROGLOT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert prepacking.cache_folder() == tmp_path / "xdg" / "neuroglot"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepacking.cache_folder() == tmp_path / ".cache" / "neuroglot"
