"""`neuroglot verify` on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from neuroglot.cli import main
from neuroglot.definitions.bundle import read_manifest
from tests.checkpoints import RandomModel
from tests.exporter.damage import change_weight, damaged_copy, swap_layers


def neuroglot_verify(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)], env={"COLUMNS": "100"})


def test_a_bundle_that_holds(bloom_checkpoint: Path, bloom_bundle: Path) -> None:
    result = neuroglot_verify(bloom_bundle, "--source", bloom_checkpoint)
    assert result.exit_code == 0, result.output
    assert "float32 against transformers: 8 texts" in result.stdout
    for name in ("decoder.activations", "past.logits", "deactivate.decoder.logits", "add.decoder.logits"):
        assert f"  {name} " in result.stdout
    assert "Note:" not in result.stdout
    assert "running the graphs" in result.stderr
    assert "running transformers" in result.stderr


def test_encoder_and_decoder_are_told_apart(random_model: Callable[[str], RandomModel]) -> None:
    model = random_model("mt0")
    result = neuroglot_verify(model.bundle, "--source", model.checkpoint)
    assert result.exit_code == 0, result.output
    for name in ("encoder.activations", "decoder.coefficients", "scale.encoder.logits", "scale.decoder.logits"):
        assert f"  {name} " in result.stdout


def test_json_on_standard_output_and_nothing_else(bloom_checkpoint: Path, bloom_bundle: Path) -> None:
    result = neuroglot_verify(bloom_bundle, "--source", bloom_checkpoint, "--json", "-")
    report = json.loads(result.stdout)
    assert report["identity"] == read_manifest(bloom_bundle).identity
    assert (report["source"], report["note"], report["excesses"]) == ("random-bloom", "", {})
    assert 0 < report["measurements"]["logits"]["difference"] <= 1e-4
    assert "decoder.activations" in result.stderr


class TestTexts:
    def test_one_a_line(self, bloom_checkpoint: Path, bloom_bundle: Path, tmp_path: Path) -> None:
        texts, report = tmp_path / "texts.txt", tmp_path / "report.json"
        texts.write_text("A first text.\n\nEin süßer Text\n" + 60 * "long " + "\nx\n", encoding="utf-8")
        result = neuroglot_verify(bloom_bundle, "--source", bloom_checkpoint, "--texts", texts, "--json", report)
        assert result.exit_code == 0, result.output
        measured = json.loads(report.read_text())
        assert measured["texts"] == 4
        assert measured["positions"]["decoder"] > 60

    @pytest.mark.parametrize(
        ("content", "match"), [(b"", "has no text"), (b" \n\n", "has no text"), (b"\xff\xfe", "is not UTF-8")]
    )
    def test_no_texts(
        self, bloom_checkpoint: Path, bloom_bundle: Path, tmp_path: Path, content: bytes, match: str
    ) -> None:
        (tmp_path / "texts.txt").write_bytes(content)
        result = neuroglot_verify(bloom_bundle, "--source", bloom_checkpoint, "--texts", tmp_path / "texts.txt")
        assert result.exit_code == 2
        assert match in result.stderr

    def test_no_file(self, bloom_checkpoint: Path, bloom_bundle: Path, tmp_path: Path) -> None:
        result = neuroglot_verify(bloom_bundle, "--source", bloom_checkpoint, "--texts", tmp_path / "none.txt")
        assert result.exit_code == 2
        assert "does not exist" in result.stderr


class TestStatusOne:
    def refused(self, *arguments: object) -> str:
        result = neuroglot_verify(*arguments)
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)  # no traceback
        return result.stderr.splitlines()[-1]

    def test_another_weight(self, bloom_checkpoint: Path, bloom_bundle: Path, tmp_path: Path) -> None:
        def change(weight: np.ndarray) -> None:
            weight[5, 5] += 0.5

        def damage(folder: Path) -> None:
            change_weight(folder, "transformer.h.1.mlp.dense_4h_to_h.weight", change)

        report = tmp_path / "report.json"
        bundle = damaged_copy(bloom_bundle, tmp_path / "damaged", damage)
        error = self.refused(bundle, "--source", bloom_checkpoint, "--json", report)
        assert error.startswith("Error: the exported graph differs from transformers: decoder.activations by ")
        assert "logits" in json.loads(report.read_text())["excesses"]

    def test_a_swapped_layer(self, bloom_checkpoint: Path, bloom_bundle: Path, tmp_path: Path) -> None:
        def damage(folder: Path) -> None:
            swap_layers(folder, "transformer.h.{i}.mlp.dense_4h_to_h.weight")

        bundle = damaged_copy(bloom_bundle, tmp_path / "damaged", damage)
        assert "differs from transformers" in self.refused(bundle, "--source", bloom_checkpoint)

    def test_a_file_that_is_not_the_manifest_s(
        self, bloom_checkpoint: Path, bloom_bundle: Path, tmp_path: Path
    ) -> None:
        bundle = Path(shutil.copytree(bloom_bundle, tmp_path / "damaged"))
        norms = bundle / "decoder.norms.npy"
        norms.write_bytes(norms.read_bytes()[::-1])
        assert "decoder.norms.npy was changed: its hash is not the manifest's" in self.refused(
            bundle, "--source", bloom_checkpoint
        )

    def test_another_family(self, bloom_bundle: Path, random_model: Callable[[str], RandomModel]) -> None:
        error = self.refused(bloom_bundle, "--source", random_model("llama").checkpoint)
        assert error.startswith("Error: random-llama is of the family llama, the bundle of the family bloom")

    def test_no_bundle(self, bloom_checkpoint: Path, tmp_path: Path) -> None:
        assert "is no bundle" in self.refused(tmp_path / "none", "--source", bloom_checkpoint)

    def test_no_source(self, bloom_bundle: Path) -> None:
        assert "there is no folder ./nowhere" in self.refused(bloom_bundle, "--source", "./nowhere")


def test_the_same_checkpoint_under_another_name_is_a_note(
    bloom_checkpoint: Path, bloom_bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "copy"
    other.mkdir()
    for file in bloom_checkpoint.iterdir():
        (other / file.name).symlink_to(file)
    result = neuroglot_verify(bloom_bundle, "--source", other)
    assert result.exit_code == 0, result.output
    assert "Note: the bundle was made from random-bloom, and is compared with copy\n" in result.stdout


def test_source_or_probe_is_required(bloom_bundle: Path) -> None:
    result = neuroglot_verify(bloom_bundle)
    assert result.exit_code == 2
    assert "--source" in result.stderr
