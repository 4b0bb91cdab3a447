"""One engine: how it starts, and how a pass is stopped."""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import RunOptions

from neuroglot.definitions.bundle import read_manifest
from neuroglot_server.engine import passes
from neuroglot_server.engine.devices import Device, session_options, start_session
from neuroglot_server.engine.graph import interfaces, read_signature
from neuroglot_server.engine.kv_host import HostMemory
from neuroglot_server.engine.process_memory import anonymous_bytes
from neuroglot_server.engine.session import Engine, Stopped
from neuroglot_server.engine.steps import RowStep


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


def test_a_start_is_logged_with_the_size_of_the_weights_and_its_time(
    bloom_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = read_manifest(bloom_bundle).model
    (component,) = facts.components
    caplog.set_level("INFO", "neuroglot_server")
    Engine(bloom_bundle / component.graph, component, interfaces(facts)[component.name], threads=1)
    begun, ended = caplog.messages
    graph = re.escape(str(bloom_bundle / component.graph))
    assert re.fullmatch(rf"starting {graph}, whose bundle has \d+\.\d MB of weights", begun)
    assert re.fullmatch(rf"{graph} started in \d+\.\d s", ended)


def test_a_started_engine_leaves_no_thread_of_the_start_behind(bloom_bundle: Path) -> None:
    """Weights are prepacked before the start ends: no pass runs beside it, and nothing has to be cancelled."""
    facts = read_manifest(bloom_bundle).model
    (component,) = facts.components
    before = threading.enumerate()
    started = Engine(bloom_bundle / component.graph, component, interfaces(facts)[component.name], threads=1)
    assert threading.enumerate() == before
    steps = [RowStep((5, 6, 7), taps=True, keep=True)]
    first, second = started.run(steps), started.run(steps)
    np.testing.assert_array_equal(first[0].activations, second[0].activations)


def test_a_process_that_has_grown_gives_work_space_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of 1,200 tokens over themselves takes tens of megabytes a head, which nobody reads afterwards."""
    step = [RowStep(tuple(range(10, 130)) * 10, taps=True)]
    monkeypatch.setattr("neuroglot_server.engine.session._CHECK_SECONDS", 0)
    engine.run(step)
    before = anonymous_bytes()
    monkeypatch.setattr("neuroglot_server.engine.session._GROWTH_BYTES", -(2**40))
    (shrunk,) = engine.run(step)
    after = anonymous_bytes()
    assert before - after > 20 * 2**20
    monkeypatch.setattr("neuroglot_server.engine.session._GROWTH_BYTES", 2**40)
    (kept,) = engine.run(step)
    np.testing.assert_array_equal(shrunk.activations, kept.activations)
