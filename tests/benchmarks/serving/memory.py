"""What a server holds, what a second one adds, and how long they take to be ready."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.serving.measures import Measure, seconds
from tests.benchmarks.serving.prompts import Prompter
from tests.benchmarks.serving.servers import Server, model_of, serving

PLAIN = """
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def peak(server: Server, bundle: Path) -> Measure:
    """The most memory that a server has had so far, over what it may have."""
    parameters = (bundle / "weights.data").stat().st_size
    held = server.peak_resident_bytes()
    return Measure(
        "peak memory of a server over (1.3 x the parameters and 1.5 GB)",
        held / (1.3 * parameters + 1.5e9),
        "x",
        1.0,
        "most",
        {"peak_resident_bytes": held, "parameter_bytes": parameters},
    )


def second_server(bundle: Path) -> Measure:
    """Memory that a second server has for itself alone, where `neuroglot prepare` was run before."""
    parameters = (bundle / "weights.data").stat().st_size
    with serving(bundle) as first, serving(bundle) as second:
        for server in (first, second):
            _answers(server, bundle)
        private = second.private_bytes()
        details = {"private_bytes": private, "first_private_bytes": first.private_bytes()}
    what = "private memory of a second server on a prepared bundle over the parameters"
    return Measure(what, private / parameters, "x", 0.5, "most", details)


def prepare(bundle: Path) -> float:
    """Save packed weights, which servers then share; seconds."""
    return seconds(lambda: subprocess.run([sys.executable, "-m", "neuroglot", "prepare", str(bundle)], check=True))


def starts(bundle: Path, rounds: int) -> Iterator[Measure]:
    """How long a server takes until it listens, and until it has answered; against a plain session, whole processes."""

    def plain() -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", PLAIN, str(bundle / "decoder.onnx")], check=True))

    def server() -> tuple[float, float]:
        start = time.perf_counter()
        with serving(bundle) as started:
            _answers(started, bundle)
            return started.ready_seconds, time.perf_counter() - start

    plain(), server()  # the files are in memory from here on
    found = [(*server(), plain()) for _ in range(rounds)]
    for what, place, bound in (("it listens", 0, 1.0), ("its first answer", 1, 1.0), ("it listens, again", 0, 0.5)):
        yield Measure(
            f"a start until {what}, against a plain session",
            statistics.median(one[place] / one[2] for one in found),
            "x",
            bound,
            "most",
            {"listening_answering_and_plain_seconds": found},
        )


def _answers(server: Server, bundle: Path) -> None:
    """Ask for one short group."""
    with model_of(server) as model:
        model.analyze(Prompter(bundle).facts(1)[0], predict=False)
