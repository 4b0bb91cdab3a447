"""Families: accepted configs, and the longest row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import load_external_data_for_model
from safetensors.numpy import load_file

from neuroglot.definitions.bundle import open_bundle
from neuroglot_exporter import export
from neuroglot_exporter.checkpoints import find_checkpoint
from neuroglot_exporter.errors import CheckpointError
from tests.checkpoints import CONFIGS, RandomModel, byte_level_tokenizer, random_checkpoint
from tests.exporter.reference import MODULES, TOLERANCE, Graph, Transformers, stored

LLAMA_3_POSITIONS = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-2-7b": (
        "llama",
        {"hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 4096, "pretraining_tp": 1}
        | {"rms_norm_eps": 1e-5, "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16"},
    ),
    "Llama-3.2-1B": (
        "llama",
        {"attention_bias": False, "attention_dropout": 0.0, "eos_token_id": [128001, 128008], "head_dim": 64}
        | {"mlp_bias": False, "rope_theta": 500000.0, "rope_scaling": LLAMA_3_POSITIONS, "use_cache": True},
    ),
    "SmolLM2-135M": (
        "llama",
        {"is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000, "transformers.js_config": {}},
    ),
    "xglm-564M": (
        "xglm",
        {"activation_dropout": 0, "activation_function": "gelu", "attention_dropout": 0.1, "dropout": 0.1}
        | {"decoder_start_token_id": 2, "init_std": 0.02, "layerdrop": 0.0, "scale_embedding": True, "use_cache": True},
    ),
    "mt0-small": (
        "mt0",
        {"dense_act_fn": "gelu_new", "dropout_rate": 0.1, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0}
        | {"is_gated_act": True, "layer_norm_epsilon": 1e-06, "relative_attention_max_distance": 128}
        | {"tie_word_embeddings": False, "tokenizer_class": "T5Tokenizer", "torch_dtype": "float32", "use_cache": True},
    ),
    "t5-small": (
        "t5",
        {"n_positions": 512, "output_past": True, "task_specific_params": {"summarization": {"max_length": 200}}}
        | {"architectures": ["T5ForConditionalGeneration"], "relative_attention_num_buckets": 32},
    ),
    "flan-t5-small": ("t5", {"feed_forward_proj": "gated-gelu", "classifier_dropout": 0.0, "n_positions": 512}),
}
"""Attributes in the config.json of published checkpoints, in addition to the geometry that all of a family have."""


def with_config(folder: Path, family: str, **attributes: Any) -> Path:
    """A folder with nothing but the config of a random model, and these attributes in it."""
    folder.mkdir()
    config = CONFIGS[family](byte_level_tokenizer()).to_dict() | attributes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("family", "attributes"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_attributes_that_published_checkpoints_have_are_known(
    family: str, attributes: dict[str, Any], tmp_path: Path
) -> None:
    find_checkpoint(str(with_config(tmp_path / "published", family, **attributes)), None).check_attributes()


@pytest.mark.parametrize(
    ("family", "attribute", "value", "match"),
    [
        ("llama", "rope_interleaved", True, "rope_interleaved = True, which changes"),
        ("llama", "ffn_multiplier", 2, "ffn_multiplier = 2, which neuroglot does not know"),
        ("llama", "num_local_experts", 8, r"families/llama\.py"),
        ("xglm", "moe_freq", 2, "moe_freq = 2, which neuroglot does not know"),
        ("mt0", "num_experts", 8, r"num_experts = 8, which neuroglot does not know .*families/mt0\.py"),
    ],
)
def test_attributes_that_could_change_the_ffn_are_refused(
    family: str, attribute: str, value: Any, match: str, tmp_path: Path
) -> None:
    changed = find_checkpoint(str(with_config(tmp_path / "changed", family, **{attribute: value})), None)
    with pytest.raises(CheckpointError, match=match):
        changed.check_attributes()


POSITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama, dynamic": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama, yarn": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}},
    ),
    "llama, longrope": (
        "llama",
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.5, 1.0], "long_factor": [4.0, 2.0]}}
        | {"original_max_position_embeddings": 40},
    ),
    "xglm": ("xglm", {}),
}


@pytest.mark.parametrize(("family", "geometry"), POSITIONS.values(), ids=POSITIONS.keys())
def test_positions_are_right_up_to_the_longest_row(family: str, geometry: dict[str, Any], tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 1, "max_position_embeddings": 64}
    checkpoint = random_checkpoint(tmp_path / "checkpoint", family, **shape, **geometry)
    longest = export(str(checkpoint), tmp_path / "bundle", verify=False).model.max_positions
    assert longest == (40 if "original_max_position_embeddings" in geometry else 64)
    row = np.random.default_rng(0).integers(4, 320, longest)
    expected = Transformers(checkpoint, family).run(row.tolist())
    got = Graph(tmp_path / "bundle").run(row[np.newaxis], np.ones((1, longest), np.int64))
    assert np.abs(got["logits"][0] - expected["logits"]).max() <= TOLERANCE
    assert np.abs(got["activation"][:, 0] - expected["activation"]).max() <= TOLERANCE


FACTS = {
    "bloom": {"neurons": 96, "gated": False, "activation_function": "gelu", "max_positions": None},
    "llama": {"neurons": 70, "gated": True, "activation_function": "silu", "max_positions": 200},
    "xglm": {"neurons": 70, "gated": False, "activation_function": "gelu", "max_positions": 200},
    "mt0": {"neurons": 70, "gated": True, "activation_function": "gelu_new", "max_positions": None},
    "t5": {"neurons": 70, "gated": False, "activation_function": "relu", "max_positions": None},
}


@pytest.mark.parametrize("family", FACTS)
def test_the_manifest_says_what_the_model_is(family: str, random_model: Callable[[str], RandomModel]) -> None:
    manifest = open_bundle(random_model(family).bundle)
    layers = {"encoder": 3, "decoder": 2} if family in ("mt0", "t5") else {"decoder": 3}
    assert (manifest.model.family, manifest.model.vocabulary_size) == (family, 320)
    assert {component.name: component.layers for component in manifest.model.components} == layers
    for component in manifest.model.components:
        assert {
            "neurons": component.neurons,
            "gated": component.gated,
            "activation_function": component.activation_function,
            "max_positions": manifest.model.max_positions,
        } == FACTS[family]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", MODULES)
def test_every_parameter_is_stored_once_and_what_attribution_needs_is_named_in_metadata_and_manifest(
    family: str, tied: bool, tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(tmp_path / "checkpoint", family, num_hidden_layers=1, tie_word_embeddings=tied)
    export(str(checkpoint), tmp_path / "bundle", verify=False)
    parameters = load_file(checkpoint / "model.safetensors")
    assert ("lm_head.weight" in parameters) != tied
    model = onnx.load(tmp_path / "bundle" / "decoder.onnx", load_external_data=False)
    load_external_data_for_model(model, str(tmp_path / "bundle"))
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    large = sum(tensor.nbytes for tensor in tensors.values() if tensor.nbytes > 64)
    assert large <= 1.02 * sum(parameter.nbytes for parameter in parameters.values())
    named = {prop.key: prop.value for prop in model.metadata_props}
    loaded = Transformers(checkpoint, family)
    head = loaded.model.get_output_embeddings().weight.detach().numpy()
    assert np.array_equal(tensors[named["output_embedding"]], head)
    path = loaded.modules.down_projection.format(i=0)
    values = loaded.model.get_submodule(path).weight.detach().numpy()
    assert np.array_equal(tensors[named["value_matrix.0"]], values.T)
    facts = open_bundle(tmp_path / "bundle").model
    assert np.array_equal(stored(tmp_path / "bundle", facts.output_embedding), head)
    assert np.array_equal(stored(tmp_path / "bundle", facts.components[0].values[0]), values.T)
    assert facts.output_scale == 1
