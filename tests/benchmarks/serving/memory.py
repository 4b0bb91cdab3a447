"""What a server holds, what a second one adds, and how long they take to be ready."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
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

_TOKENS = 12
_AT_REST_SECONDS = 0.2
"""What a server may use of the processor in a second in which it does nothing."""


def peak(server: Server, bundle: Path, after: Mapping[str, int]) -> Measure:
    """The most memory that a server has had so far, over what it may have; and what it was after each part."""
    parameters = (bundle / "weights.data").stat().st_size
    held = server.peak_resident_bytes()
    return Measure(
        "peak memory of a server over (1.3 x the parameters and 1.5 GB)",
        held / (1.3 * parameters + 1.5e9),
        "x",
        1.0,
        "most",
        {"peak_resident_bytes": held, "parameter_bytes": parameters, "peak_resident_bytes_after": dict(after)},
    )


def second_server(bundle: Path) -> Measure:
    """Memory that a second server at work has for itself alone, where `neuroglot prepare` was run before."""
    parameters = (bundle / "weights.data").stat().st_size
    with serving(bundle) as first, serving(bundle) as second:
        for server in (first, second):
            _packed(server, bundle)
            _answers(server, bundle, seed=1)  # another row than before: pages are nobody's until a pass looks at them
        private = second.private_bytes()
        details = {"private_bytes": private, "first_private_bytes": first.private_bytes()}
    what = "private memory of a second server on a prepared bundle over the parameters"
    return Measure(what, private / parameters, "x", 0.5, "most", details)


def prepare(bundle: Path) -> float:
    """Save packed weights, which servers then share; seconds."""
    return seconds(lambda: subprocess.run([sys.executable, "-m", "neuroglot", "prepare", str(bundle)], check=True))


def starts(bundle: Path, rounds: int) -> Iterator[Measure]:
    """How long a server takes until it has answered, and what it has meanwhile; against a plain session's process."""
    peaks = []

    def plain() -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", PLAIN, str(bundle / "decoder.onnx")], check=True))

    def server() -> tuple[float, float]:
        start = time.perf_counter()
        with serving(bundle) as started:
            _answers(started, bundle)
            answered = time.perf_counter() - start
            _packed(started, bundle)
            peaks.append(peak(started, bundle, {}))
            return started.ready_seconds, answered

    plain(), server()  # the files are in memory from here on
    found = [(*server(), plain()) for _ in range(rounds)]
    ratio = statistics.median(answered / taken for _, answered, taken in found)
    for what, bound in (("a start", 1.0), ("a second start", 0.5)):
        name = f"{what} until a row of {_TOKENS} tokens is answered, against a plain session"
        yield Measure(name, ratio, "x", bound, "most", {"listening_answered_and_plain_seconds": found})
    highest = max(peaks, key=lambda one: one.value)
    yield replace(highest, name=f"{highest.name}, at its start")


def _answers(server: Server, bundle: Path, seed: int = 0) -> None:
    """Ask for one short row, which is another one for another seed."""
    with model_of(server) as model:
        model.analyze(Prompter(bundle, seed).group("short", [_TOKENS]), predict=False)


def _packed(server: Server, bundle: Path) -> None:
    """Come back when the server runs with packed weights: it begins after an answer, and is at rest when it is done."""
    _answers(server, bundle)
    used = -math.inf
    while (now := sum(server.process.cpu_times()[:2])) > used + _AT_REST_SECONDS:
        used = now
        time.sleep(1)
    _answers(server, bundle)
