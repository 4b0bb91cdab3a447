"""One engine: how it starts, and how a pass is stopped."""

from __future__ import annotations

import gc
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import RunOptions

from neuroglot.bundle import read_manifest
from neuroglot_server import passes
from neuroglot_server.devices import Device, session_options, start_session
from neuroglot_server.engine import Engine, Stopped
from neuroglot_server.host_memory import HostMemory
from neuroglot_server.resident import let_go, resident
from neuroglot_server.signature import interfaces, read_signature
from neuroglot_server.steps import RowStep, StepResult


@pytest.fixture
def engine(bloom_bundle: Path) -> Engine:
    facts = read_manifest(bloom_bundle).model
    (component,) = facts.components
    return Engine(bloom_bundle / component.graph, component, interfaces(facts)[component.name], threads=1)


def test_a_pass_that_is_stopped_ends_early_and_the_next_one_runs(engine: Engine) -> None:
    random = np.random.default_rng(0)
    long = [RowStep(tuple(random.integers(4, 320, 1500).tolist()), scored=True) for _ in range(6)]
    short = [RowStep((5, 6, 7), scored=True)]
    (expected,) = engine.run(short)
    used = time.thread_time()
    engine.run(long)
    whole = time.thread_time() - used
    ended = threading.Event()

    def stop() -> None:
        """As soon as it runs: before that a stop does nothing."""
        while not ended.wait(0.01):
            engine.stop()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(stop)
        used = time.thread_time()
        with pytest.raises(Stopped):
            engine.run(long)
        taken = time.thread_time() - used
        ended.set()
    assert taken < 0.8 * whole, "of the processor, for the machine may have other things to do"
    assert engine.run(short)[0].scores == expected.scores


def test_a_stop_between_passes_stops_nothing(engine: Engine) -> None:
    engine.stop()
    (result,) = engine.run([RowStep((5, 6, 7), taps=True)])
    engine.stop()
    assert result.finite


def test_keys_and_values_of_all_layers_are_not_held_at_once_in_a_pass(bloom_bundle: Path, tmp_path: Path) -> None:
    """Those of past and new tokens, put together, are cut as soon as a layer is run: a profile tells the order."""
    facts = read_manifest(bloom_bundle).model
    (component,) = facts.components
    graph, interface = bloom_bundle / component.graph, interfaces(facts)[component.name]
    options = session_options(Device("cpu"), threads=1)
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "pass")
    session = start_session(graph, Device("cpu"), options)
    inputs = [*session.get_inputs(), *session.get_overridable_initializers()]
    signature = read_signature(graph, component, interface, inputs, session.get_outputs())
    steps = [RowStep((5, 6, 7), taps=True)]
    HostMemory(session, signature, threads=1).run(
        steps, passes.inputs(steps, signature), passes.output_names(steps, signature), RunOptions()
    )
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    order = [event["name"].removesuffix("_kernel_time") for event in events if event["cat"] == "Node"]
    cuts = [place for place, name in enumerate(order) if name.startswith("/present.0.")]
    later = [place for place, name in enumerate(order) if name.startswith(f"/transformer/h.{signature.layers - 1}/")]
    assert len(cuts) >= 2
    assert max(cuts) < min(later)


@pytest.fixture
def started_later(bloom_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Engine]:
    """Starts an engine as if its graph were large: with the weights as they lie in the file at first."""
    monkeypatch.setattr("neuroglot_server.starting._WORTH_A_THREAD_BYTES", 0)
    facts = read_manifest(bloom_bundle).model
    (component,) = facts.components
    return lambda bundle: Engine(bundle / component.graph, component, interfaces(facts)[component.name], threads=1)


def packing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "packing"]


def packed() -> None:
    """Come back when packing has ended, as it does some moments after a pass."""
    while threads := packing():
        threads[0].join(10)
        assert not threads[0].is_alive()


def assert_close(got: list[StepResult], expected: list[StepResult], tolerance: float) -> None:
    for one, other in zip(got, expected, strict=True):
        for mine, theirs in ((one.activations, other.activations), (one.kept.pieces[0], other.kept.pieces[0])):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance)
        assert (one.scores is None) == (other.scores is None)
        if one.scores is not None:
            np.testing.assert_allclose(
                one.scores.log_probabilities, other.scores.log_probabilities, atol=10 * tolerance
            )


def test_a_large_graph_answers_at_once_and_the_same_when_it_is_packed(
    bloom_bundle: Path, engine: Engine, started_later: Callable[[Path], Engine]
) -> None:
    later = started_later(bloom_bundle)
    assert packing()
    assert later.signature == engine.signature
    steps = [
        RowStep((5, 6, 7), taps=True, keep=True),
        RowStep((8, 9), scored=True, targets=(5, 6), taps=True, keep=True),
    ]
    expected, first = engine.run(steps), later.run(steps)
    assert packing(), "it was to answer before"
    assert_close(first, expected, 1e-5)
    packed()
    assert_close(later.run(steps), expected, 0)
    going_on = [RowStep((10, 11), past=one.kept, taps=True, keep=True) for one in first]
    again = [RowStep((10, 11), past=one.kept, taps=True, keep=True) for one in expected]
    assert_close(later.run(going_on), engine.run(again), 1e-5)


def test_what_was_packed_is_not_in_memory_as_it_lies_in_the_file(
    bloom_bundle: Path, tmp_path: Path, engine: Engine, started_later: Callable[[Path], Engine]
) -> None:
    bundle = tmp_path / "copy"
    shutil.copytree(bloom_bundle, bundle)

    def pages() -> int:
        mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
        of_weights = [mapping for mapping in mappings if f"{bundle}/weights.data" in mapping]
        assert of_weights
        return sum(int(re.search(r"^Rss: +(\d+) kB$", mapping, re.MULTILINE)[1]) for mapping in of_weights)

    later = started_later(bundle)
    steps = [RowStep((5, 6, 7), taps=True, keep=True)]
    later.run(steps)
    assert pages() > 0
    packed()
    assert pages() == 0
    assert_close(later.run(steps), engine.run(steps), 0)


