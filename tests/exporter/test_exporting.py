from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx.external_data_helper import load_external_data_for_model
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuroglot.definitions.bundle import open_bundle
from neuroglot.errors import BundleError, InstallationError
from neuroglot_exporter import embedded, export, packages
from neuroglot_exporter.checkpoints import Checkpoint, find_checkpoint
from neuroglot_exporter.errors import CheckpointError, ExportError, VerificationError
from neuroglot_exporter.needs import Needs, check, estimate
from tests.checkpoints import SENTENCES, byte_level_tokenizer, random_checkpoint


def changed_config(checkpoint: Path, folder: Path, **attributes: Any) -> Path:
    """The same checkpoint with another config.json."""
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "config.json").unlink()
    config = json.loads((checkpoint / "config.json").read_text()) | attributes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class TestBundle:
    def test_it_is_whole_and_says_what_it_is(self, bloom_bundle: Path) -> None:
        manifest = open_bundle(bloom_bundle, full=True)
        assert manifest.source == "random-bloom"
        assert manifest.source_revision == ""
        facts, (decoder,) = manifest.model, manifest.model.components
        assert (facts.family, facts.dtype, facts.vocabulary_size) == ("bloom", "float32", 320)
        assert (facts.eos_token_ids, facts.max_positions) == ((2,), None)
        assert (decoder.name, decoder.layers, decoder.neurons, decoder.hidden_size) == ("decoder", 3, 96, 24)
        assert (decoder.activation_function, decoder.gated) == ("gelu", False)
        assert {"torch", "transformers", "onnx", "optimum-onnx"} <= set(manifest.tools)

    def test_the_manifest_has_what_the_verification_measured(self, bloom_bundle: Path) -> None:
        measured = open_bundle(bloom_bundle).verification
        for what in ("decoder.activations", "logits", "past.decoder.activations", "past.logits"):
            assert 0 < measured["measurements"][what]["difference"] <= 1e-4
        for kind in ("deactivate", "override", "scale", "add"):
            assert measured["measurements"][f"{kind}.decoder.logits"]["difference"] <= 1e-4
            assert measured["measurements"][f"{kind}.decoder.logits"]["effect"] >= 1e-2
        activations = measured["measurements"]["decoder.activations"]
        assert activations["values"] == 3 * 96 * measured["positions"]["decoder"]
        assert activations["type_flips"] <= activations["values"] / 1000
        assert measured["tolerance"]["difference"] == 1e-4
        assert measured["seconds"] > 0

    def test_the_graph_is_small_and_passes_the_full_check(self, bloom_bundle: Path) -> None:
        onnx.checker.check_model(bloom_bundle / "decoder.onnx", full_check=True)
        model = onnx.load(bloom_bundle / "decoder.onnx", load_external_data=False)
        inside = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
        assert sum(len(tensor.SerializeToString()) for tensor in inside) < 2000
        documented = [info for info in model.graph.input if info.name.startswith("ffn.")]
        assert len(documented) == 6
        assert all(info.doc_string for info in documented)

    def test_weights_are_stored_once(self, bloom_checkpoint: Path, bloom_bundle: Path) -> None:
        parameters = load_file(bloom_checkpoint / "model.safetensors")
        assert "lm_head.weight" not in parameters  # tied
        stored = (bloom_bundle / "weights.data").stat().st_size
        assert stored <= 1.02 * sum(parameter.nbytes for parameter in parameters.values())

    def test_the_metadata_name_value_matrices_and_output_embedding(
        self, bloom_checkpoint: Path, bloom_bundle: Path
    ) -> None:
        model = onnx.load(bloom_bundle / "decoder.onnx", load_external_data=False)
        load_external_data_for_model(model, str(bloom_bundle))
        named = {prop.key: prop.value for prop in model.metadata_props}
        tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        parameters = load_file(bloom_checkpoint / "model.safetensors")
        embedding = parameters["transformer.word_embeddings.weight"]
        assert np.array_equal(tensors[named["output_embedding"]], embedding)
        for i in range(3):
            matrix = parameters[f"transformer.h.{i}.mlp.dense_4h_to_h.weight"]
            assert np.array_equal(tensors[named[f"value_matrix.{i}"]], matrix.T)

    def test_the_tokenizer_is_transformers_own_without_padding(
        self, bloom_checkpoint: Path, bloom_bundle: Path
    ) -> None:
        own = Tokenizer.from_file(str(bloom_bundle / "tokenizer.json"))
        tokenizer = AutoTokenizer.from_pretrained(bloom_checkpoint)
        for sentence in SENTENCES:
            assert own.encode(sentence).ids == tokenizer(sentence).input_ids
        assert own.padding is None
        assert own.truncation is None

    def test_a_checkpoint_in_shards_gives_the_same_bundle(
        self, bloom_checkpoint: Path, bloom_bundle: Path, tmp_path: Path
    ) -> None:
        sharded = tmp_path / "random-bloom"
        AutoModelForCausalLM.from_pretrained(bloom_checkpoint).save_pretrained(sharded, max_shard_size="30KB")
        assert len(list(sharded.glob("model-*.safetensors"))) > 2
        AutoTokenizer.from_pretrained(bloom_checkpoint).save_pretrained(sharded)
        manifest = export(str(sharded), tmp_path / "bundle", verify=False)
        assert manifest.identity == open_bundle(bloom_bundle).identity

    def test_an_export_can_be_repeated_bit_by_bit(
        self, bloom_checkpoint: Path, bloom_bundle: Path, tmp_path: Path
    ) -> None:
        assert (
            export(str(bloom_checkpoint), tmp_path / "again", verify=False).identity
            == open_bundle(bloom_bundle).identity
        )

    def test_a_half_precision_checkpoint_is_exported_in_float32(self, tmp_path: Path) -> None:
        checkpoint = random_checkpoint(tmp_path / "half", n_layer=1, dtype="float16")
        manifest = export(str(checkpoint), tmp_path / "bundle", verify=False)
        assert manifest.model.dtype == "float32"

    def test_padding_truncation_and_chat_template(self, tmp_path: Path) -> None:
        checkpoint = random_checkpoint(tmp_path / "checkpoint", n_layer=1)
        tokenizer = byte_level_tokenizer()
        tokenizer.backend_tokenizer.enable_padding(length=50)
        tokenizer.backend_tokenizer.enable_truncation(max_length=3)
        tokenizer.chat_template = "{{ messages }}"
        tokenizer.save_pretrained(checkpoint)
        export(str(checkpoint), tmp_path / "bundle", verify=False)
        own = Tokenizer.from_file(str(tmp_path / "bundle" / "tokenizer.json"))
        assert 3 < len(own.encode(SENTENCES[0]).ids) < 50
        assert (tmp_path / "bundle" / "chat_template.jinja").read_text() == "{{ messages }}"
        assert "chat_template.jinja" in open_bundle(tmp_path / "bundle").files


