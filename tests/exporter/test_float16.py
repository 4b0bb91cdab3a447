"""Bundles in float16 against transformers in float32, and results that must not depend on the data type."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from neuroglot.definitions.bundle import WEIGHTS, open_bundle
from neuroglot_exporter import export
from tests.checkpoints import random_checkpoint
from tests.exporter.encoder_decoder import START, Graphs
from tests.exporter.reference import MODULES, Graph, Transformers, left_padded

LOGITS, TYPES = 0.02, 0.005  # of the largest logit, of the neurons
ROWS = [np.random.default_rng(0).integers(4, 320, length).tolist() for length in (9, 1, 4, 14)]


class Exported(NamedTuple):
    family: str
    checkpoint: Path
    bundle: Path


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """By family: a random model and its bundle, made when first asked for."""

    @cache
    def exported(family: str) -> Exported:
        folder = tmp_path_factory.mktemp("float16")
        checkpoint = random_checkpoint(folder / "checkpoint", family)
        export(str(checkpoint), folder / "bundle", dtype="float16", verify=False)
        return Exported(family, checkpoint, folder / "bundle")

    return exported


@pytest.fixture(params=[*MODULES, "mt0"])
def exported(request: pytest.FixtureRequest, half: Callable[[str], Exported]) -> Exported:
    return half(request.param)


@pytest.fixture(params=MODULES)
def causal(request: pytest.FixtureRequest, half: Callable[[str], Exported]) -> Exported:
    return half(request.param)


def test_weights_take_half_the_bytes_but_for_what_the_model_keeps_in_float32(exported: Exported) -> None:
    whole = (exported.checkpoint / "model.safetensors").stat().st_size
    half = (exported.bundle / WEIGHTS).stat().st_size
    kept = 0
    for component in open_bundle(exported.bundle).model.components:
        graph = onnx.load(exported.bundle / component.graph, load_external_data=False).graph
        single = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims]
        large = [tensor for tensor in single if np.prod(tensor.dims) > 100]
        assert all(tensor.name.endswith("DenseReluDense.wo.weight") for tensor in large)
        kept += sum(2 * int(np.prod(tensor.dims)) for tensor in large)
    assert (kept > 0) == (exported.family == "mt0")
    assert half - kept < 0.55 * whole


def test_what_goes_in_and_comes_out_is_float16(exported: Exported) -> None:
    assert open_bundle(exported.bundle).model.dtype == "float16"
    for component in open_bundle(exported.bundle).model.components:
        session = Graph(exported.bundle, component.name).session
        floats = [
            info
            for info in (*session.get_inputs(), *session.get_overridable_initializers(), *session.get_outputs())
            if info.name.startswith(("ffn.", "past_key_values.", "present.")) or info.name == "logits"
        ]
        assert {info.type for info in floats} == {"tensor(float16)"}


def feeds(graph: Graph, width: int) -> dict[str, np.ndarray]:
    ids, mask = left_padded(ROWS, width)
    past = {name: value.astype(np.float16) for name, value in graph.no_past(len(ROWS)).items()}
    everything = dict.fromkeys(("activations_from", "logits_from"), np.array([-(2**40)]))
    inputs = {"input_ids": ids, "attention_mask": mask, **past, **everything}
    if any(info.name == "position_ids" for info in graph.session.get_inputs()):
        inputs["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)
    return inputs


def test_it_computes_what_transformers_computes_in_float32(causal: Exported) -> None:
    graph = Graph(causal.bundle)
    got = dict(zip(graph.outputs, graph.session.run(None, feeds(graph, 20)), strict=True))
    reference = Transformers(causal.checkpoint, causal.family)
    flips = neurons = 0
    for r, row in enumerate(ROWS):
        expected = reference.run(row)
        difference = np.abs(got["logits"][r, -len(row) :].astype(np.float32) - expected["logits"]).max()
        assert 0 < difference <= LOGITS * np.abs(expected["logits"]).max()
        for i, activation in enumerate(expected["activation"]):
            flips += int(np.count_nonzero((got[f"ffn.{i}.activation"][r, -len(row) :] > 0) != (activation > 0)))
            neurons += activation.size
    assert flips <= TYPES * neurons


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy's, where padding has nothing to attend to
def test_padding_computes_no_nan_where_every_operation_rounds_to_float16(causal: Exported) -> None:
    """ONNX Runtime computes much of it in float32 on a CPU; onnx's own evaluator rounds as a GPU does."""
    graph = Graph(causal.bundle)
    values = ReferenceEvaluator(onnx.load(causal.bundle / "decoder.onnx")).run(None, feeds(graph, 30))
    assert all(np.isfinite(value).all() for value in values)


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_nor_does_it_in_an_encoder_decoder(half: Callable[[str], Exported]) -> None:
    bundle = half("mt0").bundle
    graphs = Graphs(bundle)
    prompts, prompt_mask = left_padded(ROWS, 30)
    steps, mask = left_padded([[START, *row[:3]] for row in ROWS], 10)
    past = {name: value.astype(np.float16) for name, value in graphs.decoder.no_past(len(ROWS)).items()}
    encoder, decoder = (ReferenceEvaluator(onnx.load(bundle / f"{name}.onnx")) for name in ("encoder", "decoder"))
    kept = encoder.run(None, {"input_ids": prompts, "attention_mask": prompt_mask})
    encoded = dict(zip(graphs.encoder.outputs, kept, strict=True))
    cross = {name.replace("present", "past_key_values"): encoded[name] for name in encoded if "present" in name}
    masks = {"decoder_attention_mask": mask, "encoder_attention_mask": prompt_mask}
    values = decoder.run(None, {"input_ids": steps, **masks, **past, **cross})
    assert all(np.isfinite(value).all() for value in (*encoded.values(), *values))


@pytest.mark.parametrize("family", ["bloom", "mt0"])
def test_the_verification_measures_it_against_float32(
    family: str, half: Callable[[str], Exported], tmp_path: Path
) -> None:
    exported = half(family)
    manifest = export(str(exported.checkpoint), tmp_path / "bundle", dtype="float16")
    assert manifest.identity == open_bundle(exported.bundle).identity
    measured = manifest.verification["measurements"]
    logits = next(value for name, value in measured.items() if name.endswith("logits"))
    assert 1e-4 < logits["difference"] <= LOGITS * logits["magnitude"]
