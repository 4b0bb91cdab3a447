"""Programs and servers that end at any moment end cleanly: no abort, no crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.real_size, pytest.mark.timeout(1200)]

AFTER_ANSWER = """
import sys, time
import neuroglot as ng
model = ng.connect(sys.argv[1]).model()
model.analyze(ng.Group({"en": "The capital of France is", "es": "La capital de Francia es"}))
print("answered", flush=True)
time.sleep(float(sys.argv[2]))
"""
"""Ends so many seconds after its answer, and closes nothing."""

BEFORE_ANSWER = """
import contextlib, sys, threading, time
import neuroglot as ng

def ask():
    with contextlib.suppress(Exception):  # a server that ends with the program refuses its requests
        model = ng.connect(sys.argv[1]).model()
        groups = (ng.Group({"en": f"Number {n} is", "es": f"El número {n} es"}, id=str(n)) for n in range(10**6))
        for _ in model.analyze_many(groups, variants={"w/o": ng.deactivate(ng.ALL_SHARED)}):
            pass

threading.Thread(target=ask, daemon=True).start()
time.sleep(float(sys.argv[2]))
"""
"""Ends so many seconds after it began to connect, whatever runs on its thread."""

MOMENTS = 20


@pytest.fixture(autouse=True)
def cores_dumped_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "GRPC_VERBOSITY", "ERROR"
    )  # it would note that a server cancels the calls of a program that ends
    yield
    assert not list(tmp_path.iterdir())


def end(program: str, bundle: Path, seconds: float) -> tuple[int, str, str]:
    """Exit status, standard output, and standard error if it tells of a crash."""
    arguments = [sys.executable, "-c", program, str(bundle), str(seconds)]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    crash = "Fatal Python error" in ended.stderr or "terminate called" in ended.stderr
    errors = ended.stderr if crash else ""  # the log may say that the server refuses what runs while it ends
    return ended.returncode, ended.stdout, errors


def test_programs_end_cleanly_after_their_answer(real_bundle: Path) -> None:
    moments = [round(float(seconds), 2) for seconds in np.geomspace(0.05, 3, MOMENTS)]
    ended = {seconds: end(AFTER_ANSWER, real_bundle, seconds) for seconds in moments}
    assert ended == dict.fromkeys(moments, (0, "answered\n", ""))


def test_programs_end_cleanly_before_their_answer(real_bundle: Path) -> None:
    moments = [round(float(seconds), 2) for seconds in np.linspace(0.05, 6, MOMENTS)]
    ended = {seconds: end(BEFORE_ANSWER, real_bundle, seconds) for seconds in moments}
    assert ended == dict.fromkeys(moments, (0, "", ""))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_start_cleanly(real_bundle: Path, number: signal.Signals) -> None:
    moments = [round(float(seconds), 2) for seconds in np.linspace(0, 2, MOMENTS // 2)]
    ended = {seconds: end_start(real_bundle, seconds, number) for seconds in moments}
    assert ended == dict.fromkeys(moments, (0, ""))


def end_start(bundle: Path, seconds: float, number: signal.Signals) -> tuple[int, str]:
    """Send a signal so long after a server began to load: its exit status, and a traceback if there was one."""
    command = [sys.executable, "-m", "neuroglot", "serve", str(bundle), "--address", "127.0.0.1:0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stderr is not None
        for line in server.stderr:
            if "starting" in line:
                break
        time.sleep(seconds)
        begun = time.monotonic()
        server.send_signal(number)
        errors = server.stderr.read()
        status = server.wait(60)
        assert time.monotonic() - begun < 5
    return status, errors if "Traceback" in errors else ""
