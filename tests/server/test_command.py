"""`neuroglot serve`, as a program of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc

from neuroglot.cli import main
from neuroglot.definitions.bundle import MANIFEST, read_manifest
from neuroglot.v1 import analysis_pb2, service_pb2, service_pb2_grpc
from tests.server.hostile_bundles import change_graph, changes, slow_to_start
from tests.server.live import group

PROGRAM = [sys.executable, "-m", "neuroglot", "serve"]


class Program(NamedTuple):
    """A server that runs."""

    process: subprocess.Popen[str]
    lines: list[str]
    channel: grpc.Channel

    @property
    def stub(self) -> service_pb2_grpc.NeuroglotServiceStub:
        return service_pb2_grpc.NeuroglotServiceStub(self.channel)


@contextmanager
def started(*arguments: object) -> Iterator[Program]:
    """Start the command and wait for its address."""
    command = [*PROGRAM, *map(str, arguments), "--address", "127.0.0.1:0", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith("listening on "):
                break
        assert lines, process.stderr.read()
        assert lines[-1].startswith("listening on "), process.stderr.read()
        target = lines[-1].removeprefix("listening on ")
        with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            yield Program(process, lines, channel)
    finally:
        process.kill()
        process.communicate()


def refused(*arguments: object) -> str:
    """The error of a command that does not start: one line."""
    result = CliRunner().invoke(main, ["serve", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    line, end = result.stderr[:-1], result.stderr[-1]
    assert end == "\n"
    assert "\n" not in line
    return line


def long_request(model: str) -> service_pb2.AnalyzeGroupRequest:
    """A request that runs for some seconds, because it generates many tokens."""
    return service_pb2.AnalyzeGroupRequest(
        model=model,
        group=group(answers=False),
        analysis=analysis_pb2.Analysis(prediction=analysis_pb2.Prediction(generate=True, max_tokens=800)),
    )


def test_it_prints_its_models_and_its_address(bloom_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bloom_bundle, tmp_path / "copy")
    identity = read_manifest(bloom_bundle).identity[:12]
    with started(bloom_bundle, tmp_path / "copy") as program:
        assert program.lines[:-1] == [
            f"model {name}: bloom, decoder 3 x 96 neurons, bundle {identity}" for name in (bloom_bundle.name, "copy")
        ]
        models = program.stub.ListModels(service_pb2.ListModelsRequest(), timeout=10).models
        assert [model.name for model in models] == [bloom_bundle.name, "copy"]


def test_its_options_reach_the_models(bloom_bundle: Path) -> None:
    with started(bloom_bundle, "--row-tokens", 99) as program:
        model = program.stub.GetModel(service_pb2.GetModelRequest(model=bloom_bundle.name), timeout=10).model
        assert model.limits.tokens_per_row == 99


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_requests_finish_and_refuses_new_ones(bloom_bundle: Path, number: signal.Signals) -> None:
    with started(bloom_bundle) as program:
        running = program.stub.AnalyzeGroup.future(long_request(bloom_bundle.name))
        time.sleep(0.5)
        assert not running.done()
        program.process.send_signal(number)
        time.sleep(0.2)
        assert not running.done()
        with pytest.raises(grpc.RpcError) as caught:
            program.stub.AnalyzeGroup(long_request(bloom_bundle.name), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        check = health_pb2_grpc.HealthStub(program.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert check.status == health_pb2.HealthCheckResponse.NOT_SERVING
        tokens = [len(row.token_ids) for row in running.result(timeout=60).result.variants[0].predictions]
        assert max(tokens) == 800
        assert program.process.wait(10) == 0
        assert "Traceback" not in program.process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(bloom_bundle: Path, number: signal.Signals) -> None:
    with started(bloom_bundle) as program:
        running = program.stub.AnalyzeGroup.future(long_request(bloom_bundle.name))
        time.sleep(0.5)
        program.process.send_signal(number)
        time.sleep(0.2)
        assert program.process.poll() is None
        program.process.send_signal(number)
        assert program.process.wait(5) == -number
        assert running.code() is grpc.StatusCode.UNAVAILABLE


def test_the_grace_is_bounded(bloom_bundle: Path) -> None:
    with started(bloom_bundle, "--grace", 0.2) as program:
        running = program.stub.AnalyzeGroup.future(long_request(bloom_bundle.name))
        time.sleep(0.5)
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(10) == 0
        assert running.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_a_port_that_is_taken(bloom_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(bloom_bundle, "--address", f"127.0.0.1:{port}")
    assert said == (
        f"Error: 127.0.0.1:{port} is taken, another program listens there: give another port, or 0 for a free one"
    )


def test_a_non_loopback_address_needs_insecure(bloom_bundle: Path) -> None:
    said = refused(bloom_bundle, "--address", "0.0.0.0:0")
    assert "neither encrypted nor authenticated" in said
    assert "--insecure" in said


def test_insecure_listens_there_and_warns(bloom_bundle: Path) -> None:
    command = [*PROGRAM, str(bloom_bundle), "--address", "0.0.0.0:0", "--insecure", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith("model ")
            assert process.stdout.readline().startswith("listening on 0.0.0.0:")
        finally:
            process.kill()
        assert "neither encrypted nor authenticated" in process.stderr.read()


def test_two_bundles_of_one_name(bloom_bundle: Path) -> None:
    assert "would both be served as" in refused(bloom_bundle, bloom_bundle, "--address", "127.0.0.1:0")


def damaged(bundle: Path, copy: Path, how: str) -> Path:
    shutil.copytree(bundle, copy)
    if how == "half written":
        (copy / MANIFEST).unlink()
    elif how == "newer":
        manifest = json.loads((copy / MANIFEST).read_text())
        (copy / MANIFEST).write_text(json.dumps({**manifest, "format_version": 99}))
    elif how == "changed":
        graph = copy / "decoder.onnx"
        graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    return copy


@pytest.mark.parametrize(
    ("how", "message"),
    [("half written", f"has no {MANIFEST}"), ("newer", "has bundle format 99"), ("changed", "was changed")],
)
def test_a_folder_that_is_not_a_valid_bundle(bloom_bundle: Path, tmp_path: Path, how: str, message: str) -> None:
    assert message in refused(damaged(bloom_bundle, tmp_path / "copy", how), "--address", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("manifest.json pipe", "manifest.json is a pipe, expected a regular file"),
        ("manifest.json zeros", "manifest.json is a symbolic link, expected a regular file"),
        ("model.vocabulary_size=negative", "model.vocabulary_size is -1, expected a whole number from 1 to"),
        ("data/outside", "has its values in '../weights.data', which the manifest does not list"),
        ("graph/unknown_operator", "ONNX Runtime cannot run"),
        ("weights/nan", "has a weight that is not finite"),
        ("tokenizer/garbage", "is not a tokenizer"),
    ],
)
def test_a_bundle_whose_manifest_is_wrong(bloom_bundle: Path, tmp_path: Path, change: str, message: str) -> None:
    shutil.copytree(bloom_bundle, tmp_path / "copy")
    dict(changes())[change](tmp_path / "copy")
    assert message in refused(tmp_path / "copy", "--address", "127.0.0.1:0")


def test_a_bundle_that_takes_too_long_at_the_start_ends_it(bloom_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bloom_bundle, tmp_path / "slow")
    change_graph(tmp_path / "slow", slow_to_start)
    command = [*PROGRAM, str(tmp_path / "slow"), "--address", "127.0.0.1:0", "--threads", "1", "--load-seconds", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines()[-1] == (
        "Error: model 'slow' was not loaded within 1 s, for its session has not started: try again later, or raise "
        "load_seconds"
    )
    assert "Traceback" not in ended.stderr


def test_neither_a_request_nor_the_end_waits_for_a_bundle_that_never_starts(bloom_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bloom_bundle, tmp_path / "slow")
    change_graph(tmp_path / "slow", slow_to_start)
    shutil.copytree(bloom_bundle, tmp_path / "pipe")
    (tmp_path / "pipe" / MANIFEST).unlink()
    os.mkfifo(tmp_path / "pipe" / MANIFEST)
    with started(
        bloom_bundle, "--bundles-folder", tmp_path, "--load-seconds", 1, "--grace", 0.5, "--log-level", "warning"
    ) as program:
        for bundle, code, message in (
            ("pipe", grpc.StatusCode.INVALID_ARGUMENT, "manifest.json is a pipe, expected a regular file"),
            ("slow", grpc.StatusCode.DEADLINE_EXCEEDED, "was not loaded within 1 s, for its session has not started"),
            ("slow", grpc.StatusCode.DEADLINE_EXCEEDED, "was not loaded within 1 s, for another load has not ended"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                program.stub.LoadModel(service_pb2.LoadModelRequest(bundle=bundle), timeout=20)
            assert caught.value.code() is code
            assert message in caught.value.details()
        models = program.stub.ListModels(service_pb2.ListModelsRequest(), timeout=10).models
        assert [model.name for model in models] == [bloom_bundle.name]
        asked = service_pb2.AnalyzeGroupRequest(model=bloom_bundle.name, group=group())
        assert program.stub.AnalyzeGroup(asked, timeout=20).result.group_id == "FR"
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(10) == 0
        assert "Traceback" not in program.process.stderr.read()


def test_a_server_that_does_not_start_leaves_ctrl_c_as_it_was(bloom_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bloom_bundle, tmp_path / "damaged")
    (tmp_path / "damaged" / "manifest.json").unlink()
    before = signal.getsignal(signal.SIGINT)
    assert "has no manifest.json" in refused(tmp_path / "damaged", "--address", "127.0.0.1:0")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "there is no such folder" in refused(tmp_path / "missing", "--address", "127.0.0.1:0")


def test_no_build_of_onnx_runtime(bloom_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version

    def version(name: str) -> str:
        if name.startswith("onnxruntime"):
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    said = refused(bloom_bundle, "--address", "127.0.0.1:0")
    assert "onnxruntime is not installed" in said
    assert "neuroglot[cpu]" in said


def test_a_malformed_address_is_a_usage_error(bloom_bundle: Path) -> None:
    result = CliRunner().invoke(main, ["serve", str(bloom_bundle), "--address", "somewhere"])
    assert result.exit_code == 2
    assert "'somewhere' is not an address: give HOST:PORT" in result.stderr


def test_models_and_their_own_settings_come_from_a_file(bloom_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "neuroglot.toml"
    file.write_text(
        f"""
        row_tokens = 50
        bundles_folder = "."
        [models.short]
        bundle = "{bloom_bundle}"
        row_tokens = 20
        """
    )
    shutil.copytree(bloom_bundle, tmp_path / "loaded")
    with started("--config", file, bloom_bundle) as program:
        program.stub.LoadModel(service_pb2.LoadModelRequest(bundle="loaded", name="short"), timeout=20)
        program.stub.LoadModel(service_pb2.LoadModelRequest(bundle="loaded"), timeout=20)
        models = program.stub.ListModels(service_pb2.ListModelsRequest(), timeout=10).models
        lengths = {model.name: model.limits.tokens_per_row for model in models}
        assert lengths == {bloom_bundle.name: 50, "short": 20, "loaded": 50}


def test_a_new_token_is_accepted(bloom_bundle: Path, tmp_path: Path) -> None:
    made = CliRunner().invoke(main, ["token", "a lice"])
    assert made.exit_code == 0
    said, *table = made.stdout.splitlines()
    token = said.removeprefix("token for a lice: ")
    file = tmp_path / "tokens.toml"
    file.write_text("\n".join(table))
    assert token not in file.read_text()
    with started(bloom_bundle, "--tokens-file", file) as program:
        asked = service_pb2.ListModelsRequest()
        with pytest.raises(grpc.RpcError) as caught:
            program.stub.ListModels(asked, timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = (("authorization", f"Bearer {token}"),)
        assert program.stub.ListModels(asked, timeout=10, metadata=metadata).models


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tls-key", "k"], "give both --tls-certificate and --tls-key"),
        (["--tls-client-ca", "a"], "give both --tls-certificate and --tls-key"),
    ],
)
def test_incomplete_tls_is_a_usage_error(bloom_bundle: Path, flags: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["serve", str(bloom_bundle), *flags])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_models_load_ends_the_process_at_once(
    bloom_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    bundles = [str(shutil.copytree(bloom_bundle, tmp_path / f"bundle-{one}")) for one in range(60)]
    command = [*PROGRAM, *bundles, "--address", "127.0.0.1:0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "started in" in line:
                break
        begun = time.monotonic()
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
        assert time.monotonic() - begun < 2
    assert (process.returncode, output) == (0, "")
    assert "ended by a signal while models were loading" in errors
    assert "Traceback" not in errors
