from __future__ import annotations

import asyncio
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from neuroglot.definitions.bundle import Component, describe_files, read_manifest, write_manifest
from neuroglot.errors import BundleError, InstallationError
from neuroglot_server.config.installation import execution_provider
from neuroglot_server.core import (
    Analysis,
    ByType,
    Deactivate,
    Group,
    Intervention,
    InvalidRequest,
    Limits,
    ModelClosed,
    NeuronType,
    Prediction,
    QueueFull,
    Row,
    Settings,
    Variant,
)
from neuroglot_server.models.model import Model
from tests.server.serving import CAPITALS, analyze, changed_bundle, served

DEACTIVATED = Analysis(
    prediction=Prediction(generate=True),
    variants=(Variant("v", (Intervention(ByType((NeuronType.PARTIAL_SHARED,)), Deactivate()),)),),
)


def violations(bundle: Path, group: Group, analysis: Analysis, limits: Limits) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as error:
        analyze(bundle, group, analysis, Settings(threads=1, limits=limits))
    return dict(error.value.violations)


def test_model_info_has_the_bundle_s_facts_and_the_limits(bloom_bundle: Path) -> None:
    model = Model.load(bloom_bundle, "mine", Settings(threads=1, limits=Limits(tokens_per_row=100)))
    description = model.description
    assert (description.name, description.family, description.dtype) == ("mine", "bloom", "float32")
    assert description.bundle_identity == read_manifest(bloom_bundle).identity
    (component,) = description.components
    assert (component.name, component.layers, component.neurons, component.hidden_size) == ("decoder", 3, 96, 24)
    assert description.limits == Limits(tokens_per_row=100)


def test_tokenize_gives_tokens_and_their_ids(bloom_bundle: Path) -> None:
    async def ask() -> None:
        async with served(bloom_bundle) as model:
            two_words, character = await model.tokenize(["The capital", "法"])
            assert "".join(two_words.tokens) == "TheĠcapital"
            assert len(character.ids) == len(character.tokens) >= 1
            assert await model.tokenize(["The capital"], special_tokens=False) == [two_words]

    asyncio.run(ask())


@pytest.mark.parametrize(("prompt", "field"), [("The capital " * 20, "text"), (tuple(range(4, 60)), "token_ids.ids")])
def test_a_row_over_the_token_limit_is_refused(bloom_bundle: Path, prompt: str, field: str) -> None:
    group = Group("g", (Row("en", "The", ("Paris",)), Row("es", prompt, ("París",))))
    found = violations(bloom_bundle, group, Analysis(prediction=Prediction()), Limits(tokens_per_row=50))
    ((path, description),) = found.items()
    assert path == f"group.rows[1].{field}"
    assert "expected at most 50 together: shorten it" in description


def test_generated_tokens_count_against_the_token_limit(bloom_bundle: Path) -> None:
    group, limits = Group("g", (Row("en", (5,) * 40),)), Limits(tokens_per_row=50)
    allowed = Analysis(prediction=Prediction(generate=True, max_tokens=10))
    assert len(analyze(bloom_bundle, group, allowed, Settings(threads=1, limits=limits)).variants) == 1
    too_many = Analysis(prediction=Prediction(generate=True, max_tokens=11))
    assert list(violations(bloom_bundle, group, too_many, limits)) == ["group.rows[0].token_ids.ids"]


def test_a_full_queue_refuses_requests_until_it_has_capacity(bloom_bundle: Path) -> None:
    async def ask() -> None:
        async with served(bloom_bundle, Settings(threads=1, queue_tokens=300)) as model:
            outcomes = await asyncio.gather(
                *(model.analyze(CAPITALS, DEACTIVATED) for _ in range(3)), return_exceptions=True
            )
            assert [isinstance(outcome, QueueFull) for outcome in outcomes] == [False, True, True]
            await model.analyze(CAPITALS, DEACTIVATED)

    asyncio.run(ask())


def test_cancelling_a_request_does_not_affect_others(bloom_bundle: Path) -> None:
    async def ask() -> None:
        async with served(bloom_bundle) as model:
            expected = await model.analyze(CAPITALS, DEACTIVATED)
            for moment in range(12):
                cancelled = asyncio.create_task(model.analyze(CAPITALS, DEACTIVATED))
                running = asyncio.create_task(model.analyze(CAPITALS, DEACTIVATED))
                await asyncio.sleep(moment * 0.002)
                cancelled.cancel()
                await asyncio.wait([cancelled])
                for actual, reference in zip((await running).variants, expected.variants, strict=True):
                    for prediction, expected_prediction in zip(actual.predictions, reference.predictions, strict=True):
                        assert prediction.token_ids == expected_prediction.token_ids

    asyncio.run(ask())


