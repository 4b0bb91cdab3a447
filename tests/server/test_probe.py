"""The probe: a model whose results differ from those recorded at export is not served."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from neuroglot.definitions.bundle import PROBE, read_manifest
from neuroglot.definitions.probe import compare, from_json, read_probe, to_json
from neuroglot.errors import BundleError
from neuroglot.v1 import group_pb2, service_pb2
from neuroglot_server.core import Limits, Settings
from neuroglot_server.lifecycle import start_in_thread
from neuroglot_server.models.model import Model
from neuroglot_server.transport.endpoint import health_name
from neuroglot_server.transport.probing import check_probe
from tests.checkpoints import CONFIGS, RandomModel
from tests.exporter.damage import change_weight, damaged_copy
from tests.server.live import NAME, Live, group, load, said, serving, until
from tests.server.serving import Recorder

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
DOWN_PROJECTION = "transformer.h.1.mlp.dense_4h_to_h.weight"


def negative(weight: np.ndarray) -> None:
    weight[5:8] *= -1


def other_weights(
    bundle: Path, folder: Path, name: str = DOWN_PROJECTION, change: Callable[[np.ndarray], None] = negative
) -> Path:
    """A copy with other weights and their hashes in the manifest; the probe is unchanged."""
    return damaged_copy(bundle, folder, lambda copy: change_weight(copy, name, change))


def without_probe(bundle: Path, folder: Path) -> Path:
    """A copy without a probe, as older exports."""
    return damaged_copy(bundle, folder, lambda copy: (copy / PROBE).unlink())


def with_probe(bundle: Path, folder: Path, change: Callable[[object], object]) -> Path:
    """A copy with a changed probe."""

    def damage(copy: Path) -> None:
        probe = from_json((copy / PROBE).read_text())
        change(probe)
        (copy / PROBE).write_text(to_json(probe))

    return damaged_copy(bundle, folder, damage)


def checked(bundle: Path, settings: Settings | None = None, recorder: Recorder | None = None) -> None:
    """Load a bundle and check its probe."""

    async def check() -> None:
        model = Model.load(bundle, NAME, settings or Settings(threads=1), recorder)
        try:
            await check_probe(model)
        finally:
            await model.close()

    asyncio.run(check())


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    "settings",
    [
        Settings(threads=1),
        Settings(threads=1, cache_bytes=0),
        Settings(threads=1, shared_cache=True),
        Settings(threads=1, batch_tokens=1),
        Settings(threads=1, queue_tokens=1, limits=Limits(tokens_per_row=2, rows_per_group=1, variants_per_group=0)),
    ],
    ids=["defaults", "no-cache", "shared-cache", "one-token-a-batch", "small-limits"],
)
def test_every_family_answers_its_probe_in_any_settings(
    family: str, settings: Settings, random_model: Callable[[str], RandomModel]
) -> None:
    checked(random_model(family).bundle, settings)


def test_the_probe_runs_each_time_and_charges_no_tenant(bloom_bundle: Path) -> None:
    async def check() -> None:
        recorder = Recorder()
        model = Model.load(bloom_bundle, NAME, Settings(threads=1, shared_cache=True), recorder)
        try:
            tokens = []
            for _ in range(2):
                await check_probe(model)
                await asyncio.sleep(0.01)  # batches are reported after their results
                tokens.append(recorder.tokens)
            assert tokens[1] == 2 * tokens[0] > 0
            assert not recorder.hits
            assert not recorder.misses
        finally:
            await model.close()

    asyncio.run(check())


class TestOtherWeights:
    def test_serve_ends_with_one_line(self, bloom_bundle: Path, tmp_path: Path) -> None:
        bundle = other_weights(bloom_bundle, tmp_path / "changed")
        command = [
            sys.executable,
            "-m",
            "neuroglot",
            "serve",
            str(bundle),
            "--address",
            "127.0.0.1:0",
            "--threads",
            "1",
        ]
        done = subprocess.run([*command, "--log-level", "error"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "listening" not in done.stdout
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: the answer of 'changed' to its probe is not what the export recorded: neuron ")

    def test_in_this_process_it_is_refused(self, bloom_bundle: Path, tmp_path: Path) -> None:
        bundle = other_weights(bloom_bundle, tmp_path / "changed")
        with pytest.raises(BundleError, match="to its probe is not what the export recorded"):
            start_in_thread([bundle], Settings(threads=1))

    def test_numbers_that_are_not_finite(self, bloom_bundle: Path, tmp_path: Path) -> None:
        def huge(weight: np.ndarray) -> None:
            weight[:] = 3e38

        with pytest.raises(BundleError, match="to its probe is not finite"):
            checked(other_weights(bloom_bundle, tmp_path / "changed", "transformer.ln_f.weight", huge))

    @pytest.mark.parametrize("family", CONFIGS)
    def test_in_every_family(self, family: str, random_model: Callable[[str], RandomModel], tmp_path: Path) -> None:
        model = random_model(family)
        matrix = read_manifest(model.bundle).model.components[-1].values[0]

        def damage(copy: Path) -> None:
            data = np.memmap(copy / matrix.file, np.float32, "r+", matrix.offset, (matrix.rows, matrix.columns))
            data[: matrix.rows // 8] *= -1
            data.flush()

        with pytest.raises(BundleError, match="to its probe is not what the export recorded"):
            checked(damaged_copy(model.bundle, tmp_path / "changed", damage))

    def test_a_request_cannot_load_it_and_the_old_model_stays(self, bloom_bundle: Path, tmp_path: Path) -> None:
        other_weights(bloom_bundle, tmp_path / "changed")

        async def conversation() -> None:
            async with serving(load(bloom_bundle), bundles_folder=tmp_path) as live:
                before = (await live.stub.AnalyzeGroup(request())).result
                for name in ("", NAME):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await live.stub.LoadModel(service_pb2.LoadModelRequest(bundle="changed", name=name))
                    answer = said(caught.value)
                    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
                    assert "to its probe is not what the export recorded: neuron " in answer.violations["bundle"]
                    assert [model.description.name for model in live.registry.models] == [NAME]
                after = (await live.stub.AnalyzeGroup(request())).result
                assert after.provenance.bundle_identity == before.provenance.bundle_identity
                assert await health(live) == SERVING

        asyncio.run(conversation())


class TestDamagedProbe:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda probe: probe.group.rows[0].ClearField("token_ids"), "expected at least 2, each with token ids"),
            (lambda probe: probe.group.rows.pop(), "do not fit together"),
            (lambda probe: probe.group.rows[0].token_ids.ids.append(320), "has token 320, expected tokens below 320"),
            (lambda probe: setattr(probe.expected.components[0], "neurons", 97), "bytes do not hold an array"),
            (lambda probe: probe.expected.variants.pop(), "expects predictions under"),
            (lambda probe: setattr(probe, "log_probability_tolerance", float("inf")), "tolerances"),
            (lambda probe: probe.analysis.variants[0].interventions[0].ClearField("selection"), "selection"),
            (lambda probe: probe.group.rows[0].token_ids.ids.extend([1] * 64), "expected at most 64 together"),
        ],
    )
    def test_one_line(
        self, bloom_bundle: Path, tmp_path: Path, change: Callable[[object], object], message: str
    ) -> None:
        bundle = with_probe(bloom_bundle, tmp_path / "damaged", change)
        with pytest.raises(BundleError, match="damaged") as caught:
            checked(bundle)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"unknown": 1}', b'{"group": 7}', b"[" * 10_000])
    def test_no_json_of_a_probe(self, bloom_bundle: Path, tmp_path: Path, content: bytes) -> None:
        bundle = damaged_copy(bloom_bundle, tmp_path / "damaged", lambda copy: (copy / PROBE).write_bytes(content))
        with pytest.raises(BundleError, match=r"probe\.json is damaged"):
            checked(bundle)


def test_a_bundle_without_a_probe_is_served_with_a_warning(
    bloom_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = without_probe(bloom_bundle, tmp_path / "old")
    assert read_manifest(bundle).identity == read_manifest(bloom_bundle).identity

    async def conversation() -> None:
        async with serving(load(bundle)) as live:
            assert (await live.stub.AnalyzeGroup(request())).result.components
            answer = await live.stub.GetModel(service_pb2.GetModelRequest(model=NAME, probe=True))
            assert not answer.HasField("probe")

    with caplog.at_level(logging.WARNING):
        asyncio.run(conversation())
    assert f"model {NAME} has no probe" in caplog.text


def test_get_model_sends_the_probe_where_it_is_asked_for(bloom_bundle: Path) -> None:
    async def conversation() -> None:
        async with serving(load(bloom_bundle)) as live:
            plain = await live.stub.GetModel(service_pb2.GetModelRequest(model=NAME))
            assert not plain.HasField("probe")
            probe = (await live.stub.GetModel(service_pb2.GetModelRequest(model=NAME, probe=True))).probe
            assert probe == read_probe(bloom_bundle, read_manifest(bloom_bundle))
            asked = service_pb2.AnalyzeGroupRequest(model=NAME, group=probe.group, analysis=probe.analysis)
            compared = compare(probe, (await live.stub.AnalyzeGroup(asked)).result)
            assert not compared.differences
            assert compared.log_probabilities == 3 * 2 * 3  # rows, answer and choice, baseline and two variants
            assert compared.largest_difference < compared.allowed_difference / 100

    asyncio.run(conversation())


class TestAfterAHang:
    """A pass that takes longer than the watchdog allows, and then ends."""

    SETTINGS = Settings(threads=1, hang_seconds=0.1, batch_tokens=10**6, batch_bytes=2**31, cache_bytes=0)

    async def hang(self, live: Live) -> None:
        """Run a long pass, and check that the model is NOT_SERVING meanwhile."""
        rows = [
            group_pb2.Row(label=str(number), token_ids=group_pb2.TokenIds(ids=[number + 5] * 1000))
            for number in range(40)
        ]
        long = service_pb2.AnalyzeGroupRequest(model=NAME, group=group_pb2.Group(id="long", rows=rows))
        running = asyncio.ensure_future(live.stub.AnalyzeGroup(long))
        while await health(live) == SERVING:
            assert not running.done(), "the pass was too short to count as hung"
            await asyncio.sleep(0.01)
        await running

    def test_the_model_is_healthy_once_it_has_answered_its_probe_again(
        self, bloom_bundle: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        def answered() -> int:
            return sum("answered its probe" in record.message for record in caplog.records)

        async def conversation() -> None:
            async with serving(bundles_folder=bloom_bundle.parent, settings=self.SETTINGS) as live:
                await live.stub.LoadModel(service_pb2.LoadModelRequest(bundle=bloom_bundle.name, name=NAME))
                assert answered() == 1
                await self.hang(live)
                await until(lambda: live.registry.health[NAME])
                assert answered() > 1
                while await health(live) != SERVING:
                    await asyncio.sleep(0.01)
                assert (await live.stub.AnalyzeGroup(request())).result.components

        with caplog.at_level(logging.INFO):
            asyncio.run(conversation())

    def test_a_model_whose_answer_differs_is_out_of_service_until_it_is_loaded_again(
        self, bloom_bundle: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def conversation() -> None:
            async with serving(bundles_folder=bloom_bundle.parent, settings=self.SETTINGS) as live:
                loading = service_pb2.LoadModelRequest(bundle=bloom_bundle.name, name=NAME)
                await live.stub.LoadModel(loading)
                (model,) = live.registry.models
                assert model.probe is not None
                model.probe.expected.variants[0].predictions[0].gold_log_probability += 0.5
                await self.hang(live)
                await until(lambda: "out of service" in caplog.text)
                for _ in range(3):
                    assert await health(live) == NOT_SERVING
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await live.stub.AnalyzeGroup(request())
                    answer = said(caught.value)
                    assert answer.code is grpc.StatusCode.UNAVAILABLE
                    assert "is out of service until it is loaded again: the answer of" in answer.message
                await live.stub.LoadModel(loading)
                while await health(live) != SERVING:
                    await asyncio.sleep(0.01)
                assert (await live.stub.AnalyzeGroup(request())).result.components

        with caplog.at_level(logging.ERROR):
            asyncio.run(conversation())
        assert "of row 'en' under 'baseline' is" in caplog.text


def request() -> service_pb2.AnalyzeGroupRequest:
    return service_pb2.AnalyzeGroupRequest(model=NAME, group=group())


async def health(live: Live) -> int:
    asked = health_pb2.HealthCheckRequest(service=health_name(NAME))
    return (await health_pb2_grpc.HealthStub(live.channel).Check(asked)).status
