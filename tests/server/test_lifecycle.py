from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc
import pytest

from neuroglot.definitions.bundle import read_manifest
from neuroglot.errors import BundleError, InstallationError
from neuroglot.v1 import analysis_pb2, service_pb2, service_pb2_grpc
from neuroglot_server.core import Limits, Settings
from neuroglot_server.lifecycle import by_name, start_in_thread
from tests.server.live import group

ONE_THREAD = Settings(threads=1)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = Path(tempfile.mkdtemp(prefix="t"))  # shorter than pytest's, because the path of a socket is limited
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


def models(target: str) -> list[str]:
    """Names of the models at a target."""
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = service_pb2_grpc.NeuroglotServiceStub(channel)
        return [model.name for model in stub.ListModels(service_pb2.ListModelsRequest(), timeout=10).models]


def test_a_server_in_a_thread_is_private_to_this_user_and_leaves_no_files(bloom_bundle: Path, temporary: Path) -> None:
    server = start_in_thread([bloom_bundle], ONE_THREAD)
    socket = Path(server.target.removeprefix("unix:"))
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert socket.parent.parent == temporary
    assert [model.bundle_identity for model in server.models] == [read_manifest(bloom_bundle).identity]
    assert models(server.target) == [bloom_bundle.name]
    server.close()
    server.close()
    assert not list(temporary.iterdir())
    assert "neuroglot-server" not in {thread.name for thread in threading.enumerate()}


def test_settings_reach_the_models(bloom_bundle: Path) -> None:
    with start_in_thread([bloom_bundle], Settings(Limits(tokens_per_row=77), threads=1)) as server:
        assert server.models[0].limits.tokens_per_row == 77


def test_several_bundles_and_several_servers_live_side_by_side(bloom_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bloom_bundle, tmp_path / "another")
    with (
        start_in_thread([tmp_path / "another", str(bloom_bundle)], ONE_THREAD) as both,
        start_in_thread([bloom_bundle], ONE_THREAD) as one,
    ):
        assert models(both.target) == ["another", bloom_bundle.name]
        assert models(one.target) == [bloom_bundle.name]
    with start_in_thread([bloom_bundle], ONE_THREAD) as later:
        assert models(later.target) == [bloom_bundle.name]


def test_a_loopback_port_is_used_if_the_socket_s_path_is_too_long(
    bloom_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with start_in_thread([bloom_bundle], ONE_THREAD) as server:
        assert server.target.startswith("127.0.0.1:")
        assert models(server.target) == [bloom_bundle.name]


def test_errors_of_a_bundle_are_raised_in_the_caller_and_leave_no_files(temporary: Path) -> None:
    with pytest.raises(BundleError, match="there is no such folder"):
        start_in_thread([temporary / "missing"])
    assert not list(temporary.iterdir())


def test_two_bundles_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"a/m and .*b/m would both be served as 'm': rename one of the folders"):
        by_name([tmp_path / "a" / "m", tmp_path / "b" / "m"])


def test_a_bundle_s_name_is_its_folder_s_however_it_is_written(
    bloom_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bloom_bundle)
    assert list(by_name([Path()])) == [bloom_bundle.name]


def test_two_builds_of_onnx_runtime_are_refused(
    bloom_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "onnxruntime_gpu-1.22.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.22.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InstallationError, match="onnxruntime and onnxruntime-gpu are both installed"):
        start_in_thread([bloom_bundle])


def test_closing_cancels_running_requests(bloom_bundle: Path) -> None:
    server = start_in_thread([bloom_bundle], ONE_THREAD)
    request = service_pb2.AnalyzeGroupRequest(
        model=bloom_bundle.name,
        group=group(answers=False),
        analysis=analysis_pb2.Analysis(prediction=analysis_pb2.Prediction(generate=True, max_tokens=900)),
    )
    with grpc.insecure_channel(server.target) as channel:
        calls = [service_pb2_grpc.NeuroglotServiceStub(channel).AnalyzeGroup.future(request) for _ in range(20)]
        time.sleep(0.3)
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < 10
        codes = {call.code() for call in calls}
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_a_program_that_forgets_to_close_ends_cleanly(bloom_bundle: Path, temporary: Path) -> None:
    program = (
        "import sys\n"
        "from neuroglot_server.lifecycle import start_in_thread\n"
        "server = start_in_thread(sys.argv[1:])\n"
        "print(server.target)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(bloom_bundle)],
        env={"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [
        line for line in ended.stderr.splitlines() if str(bloom_bundle) not in line
    ]  # progress, if loading took long
    assert (ended.returncode, said) == (0, [])
    assert ended.stdout.startswith(f"unix:{temporary}/neuroglot-")
    assert not list(temporary.glob("neuroglot-*"))


def test_a_start_that_takes_long_shows_what_it_starts_and_how_long_it_took(
    bloom_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start_in_thread([bloom_bundle], ONE_THREAD).close()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("neuroglot_server.lifecycle._SHORT_LOAD_SECONDS", 0.0)
    start_in_thread([bloom_bundle], ONE_THREAD).close()
    begun, ended = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"starting {re.escape(str(bloom_bundle))}: \d+\.\d MB of weights", begun)
    assert re.fullmatch(rf"{re.escape(str(bloom_bundle))} is ready after \d+\.\d s", ended)


@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.6, 0.9])
def test_a_program_that_ends_while_models_load_ends_cleanly(
    seconds: float, bloom_bundle: Path, temporary: Path
) -> None:
    program = f"""
import sys, tempfile, threading, time
from neuroglot_server.lifecycle import start_in_thread
tempfile.tempdir = {str(temporary)!r}
threading.Thread(target=start_in_thread, args=[sys.argv[1:]], daemon=True).start()
time.sleep({seconds})
"""
    bundles = copies(bloom_bundle, temporary / "bundles", 10)
    ended = subprocess.run([sys.executable, "-c", program, *bundles], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert [path.name for path in temporary.iterdir()] == ["bundles"]


def test_a_program_that_ends_before_its_server_begins_ends_cleanly(bloom_bundle: Path, temporary: Path) -> None:
    """Python imports less and less as it ends, so that the server's thread may fail before it has an event loop."""
    program = f"""
import sys, tempfile, threading, time
from neuroglot_server.lifecycle import start_in_thread
tempfile.tempdir = {str(temporary)!r}

def start():
    threading.main_thread().join()
    start_in_thread(sys.argv[1:])

threading.Thread(target=start, daemon=True).start()
threading.Thread(target=time.sleep, args=[2]).start()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, str(bloom_bundle)], capture_output=True, timeout=30, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert not list(temporary.iterdir())


def copies(bundle: Path, folder: Path, count: int) -> list[str]:
    """A bundle under many names: a start with all of them takes some seconds."""
    return [str(shutil.copytree(bundle, folder / f"bundle-{number}")) for number in range(count)]
