"""The verification sees what it should: graphs, weights and tokenizers that are not the checkpoint's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuroglot.bundle import read_manifest
from neuroglot_exporter.errors import VerificationError
from neuroglot_exporter.families.bloom import BLOOM
from neuroglot_exporter.verification.verify import Measurement, Verification, verify


@pytest.fixture
def damaged(bloom_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bloom_bundle, tmp_path / "damaged"))


@pytest.fixture
def run(bloom_checkpoint: Path) -> Callable[[Path], Verification]:
    model = AutoModelForCausalLM.from_pretrained(bloom_checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(bloom_checkpoint)
    return lambda folder: verify(model, tokenizer, BLOOM, read_manifest(folder).model, folder)


def change_graph(folder: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    change(model.graph)
    onnx.save(model, folder / "decoder.onnx")


def change_weight(folder: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Change a weight in the external data."""
    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = np.memmap(
        folder / "decoder.onnx.data", np.float32, "r+", offset=int(place["offset"]), shape=tuple(tensor.dims)
    )
    change(data)
    data.flush()


def test_the_bundle_as_it_is(run: Callable[[Path], Verification], bloom_bundle: Path) -> None:
    verification = run(bloom_bundle)
    assert all(measurement.holds for measurement in verification.measurements.values())
    assert verification.texts == 8


def test_one_changed_weight(run: Callable[[Path], Verification], damaged: Path) -> None:
    def change(weight: np.ndarray) -> None:
        weight[5, 5] += 0.01

    change_weight(damaged, "transformer.h.1.mlp.dense_4h_to_h.weight", change)
    with pytest.raises(VerificationError, match=r"activations by .*logits by"):
        run(damaged)


def test_a_weight_that_is_no_number(run: Callable[[Path], Verification], damaged: Path) -> None:
    def change(weight: np.ndarray) -> None:
        weight[3] = np.nan

    change_weight(damaged, "transformer.ln_f.bias", change)
    with pytest.raises(VerificationError, match="logits by nan"):
        run(damaged)


def test_a_mask_that_masks_nothing(run: Callable[[Path], Verification], damaged: Path) -> None:
    def ignore_mask(graph: onnx.GraphProto) -> None:
        multiplication = next(node for node in graph.node if node.name == "/ffn.2/Mul")
        multiplication.input[0] = "one"
        graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 1), np.float32), "one"))

    change_graph(damaged, ignore_mask)
    with pytest.raises(VerificationError, match=r"transformers: deactivate\.logits by .*, override\.logits by"):
        run(damaged)


def test_an_override_that_overrides_nothing(run: Callable[[Path], Verification], damaged: Path) -> None:
    def ignore_override(graph: onnx.GraphProto) -> None:
        addition = next(node for node in graph.node if node.name == "/ffn.0/Add")
        addition.input[1] = "zero"
        graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 1), np.float32), "zero"))

    change_graph(damaged, ignore_override)
    with pytest.raises(VerificationError, match=r"transformers: override\.logits by"):
        run(damaged)


def test_another_tokenizer(run: Callable[[Path], Verification], damaged: Path) -> None:
    tokenizer = json.loads((damaged / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (damaged / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(VerificationError, match="the bundle's tokenizer turns 'The capital of France is' into"):
        run(damaged)


@pytest.mark.parametrize(
    ("difference", "magnitude", "holds"),
    [(1e-4, 0.5, True), (1.1e-4, 0.5, False), (1e-2, 100.0, True), (1.1e-2, 100.0, False), (float("nan"), 1.0, False)],
)
def test_the_tolerance_is_relative_above_one(difference: float, magnitude: float, holds: bool) -> None:
    assert Measurement(difference, magnitude).holds is holds
