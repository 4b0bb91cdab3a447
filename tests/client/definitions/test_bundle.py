"""The bundle's format: what is written can be read, and what was changed is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from neuroglot.definitions import bundle
from neuroglot.errors import BundleError

VALUES = tuple(bundle.StoredMatrix("weights.data", offset, 3, 2, "float16") for offset in (0, 12))
DECODER = bundle.Component("decoder", "decoder.onnx", "decoder.norms.npy", 2, 3, 2, "gelu", False, VALUES)
EMBEDDING = bundle.StoredMatrix("weights.data", 24, 9, 2, "float32")
MODEL = bundle.ModelFacts("bloom", "float32", 9, None, (2,), None, (DECODER,), EMBEDDING, 0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A well-formed bundle whose files hold their own names."""
    target = tmp_path / "bundles" / "small"
    with bundle.staged(target) as aside:
        for name in ("decoder.onnx", "weights.data", "decoder.norms.npy", "tokenizer.json"):
            (aside / name).write_text(name * 8)
        bundle.write_manifest(aside, bundle.Manifest(MODEL, bundle.describe_files(aside), "tests"))
    return target


def edit(folder: Path, **changes: object) -> None:
    """Change fields of the manifest's JSON."""
    path = folder / bundle.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_was_written_is_read(folder: Path) -> None:
    manifest = bundle.open_bundle(folder, full=True)
    assert manifest.model == MODEL
    assert set(manifest.files) == {"decoder.onnx", "weights.data", "decoder.norms.npy", "tokenizer.json"}
    assert [path.name for path in folder.parent.iterdir()] == ["small"], "nothing stays beside the bundle"


def test_identity_is_of_what_decides_an_answer(folder: Path) -> None:
    manifest = bundle.open_bundle(folder)
    assert replace(manifest, tools={"torch": "9"}, verification={"logits": 0.1}).identity == manifest.identity
    assert replace(manifest, model=replace(MODEL, eos_token_ids=(3,))).identity != manifest.identity
    weights = {**manifest.files, "weights.data": bundle.FileEntry(17, "0" * 64)}
    assert replace(manifest, files=weights).identity != manifest.identity


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        bundle.open_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        bundle.open_bundle(tmp_path)


def test_a_newer_format_asks_for_an_upgrade(folder: Path) -> None:
    edit(folder, format_version=bundle.FORMAT_VERSION + 1)
    with pytest.raises(BundleError, match="upgrade neuroglot"):
        bundle.open_bundle(folder)


@pytest.mark.parametrize("name", ["decoder.onnx", "weights.data", "tokenizer.json"])
def test_a_changed_file_is_found(folder: Path, name: str) -> None:
    file = folder / name
    file.write_text(name.upper() * 8)
    with pytest.raises(BundleError, match=f"{name} was changed: its hash"):
        bundle.open_bundle(folder)
    file.write_text(name + " and more")
    with pytest.raises(BundleError, match="was changed: it has"):
        bundle.open_bundle(folder)
    file.unlink()
    with pytest.raises(BundleError, match=f"incomplete: {name} is missing"):
        bundle.open_bundle(folder)


def test_a_changed_manifest_is_found(folder: Path) -> None:
    content = json.loads((folder / bundle.MANIFEST).read_text())
    edit(folder, model={**content["model"], "eos_token_ids": [7]})
    with pytest.raises(BundleError, match="was changed: it says identity"):
        bundle.open_bundle(folder)


def test_an_older_format_asks_for_another_export(folder: Path) -> None:
    edit(folder, format_version=1)
    with pytest.raises(BundleError, match=r"has bundle format 1.*export the model again"):
        bundle.open_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 2}', '{"format_version": 2, "identity": "x"}'])
def test_a_damaged_manifest_is_one_error(folder: Path, text: str) -> None:
    (folder / bundle.MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="is damaged"):
        bundle.open_bundle(folder)


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "a/../../b", "..\\outside"])
def test_paths_stay_inside(folder: Path, path: str) -> None:
    content = json.loads((folder / bundle.MANIFEST).read_text())
    edit(folder, files={**content["files"], path: {"size": 1, "sha256": "0" * 64}})
    with pytest.raises(BundleError, match="leaves the bundle's folder"):
        bundle.open_bundle(folder)


@pytest.mark.parametrize("changes", [{"offset": 28}, {"offset": 22}, {"file": "elsewhere.data"}])
def test_a_matrix_that_is_not_inside_its_file_is_found(folder: Path, changes: dict[str, object]) -> None:
    manifest = bundle.open_bundle(folder)
    assert manifest.files["weights.data"].size == 96
    model = replace(MODEL, output_embedding=replace(EMBEDDING, **changes))  # type: ignore[arg-type]
    bundle.write_manifest(folder, replace(manifest, model=model))
    with pytest.raises(BundleError, match="is not inside a file of it"):
        bundle.open_bundle(folder)


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), bundle.staged(tmp_path / "broken") as aside:
        (aside / "decoder.onnx").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_block_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no manifest\.json"), bundle.staged(tmp_path / "empty"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_never_overwritten(folder: Path) -> None:
    with pytest.raises(BundleError, match="exists already"), bundle.staged(folder):
        pytest.fail("the block must not run")
    assert bundle.open_bundle(folder).model == MODEL
