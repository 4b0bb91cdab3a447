"""What a server holds, what a second one adds, and what a start takes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.serving.measures import Measure, seconds
from tests.benchmarks.serving.prompts import Prompter
from tests.benchmarks.serving.servers import Server, model_of, peak_resident_bytes, serving

PLAIN = """
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print("started", flush=True)
sys.stdin.read()
"""
"""A program with a session of a graph, with the options that a server gives its own."""

_TOKENS = 12


def peak(server: Server, bundle: Path, after: Mapping[str, int]) -> Measure:
    """How much more memory a server has had so far than a plain session's start takes; and its peak after each part."""
    held = server.peak_resident_bytes()
    plain = _plain_start(bundle).peak_bytes
    return Measure(
        "peak memory of a server beyond that of a plain session's start",
        (held - plain) / 1e9,
        "GB",
        1.5,
        "most",
        {"peak_resident_bytes": held, "plain_bytes": plain, "peak_resident_bytes_after": dict(after)},
    )


def second_server(bundle: Path) -> Measure:
    """Memory that a second server at work has for itself alone, where `neuroglot prepare` was run before."""
    parameters = (bundle / "weights.data").stat().st_size
    with serving(bundle) as first, serving(bundle) as second:
        for server in (first, second):
            _answers(server, bundle)
        private = second.private_bytes()
        details = {"private_bytes": private, "first_private_bytes": first.private_bytes()}
    what = "private memory of a second server on a prepared bundle over the parameters"
    return Measure(what, private / parameters, "x", 0.5, "most", details)


def prepare(bundle: Path) -> float:
    """Save prepacked weights, which servers then share; seconds."""
    return seconds(lambda: subprocess.run([sys.executable, "-m", "neuroglot", "prepare", str(bundle)], check=True))


class Start(NamedTuple):
    """What a start took.

    Attributes:
        seconds: from the start of the process until it is ready.
        peak_bytes: most resident memory until then, pages of mapped files included.
    """

    seconds: float
    peak_bytes: int


def starts(bundle: Path, rounds: int) -> Iterator[Measure]:
    """What a server takes until it listens, against a process with a plain session of the same graph."""
    _plain_start(bundle), _server_start(bundle)  # the files are in memory from here on
    pairs = [(_server_start(bundle), _plain_start(bundle)) for _ in range(rounds)]
    for what, unit in (("time until it listens", "seconds"), ("peak memory of a start", "peak_bytes")):
        values = [(getattr(server, unit), getattr(plain, unit)) for server, plain in pairs]
        yield Measure(
            f"{what}, against a process with a plain session of the same graph",
            statistics.median(server / plain for server, plain in values),
            "x",
            1.1,
            "most",
            {f"server_and_plain_{unit}": values},
        )


def _server_start(bundle: Path) -> Start:
    with serving(bundle) as server:
        return Start(server.ready_seconds, server.peak_resident_bytes())


def _plain_start(bundle: Path) -> Start:
    begun = time.monotonic()
    command = [sys.executable, "-c", PLAIN, str(bundle / "decoder.onnx")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        if process.stdout.readline() != "started\n":
            raise RuntimeError(f"a plain session of {bundle} does not start: see above")
        start = Start(time.monotonic() - begun, peak_resident_bytes(process.pid))
        process.stdin.close()
    return start


def _answers(server: Server, bundle: Path) -> None:
    """Ask for one short row."""
    with model_of(server) as model:
        model.analyze(Prompter(bundle).group("short", [_TOKENS]), predict=False)