def test_an_embedded_model_is_found_by_its_name() -> None:
    checkpoint = find_checkpoint("embedded:bloom", None)
    assert (checkpoint.source, checkpoint.family.name) == ("embedded:bloom", "bloom")
    assert checkpoint.commit == embedded.revision("bloom")
    assert (checkpoint.fetch() / "config.json").is_file()


class TestNothingIsLeft:
    """A failed export leaves no folder, neither the bundle's nor the temporary one."""

    def refused(self, source: Path, folder: Path, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            export(str(source), folder / "bundle")
        assert list(folder.iterdir()) == []

    @pytest.fixture
    def empty(self, tmp_path: Path) -> Path:
        folder = tmp_path / "bundles"
        folder.mkdir()
        return folder

    def test_a_graph_that_differs_from_transformers(
        self, bloom_checkpoint: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load = Checkpoint.load_model

        def load_another(checkpoint: Checkpoint, *arguments: Any) -> Any:
            model = load(checkpoint, *arguments)
            model.get_parameter("transformer.h.1.mlp.dense_4h_to_h.weight").data[5, 5] += 0.5
            return model

        monkeypatch.setattr(Checkpoint, "load_model", load_another)  # in this process, not in the verification's
        self.refused(
            bloom_checkpoint,
            empty,
            VerificationError,
            r"differs from transformers: decoder\.activations by .*logits by",
        )

    def test_too_little_disk(self, bloom_checkpoint: Path, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=10**6))
        self.refused(
            bloom_checkpoint, empty, ExportError, r"the bundle will take 0\.1 GB, and the disk of .* has 0\.0 GB"
        )

    def test_a_type_that_no_bundle_has(self, bloom_checkpoint: Path, empty: Path) -> None:
        with pytest.raises(ValueError, match="dtype is 'int8'; a bundle has one of float32, float16"):
            export(str(bloom_checkpoint), empty / "bundle", dtype="int8")
        assert list(empty.iterdir()) == []

    def test_an_unknown_family(self, bloom_checkpoint: Path, empty: Path, tmp_path: Path) -> None:
        other = changed_config(bloom_checkpoint, tmp_path / "other", model_type="mamba")
        self.refused(other, empty, CheckpointError, r"^other is of model type 'mamba'; neuroglot exports .*bloom")

    @pytest.mark.parametrize(
        ("attribute", "value", "match"),
        [
            ("slow_but_exact", True, "slow_but_exact = True, which changes the FFN of bloom; supported is False"),
            ("n_inner", 17, "n_inner = 17, which changes the FFN of bloom; supported is None"),
            ("sparse_ffn", 2, "sparse_ffn = 2, which neuroglot does not know"),
            ("quantization_config", {"bits": 4}, "quantization_config = {'bits': 4}, which neuroglot does not know"),
        ],
    )
    def test_an_attribute_that_could_change_the_ffn(
        self, bloom_checkpoint: Path, empty: Path, tmp_path: Path, attribute: str, value: Any, match: str
    ) -> None:
        changed = changed_config(bloom_checkpoint, tmp_path / "changed", **{attribute: value})
        self.refused(changed, empty, CheckpointError, match)

    def test_attributes_that_published_bloom_checkpoints_have_are_known(
        self, bloom_checkpoint: Path, tmp_path: Path
    ) -> None:
        published = {
            "attention_softmax_in_fp32": True,
            "bias_dropout_fusion": True,
            "masked_softmax_fusion": True,
            "n_inner": None,
            "offset_alibi": 100,
            "pretraining_tp": 4,
            "seq_length": 2048,
            "skip_bias_add": True,
            "skip_bias_add_qkv": False,
            "slow_but_exact": False,
            "unk_token_id": 0,
            "use_cache": True,
        }
        export(
            str(changed_config(bloom_checkpoint, tmp_path / "published", **published)),
            tmp_path / "bundle",
            verify=False,
        )

    def test_missing_weights(self, bloom_checkpoint: Path, empty: Path, tmp_path: Path) -> None:
        deeper = changed_config(bloom_checkpoint, tmp_path / "deeper", n_layer=4)
        self.refused(deeper, empty, CheckpointError, r"^deeper lacks 12 of its weights, transformer\.h\.3\.")

    def test_no_weights(self, bloom_checkpoint: Path, empty: Path, tmp_path: Path) -> None:
        bare = changed_config(bloom_checkpoint, tmp_path / "bare")
        (bare / "model.safetensors").unlink()
        self.refused(bare, empty, CheckpointError, "^the weights of bare cannot be loaded")

    def test_no_tokenizer(self, bloom_checkpoint: Path, empty: Path, tmp_path: Path) -> None:
        bare = changed_config(bloom_checkpoint, tmp_path / "bare")
        for file in bare.glob("*token*"):
            file.unlink()
        self.refused(bare, empty, CheckpointError, "^bare has no tokenizer: none of tokenizer.json")

    @pytest.mark.parametrize(
        ("source", "match"),
        [
            ("./nowhere", "there is no folder ./nowhere"),
            ("a/b/c", "there is no folder a/b/c"),
            (Path("no/where"), f"there is no folder {Path.cwd()}/no/where"),
            ("embedded:gpt", "no embedded model 'gpt'"),
        ],
    )
    def test_no_such_source(self, empty: Path, source: str | Path, match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            export(source, empty / "bundle")
        assert list(empty.iterdir()) == []

    def test_a_folder_without_config(self, empty: Path, tmp_path: Path) -> None:
        (tmp_path / "plain").mkdir()
        self.refused(tmp_path / "plain", empty, CheckpointError, r"plain is no checkpoint: config\.json cannot be read")

    def test_a_folder_has_no_revision(self, bloom_checkpoint: Path, empty: Path) -> None:
        with pytest.raises(CheckpointError, match="is a folder and has no revisions: leave out 'main'"):
            export(str(bloom_checkpoint), empty / "bundle", revision="main")
        assert list(empty.iterdir()) == []

    def test_a_bundle_is_not_overwritten(self, bloom_checkpoint: Path, bloom_bundle: Path) -> None:
        before = (bloom_bundle / "manifest.json").read_bytes()
        with pytest.raises(BundleError, match="exists already"):
            export(str(bloom_checkpoint), bloom_bundle)
        assert (bloom_bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("missing", "extras"), [("torch", "exporter"), ("optimum.onnx", "exporter"), ("onnxruntime", "exporter,cpu")]
)
def test_a_missing_package(
    bloom_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, extras: str
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == missing else find_spec(name))
    message = f"exporting needs the package {missing}, which is not installed: pip install 'neuroglot[{extras}]'"
    with pytest.raises(InstallationError, match=re.escape(message)):
        export(str(bloom_checkpoint), tmp_path / "bundle")


class TestNeeds:
    def test_parameters_are_counted_once_whatever_they_are_stored_in(
        self, bloom_checkpoint: Path, bloom_bundle: Path
    ) -> None:
        needs = estimate(find_checkpoint(str(bloom_checkpoint), None), "float32")
        parameters = load_file(bloom_checkpoint / "model.safetensors")
        assert needs.parameters == sum(parameter.size for parameter in parameters.values())
        bundle = sum(file.stat().st_size for file in bloom_bundle.iterdir())
        assert bundle <= needs.disk

    def test_half_of_the_bytes_take_half_of_the_disk(self) -> None:
        checkpoint = find_checkpoint("embedded:bloom", None)
        whole, half = estimate(checkpoint, "float32"), estimate(checkpoint, "float16")
        assert half.disk < whole.disk
        assert half.parameters == whole.parameters

    def test_short_memory_is_a_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        check(Needs(parameters=1, memory=1e9, disk=1), tmp_path)
        assert caplog.text == ""
        check(Needs(parameters=1, memory=1e15, disk=1), tmp_path)
        assert "the export needs about 1000000.0 GB of memory and " in caplog.text


class TestCommand:
    def neuroglot(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [Path(sys.executable).parent / "neuroglot", "export", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def test_it_says_what_it_does_and_what_came_out(self, bloom_checkpoint: Path, tmp_path: Path) -> None:
        process = self.neuroglot(bloom_checkpoint, tmp_path / "bundle")
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert "tracing" in err
        assert "million parameters: needs about" in err
        assert "running the graphs" in err
        assert "running transformers" in err
        assert open_bundle(tmp_path / "bundle").identity[:12] in out
        assert "Warning" not in err

    def test_an_error_is_one_line(self, tmp_path: Path) -> None:
        process = self.neuroglot("./nowhere", tmp_path / "bundle")
        out, err = process.communicate(timeout=100)
        assert process.returncode == 1
        assert out == ""
        assert err == "Error: there is no folder ./nowhere; give a checkpoint's folder, a Hub id or embedded:NAME\n"

    def test_control_c_leaves_nothing(self, bloom_checkpoint: Path, tmp_path: Path) -> None:
        process = self.neuroglot(bloom_checkpoint, tmp_path / "bundle")
        assert process.stderr is not None
        process.stderr.readline()  # the first stage is done: torch is imported
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)
        assert process.returncode == 1
        assert err.endswith("Aborted!\n")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
    def test_the_verification_ends_with_the_export(
        self, bloom_checkpoint: Path, tmp_path: Path, end: signal.Signals
    ) -> None:
        process = self.neuroglot(bloom_checkpoint, tmp_path / "bundle")
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("hashing"):  # done, so that the verification has begun
                break
        while not (children := psutil.Process(process.pid).children()):
            time.sleep(0.01)
        process.send_signal(end)
        process.communicate(timeout=100)
        gone, alive = psutil.wait_procs(children, timeout=60)
        assert gone
        assert not alive
        assert (list(tmp_path.iterdir()) == []) == (end == signal.SIGINT)

    def test_a_killed_export_leaves_nothing_that_looks_like_a_bundle(
        self, bloom_checkpoint: Path, tmp_path: Path
    ) -> None:
        process = self.neuroglot(bloom_checkpoint, tmp_path / "bundle")
        while process.poll() is None and not list(tmp_path.iterdir()):
            time.sleep(0.01)
        process.kill()
        process.communicate(timeout=100)
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".bundle.partial-")
        with pytest.raises(BundleError, match=r"no manifest\.json"):
            open_bundle(left)