def test_rows_that_are_looked_up_do_not_add_up_in_memory(
    bloom_bundle: Path, started_later: Callable[[Path], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuroglot_server.starting._MOST_LOOKED_UP_BYTES", 0)
    monkeypatch.setattr("neuroglot_server.engine._LOOK_SECONDS", 0.0)
    later = started_later(bloom_bundle)
    steps = [RowStep((5, 6, 7), taps=True)]
    later.run(steps)
    packed()
    given_back: list[bool] = []
    monkeypatch.setattr(
        "neuroglot_server.starting.let_go", lambda *arguments: given_back.append(let_go(*arguments)) or given_back[-1]
    )
    for _ in range(3):
        later.run(steps)
    assert given_back == [True, True], "each pass but the first gives back what the one before it has looked up"


def test_where_packing_fails_passes_go_on(
    bloom_bundle: Path,
    tmp_path: Path,
    engine: Engine,
    started_later: Callable[[Path], Engine],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = tmp_path / "copy"
    shutil.copytree(bloom_bundle, bundle)
    later = started_later(bundle)
    (bundle / "decoder.onnx").unlink()
    steps = [RowStep((5, 6, 7), taps=True, keep=True)]
    for _ in range(2):
        assert_close(later.run(steps), engine.run(steps), 1e-5)
        packed()
    assert "decoder.onnx runs without packed weights" in caplog.text


@pytest.fixture
def being_packed(
    bloom_bundle: Path, started_later: Callable[[Path], Engine], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Engine, threading.Event]]:
    """An engine whose weights are being packed, until the event is set."""
    begun, go = threading.Event(), threading.Event()

    def slowly(*arguments: object) -> object:
        begun.set()
        assert go.wait(20)
        return start_session(*arguments)

    monkeypatch.setattr("neuroglot_server.starting.start_session", slowly)
    later = started_later(bloom_bundle)
    later.run([RowStep((5, 6, 7), taps=True)])
    assert begun.wait(20)
    yield later, go
    go.set()
    packed()


def test_a_pass_waits_while_weights_are_packed(engine: Engine, being_packed: tuple[Engine, threading.Event]) -> None:
    later, go = being_packed
    steps = [RowStep((5, 6, 7), taps=True, keep=True)]
    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(later.run, steps)
        with pytest.raises(TimeoutError):
            waits.result(0.5)
        go.set()
        assert_close(waits.result(20), engine.run(steps), 0)


def test_a_pass_that_waits_is_stopped_like_one_that_runs(being_packed: tuple[Engine, threading.Event]) -> None:
    later, _ = being_packed
    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(later.run, [RowStep((5, 6, 7), taps=True)])
        with pytest.raises(TimeoutError):
            waits.result(0.2)
        later.stop()
        with pytest.raises(Stopped):
            waits.result(5)


def test_a_pass_does_not_wait_for_ever(
    engine: Engine, being_packed: tuple[Engine, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    later, _ = being_packed
    monkeypatch.setattr("neuroglot_server.starting._LONGEST_PAUSE_SECONDS", 0.2)
    steps = [RowStep((5, 6, 7), taps=True, keep=True)]
    assert_close(later.run(steps), engine.run(steps), 1e-5)


def test_packing_is_given_up_with_its_engine(
    bloom_bundle: Path, started_later: Callable[[Path], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuroglot_server.starting._FIRST_SECONDS", 100.0)
    later = started_later(bloom_bundle)
    assert packing()
    del later
    gc.collect()
    packed()


def test_the_interpreter_does_not_wait_for_what_was_to_be_packed(bloom_bundle: Path) -> None:
    program = f"""
from pathlib import Path
from neuroglot.bundle import read_manifest
from neuroglot_server import starting
from neuroglot_server.engine import Engine
from neuroglot_server.signature import interfaces
starting._WORTH_A_THREAD_BYTES, starting._FIRST_SECONDS = 0, 100.0
bundle = Path({str(bloom_bundle)!r})
facts = read_manifest(bundle).model
(component,) = facts.components
engine = Engine(bundle / component.graph, component, interfaces(facts)[component.name], threads=1)
print("started")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.stdout, ended.returncode) == ("started\n", 0), ended.stderr


def test_a_process_that_has_grown_gives_work_space_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of 1,200 tokens over themselves takes tens of megabytes a head, which nobody reads afterwards."""
    step = [RowStep(tuple(range(10, 130)) * 10, taps=True)]
    engine.run(step)
    before = resident()
    monkeypatch.setattr("neuroglot_server.engine._LOOK_SECONDS", 0)
    monkeypatch.setattr(engine, "_most_bytes", 0)
    (shrunk,) = engine.run(step)
    after = resident()
    assert before.own - after.own > 20 * 2**20
    monkeypatch.setattr(engine, "_most_bytes", np.inf)
    (kept,) = engine.run(step)
    np.testing.assert_array_equal(shrunk.activations, kept.activations)


def test_a_large_graph_that_cannot_be_read_is_refused_at_once(
    bloom_bundle: Path, tmp_path: Path, started_later: Callable[[Path], Engine]
) -> None:
    bundle = tmp_path / "copy"
    shutil.copytree(bloom_bundle, bundle)
    (bundle / "decoder.onnx").write_bytes((bloom_bundle / "decoder.onnx").read_bytes()[:1000])
    with pytest.raises(Exception, match=r"INVALID_PROTOBUF|protobuf"):
        started_later(bundle)
    assert not packing()
