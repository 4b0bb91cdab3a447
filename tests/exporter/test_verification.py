"""The verification detects graphs, weights and tokenizers that are not the checkpoint's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import psutil
import pytest
from onnx import numpy_helper

from neuroglot.definitions.bundle import ModelFacts, StoredMatrix, read_manifest
from neuroglot_exporter import export
from neuroglot_exporter.checkpoints import find_checkpoint
from neuroglot_exporter.errors import VerificationError
from neuroglot_exporter.verification import rows
from neuroglot_exporter.verification.measurement import TOLERANCES, Measurement, Tolerance, Verification, measure
from neuroglot_exporter.verification.process import verify_apart
from neuroglot_exporter.verification.verify import verify
from tests.checkpoints import CONFIGS, RandomModel, random_checkpoint
from tests.exporter.damage import change_graph, change_weight, swap_layers

SINGLE, HALF = TOLERANCES["float32"], TOLERANCES["float16"]
DOWN_PROJECTION = {
    "bloom": "transformer.h.{i}.mlp.dense_4h_to_h.weight",
    "mt0": "encoder.block.{i}.layer.1.DenseReluDense.wo.weight",
}


class Damaged(NamedTuple):
    checkpoint: Path
    folder: Path
    component: str
    down_projection: str

    def excesses(self) -> dict[str, str]:
        return verify(self.folder, find_checkpoint(str(self.checkpoint), None)).excesses


@pytest.fixture
def damaged(bloom_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bloom_bundle, tmp_path / "damaged"))


@pytest.fixture
def run(bloom_checkpoint: Path) -> Callable[[Path], Verification]:
    return lambda folder: verify(folder, find_checkpoint(str(bloom_checkpoint), None))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_bundle_as_it_is(family: str, random_model: Callable[[str], RandomModel]) -> None:
    model = random_model(family)
    facts = read_manifest(model.bundle).model
    verification = verify(model.bundle, find_checkpoint(str(model.checkpoint), None))
    assert not verification.excesses
    taps = {f"{component.name}.activations" for component in facts.components} | {"logits"}
    taps |= {f"{component.name}.coefficients" for component in facts.components if component.gated}
    past = {f"past.{tap}" for tap in taps if not tap.startswith("encoder")}
    trials = {
        f"{kind}.{component.name}.logits"
        for kind in ("deactivate", "override", "scale", "add")
        for component in facts.components
    }
    assert set(verification.measurements) == taps | past | trials
    for name, measured in verification.measurements.items():
        assert 0 < measured.difference <= 1e-4 * max(1, measured.magnitude), name
        assert (measured.effect is not None) == (name in trials), name
        assert (measured.type_flips is not None) == name.endswith("activations"), name
    # An intervention that moves nothing would prove nothing.
    assert all(verification.measurements[trial].effect >= 1e-2 for trial in trials)  # type: ignore[operator]
    for component in facts.components:
        positions = verification.positions[component.name]
        measured = verification.measurements[f"{component.name}.activations"]
        assert measured.values == component.layers * component.neurons * positions
    assert verification.texts == 8


class TestDamage:
    """In the only component of a causal model, and in the encoder of an encoder-decoder."""

    @pytest.fixture(params=DOWN_PROJECTION)
    def copy(
        self, request: pytest.FixtureRequest, random_model: Callable[[str], RandomModel], tmp_path: Path
    ) -> Damaged:
        model = random_model(request.param)
        folder = Path(shutil.copytree(model.bundle, tmp_path / "damaged"))
        component = read_manifest(folder).model.components[0].name
        return Damaged(model.checkpoint, folder, component, DOWN_PROJECTION[request.param])

    def test_one_changed_weight(self, copy: Damaged) -> None:
        def change(weight: np.ndarray) -> None:
            weight[5, 5] += 0.5

        change_weight(copy.folder, copy.down_projection.format(i=1), change, copy.component)
        assert {f"{copy.component}.activations", "logits", "past.logits"} <= set(copy.excesses())

    def test_a_swapped_layer(self, copy: Damaged) -> None:
        swap_layers(copy.folder, copy.down_projection, copy.component)
        assert "logits" in copy.excesses()

    def test_a_mask_that_masks_nothing(self, copy: Damaged) -> None:
        change_graph(copy.folder, partial(ignore, "/ffn.1/Mul", 1.0), copy.component)
        assert set(copy.excesses()) == {
            f"{kind}.{copy.component}.logits" for kind in ("deactivate", "override", "scale")
        }

    def test_an_override_that_overrides_nothing(self, copy: Damaged) -> None:
        change_graph(copy.folder, partial(ignore, "/ffn.0/Add", 0.0), copy.component)
        assert set(copy.excesses()) == {f"{kind}.{copy.component}.logits" for kind in ("override", "add")}


def ignore(node: str, instead: float, graph: onnx.GraphProto) -> None:
    """Replace a node's intervention input by a constant."""
    found = next(one for one in graph.node if one.name == node)
    given = next(i for i, name in enumerate(found.input) if name.endswith((".mask", ".override")))
    found.input[given] = "instead"
    graph.initializer.append(numpy_helper.from_array(np.full((1, 1, 1), instead, np.float32), "instead"))