def test_closing_ends_every_request_with_a_result_or_model_closed(bloom_bundle: Path) -> None:
    async def ask(moment: float) -> list[object]:
        model = Model.load(bloom_bundle, "mine", Settings(threads=1))
        tasks = [asyncio.create_task(model.analyze(CAPITALS, DEACTIVATED)) for _ in range(4)]
        await asyncio.sleep(moment)
        await model.close()
        assert all(task.done() for task in tasks)
        with pytest.raises(ModelClosed):
            await model.analyze(CAPITALS, DEACTIVATED)
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    for moment in range(25):
        for outcome in asyncio.run(ask(moment * 0.001)):
            assert isinstance(outcome, ModelClosed) or getattr(outcome, "group_id", None) == "FR"


@pytest.mark.parametrize(
    ("names", "start", "message"),
    [
        (("encoder", "decoder"), None, "has components encoder, decoder and decoder_start_token_id None, expected"),
        (("decoder",), 0, "has components decoder and decoder_start_token_id 0, expected"),
        (("decoder", "encoder"), 0, "model.components are decoder, encoder, expected decoder, or encoder and decoder"),
        (("decoder", "decoder"), None, "model.components are decoder, decoder, expected decoder, or"),
        (("other",), None, r"model.components\[0\].name is 'other', expected decoder or encoder"),
    ],
)
def test_unknown_sets_of_components_are_refused(
    names: tuple[str, ...], start: int | None, message: str, bloom_bundle: Path, tmp_path: Path
) -> None:
    bundle = changed_bundle(bloom_bundle, tmp_path / "odd")
    manifest = read_manifest(bundle)
    (decoder,) = manifest.model.components
    components = tuple(_renamed(bundle, decoder, name) for name in names)
    facts = dataclasses.replace(manifest.model, components=components, decoder_start_token_id=start)
    write_manifest(bundle, dataclasses.replace(manifest, model=facts, files=describe_files(bundle)))
    with pytest.raises(BundleError, match=message):
        Model.load(bundle, "mine", Settings())


def _renamed(bundle: Path, component: Component, name: str) -> Component:
    """A component under another name, and copies of its files under the names that go with it."""
    graph, norms = f"{name}.onnx", f"{name}.norms.npy"
    for before, after in ((component.graph, graph), (component.norms, norms)):
        if before != after:
            shutil.copyfile(bundle / before, bundle / after)
    return dataclasses.replace(component, name=name, graph=graph, norms=norms)


def test_a_causal_graph_is_refused_as_an_encoder(bloom_bundle: Path, tmp_path: Path) -> None:
    bundle = changed_bundle(bloom_bundle, tmp_path / "mt0")
    manifest = read_manifest(bundle)
    (decoder,) = manifest.model.components
    encoder = _renamed(bundle, decoder, "encoder")
    facts = dataclasses.replace(manifest.model, components=(encoder, decoder), decoder_start_token_id=0)
    write_manifest(bundle, dataclasses.replace(manifest, model=facts, files=describe_files(bundle)))
    with pytest.raises(BundleError, match=r"lacks present\.0\.encoder\.key, present\.0\.encoder\.value"):
        Model.load(bundle, "mine", Settings(threads=1))


def test_norms_of_another_shape_are_refused(bloom_bundle: Path, tmp_path: Path) -> None:
    bundle = changed_bundle(bloom_bundle, tmp_path / "damaged")
    np.save(bundle / "decoder.norms.npy", np.ones((3, 95), dtype=np.float32))
    write_manifest(bundle, dataclasses.replace(read_manifest(bundle), files=describe_files(bundle)))
    with pytest.raises(BundleError, match=r"has float32 \(3, 95\), expected float32 \(3, 96\)"):
        Model.load(bundle, "mine", Settings())


def test_a_graph_without_the_taps_of_its_manifest_is_refused(bloom_bundle: Path, tmp_path: Path) -> None:
    bundle = changed_bundle(bloom_bundle, tmp_path / "gated")
    manifest = read_manifest(bundle)
    (decoder,) = manifest.model.components
    facts = dataclasses.replace(manifest.model, components=(dataclasses.replace(decoder, gated=True),))
    write_manifest(bundle, dataclasses.replace(manifest, model=facts))
    with pytest.raises(BundleError, match=r"lacks ffn\.0\.coefficient, ffn\.1\.coefficient, ffn\.2\.coefficient"):
        Model.load(bundle, "mine", Settings())


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ([], r"onnxruntime is not installed.*neuroglot\[cpu\]"),
        (["onnxruntime", "onnxruntime_gpu"], "both installed.*pip uninstall onnxruntime onnxruntime-gpu"),
    ],
)
def test_a_missing_or_duplicate_onnx_runtime_is_refused(
    installed: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in installed:
        metadata = tmp_path / f"{name}-1.22.0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.22.0\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(InstallationError, match=message):
        execution_provider()
