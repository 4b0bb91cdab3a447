"""One engine: how it starts, and how a pass is stopped."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from neuroglot.bundle import read_manifest
from neuroglot_server.engine import Engine, Stopped
from neuroglot_server.signature import interfaces
from neuroglot_server.steps import RowStep


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
    started = time.monotonic()
    engine.run(long)
    whole = time.monotonic() - started
    timer = threading.Timer(whole / 10, engine.stop)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        engine.run(long)
    assert time.monotonic() - started < 0.8 * whole
    timer.join()
    assert engine.run(short)[0].scores == expected.scores


def test_a_stop_between_passes_stops_nothing(engine: Engine) -> None:
    engine.stop()
    (result,) = engine.run([RowStep((5, 6, 7), taps=True)])
    engine.stop()
    assert result.finite


def test_a_large_graph_starts_in_the_background_and_gives_the_same(
    bloom_bundle: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuroglot_server.starting._WORTH_A_THREAD_BYTES", 0)
    facts = read_manifest(bloom_bundle).model
    (component,) = facts.components
    later = Engine(bloom_bundle / component.graph, component, interfaces(facts)[component.name], threads=1)
    assert later.signature == engine.signature
    steps = [RowStep((5, 6, 7), taps=True, keep=True), RowStep((8, 9), scored=True, targets=(5, 6), taps=True)]
    for got, expected in zip(later.run(steps), engine.run(steps), strict=True):
        assert got.scores == expected.scores
        np.testing.assert_array_equal(got.activations, expected.activations)


def test_a_large_graph_that_cannot_be_read_is_refused_at_once(
    bloom_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuroglot_server.starting._WORTH_A_THREAD_BYTES", 0)
    facts = read_manifest(bloom_bundle).model
    (component,) = facts.components
    for file in bloom_bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / component.graph).write_bytes((bloom_bundle / component.graph).read_bytes()[:1000])
    with pytest.raises(Exception, match=r"INVALID_PROTOBUF|protobuf"):
        Engine(tmp_path / component.graph, component, interfaces(facts)[component.name], threads=1)