def test_a_weight_that_is_no_number(run: Callable[[Path], Verification], damaged: Path) -> None:
    def change(weight: np.ndarray) -> None:
        weight[3] = np.nan

    change_weight(damaged, "transformer.ln_f.bias", change)
    verification = run(damaged)
    assert verification.excesses["logits"].startswith("by nan")
    assert "decoder.activations" not in verification.excesses
    assert json.loads(json.dumps(verification.to_json()))["measurements"]["logits"]["difference"] is None


def test_another_tokenizer(run: Callable[[Path], Verification], damaged: Path) -> None:
    tokenizer = json.loads((damaged / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (damaged / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(VerificationError, match="the bundle's tokenizer turns 'The capital of France is' into"):
        run(damaged)


@pytest.mark.parametrize(
    ("family", "geometry", "match"),
    [
        ("llama", {}, r"other is of the family llama, the bundle of the family bloom: give the checkpoint"),
        ("bloom", {"n_layer": 2}, r"the decoder of other has 2 layers of 96 neurons .*, the bundle's has 3 layers of"),
        ("bloom", {"hidden_size": 48}, r"has 3 layers of 192 neurons and hidden size 48, the bundle's has .* size 24"),
        ("bloom", {"vocab_size": 321}, r"other has a vocabulary of 321, the bundle one of 320"),
    ],
)
def test_another_checkpoint(
    bloom_bundle: Path, tmp_path: Path, family: str, geometry: dict[str, int], match: str
) -> None:
    other = random_checkpoint(tmp_path / "other", family, **geometry)
    with pytest.raises(VerificationError, match=match):
        verify(bloom_bundle, find_checkpoint(str(other), None))


def test_the_weights_of_another_checkpoint(bloom_bundle: Path, tmp_path: Path) -> None:
    other = random_checkpoint(tmp_path / "other", seed=1)
    assert "logits" in verify(bloom_bundle, find_checkpoint(str(other), None)).excesses


def facts(max_positions: int | None, start_token: int | None) -> ModelFacts:
    embedding = StoredMatrix("weights.data", 0, 320, 24, "float32")
    return ModelFacts("bloom", "float32", 320, max_positions, (2,), start_token, (), embedding, 1.0)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


class TestRows:
    def test_a_causal_model_reads_the_text_up_to_its_longest_row(self) -> None:
        found = rows.rows_of(["a", "", "abc"], facts(2, None), letters, letters)
        assert found == [{"decoder": [97]}, {"decoder": [97, 98]}]

    def test_a_decoder_restarts_the_text_and_rows_differ_in_length(self) -> None:
        found = rows.rows_of(["abcde"] * 5, facts(None, 7), letters, letters)
        assert all(row["encoder"] == letters("abcde") for row in found)
        assert [row["decoder"] for row in found[:2]] == [[7, 97], [7, 97, 98]]
        assert [len(row["decoder"]) for row in found] == [2, 3, 4, 5, 2]

    @pytest.mark.parametrize("texts", [[], ["", ""]])
    def test_no_text(self, texts: Sequence[str]) -> None:
        with pytest.raises(VerificationError, match="there is no text to compare on"):
            rows.rows_of(texts, facts(None, None), letters, letters)


def test_more_texts_than_fit_in_memory_are_compared_in_rounds(
    run: Callable[[Path], Verification],
    bloom_checkpoint: Path,
    bloom_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(bloom_bundle)
    monkeypatch.setattr(rows, "_ROUND_BYTES", 2**18)
    stages: list[str] = []
    parts = verify(bloom_bundle, find_checkpoint(str(bloom_checkpoint), None), progress=stages.append)
    assert sum(stage.startswith("running the graphs, texts ") for stage in stages) > 1
    assert stages[-1].endswith("to 8 of 8")
    for name, measured in parts.measurements.items():
        assert measured.values == whole.measurements[name].values
        assert measured.effect == pytest.approx(whole.measurements[name].effect, abs=1e-4)


class TestTolerance:
    @pytest.mark.parametrize(
        ("tolerance", "difference", "magnitude", "holds"),
        [
            (SINGLE, 1e-4, 0.5, True),
            (SINGLE, 1.1e-4, 0.5, False),
            (SINGLE, 1e-2, 100.0, True),
            (SINGLE, 1.1e-2, 100.0, False),
            (SINGLE, float("nan"), 1.0, False),
            (HALF, 0.19, 10.0, True),
            (HALF, 0.21, 10.0, False),
            (HALF, 0.01, 0.1, False),
            (HALF, float("inf"), 10.0, False),
        ],
    )
    def test_differences(self, tolerance: Tolerance, difference: float, magnitude: float, holds: bool) -> None:
        assert (Measurement(difference, magnitude, values=1).excess(tolerance) == "") is holds

    @pytest.mark.parametrize(
        ("tolerance", "flips", "holds"), [(SINGLE, 1, True), (SINGLE, 2, False), (HALF, 5, True), (HALF, 6, False)]
    )
    def test_types(self, tolerance: Tolerance, flips: int, holds: bool) -> None:
        excess = Measurement(0.0, 1.0, values=1000, type_flips=flips).excess(tolerance)
        assert excess == (
            "" if holds else f"in the type of {flips} of 1,000 neurons (allowed is a share of {tolerance.type_flips:g})"
        )

    def test_what_was_not_a_number_once_stays_so(self) -> None:
        good, bad = Measurement(1e-6, 2.0, 10, 1), Measurement(float("nan"), 1.0, 5, 2)
        for merged in (good.merged(bad), bad.merged(good)):
            assert np.isnan(merged.difference)
            assert (merged.magnitude, merged.values, merged.type_flips) == (2.0, 15, 3)

    def test_infinite_on_both_sides_is_a_difference(self) -> None:
        infinite = np.array([1.0, np.inf], np.float32)
        assert measure(infinite, infinite).excess(SINGLE)


def test_half_precision_that_is_too_far_off(random_model: Callable[[str], RandomModel], tmp_path: Path) -> None:
    """Weights rounded to 4 bits of mantissa, where float16 has 10."""
    checkpoint = random_model("llama").checkpoint
    export(str(checkpoint), tmp_path / "bundle", dtype="float16", verify=False)
    assert not verify(tmp_path / "bundle", find_checkpoint(str(checkpoint), None)).excesses

    def coarsen(weight: np.ndarray) -> None:
        mantissa, exponent = np.frexp(weight.astype(np.float32))
        weight[:] = np.ldexp(np.round(mantissa * 2**4) / 2**4, exponent)

    change_weight(tmp_path / "bundle", "model.embed_tokens.weight", coarsen)
    assert verify(tmp_path / "bundle", find_checkpoint(str(checkpoint), None)).excesses


class TestProcess:
    def test_what_it_measures(self, bloom_checkpoint: Path, bloom_bundle: Path) -> None:
        stages: list[str] = []
        measured, _ = verify_apart(bloom_bundle, bloom_checkpoint, stages.append)
        assert stages == ["starting the verification", "running the graphs", "running transformers"]
        here = verify(bloom_bundle, find_checkpoint(str(bloom_checkpoint), None)).to_json()
        assert measured["measurements"].keys() == here["measurements"].keys()
        assert measured["positions"] == here["positions"]

    def test_it_ends_with_its_parent(self, bloom_checkpoint: Path, bloom_bundle: Path) -> None:
        command = [sys.executable, "-m", "neuroglot_exporter.verification", bloom_bundle, bloom_checkpoint]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60)
        assert (done.returncode, done.stdout) == (1, b"")  # it saw the end of its input, and did not begin

    def test_a_killed_process(self, bloom_checkpoint: Path, bloom_bundle: Path) -> None:
        def kill(stage: str) -> None:
            if stage == "running the graphs":
                (child,) = psutil.Process(os.getpid()).children()
                child.send_signal(signal.SIGKILL)

        with pytest.raises(VerificationError, match="its process was killed, for which too little memory is the usual"):
            verify_apart(bloom_bundle, bloom_checkpoint, kill)
