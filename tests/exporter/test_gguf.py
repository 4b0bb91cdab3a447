from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from neuroglot.definitions.bundle import open_bundle
from neuroglot.errors import InstallationError
from neuroglot_exporter import export, packages
from neuroglot_exporter.errors import CheckpointError
from tests.checkpoints import SENTENCES, RandomModel
from tests.exporter.gguf_file import write_gguf
from tests.exporter.reference import TOLERANCE, Graph, Transformers, left_padded


@pytest.fixture(scope="module")
def gguf(random_model: Callable[[str], RandomModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random LLaMA as a GGUF file."""
    file = tmp_path_factory.mktemp("gguf") / "random.F32.gguf"
    write_gguf(random_model("llama").checkpoint, file)
    return file


def test_a_gguf_file_gives_the_bundle_of_its_checkpoint(
    gguf: Path, random_model: Callable[[str], RandomModel], tmp_path: Path
) -> None:
    _, checkpoint, bundle = random_model("llama")
    manifest = export(str(gguf), tmp_path / "bundle", verify=False)
    assert (manifest.source, manifest.source_revision) == ("random.F32.gguf", "")
    assert manifest.model == open_bundle(bundle).model
    rows = [np.random.default_rng(0).integers(4, 320, length).tolist() for length in (9, 1, 14)]
    got = Graph(tmp_path / "bundle").run(*left_padded(rows))
    transformers = Transformers(checkpoint, "llama")
    for r, row in enumerate(rows):
        expected = transformers.run(row)
        assert np.abs(got["logits"][r, -len(row) :] - expected["logits"]).max() <= TOLERANCE
        assert np.abs(got["coefficient"][:, r, -len(row) :] - expected["coefficient"]).max() <= TOLERANCE
    own, other = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (tmp_path / "bundle", bundle))
    for sentence in SENTENCES:
        assert own.encode(sentence, add_special_tokens=False).ids == other.encode(sentence).ids


def test_bad_files(gguf: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf.read_bytes()[:100])
    for source, revision, match in (
        (tmp_path / "nowhere.gguf", None, "there is no file .*nowhere.gguf"),
        (gguf, "main", "is a file and has no revisions: leave out 'main'"),
        (broken, None, "broken.gguf cannot be read as a GGUF file"),
    ):
        with pytest.raises(CheckpointError, match=match):
            export(str(source), tmp_path / "bundle", revision=revision)
    assert list(tmp_path.iterdir()) == [broken]


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_a_missing_package(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    find_spec = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(InstallationError, match=f"needs the package {missing}, .* 'neuroglot\\[exporter\\]'"):
        export(str(gguf), tmp_path / "bundle")
