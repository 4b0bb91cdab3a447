"""Models are loaded, unloaded and replaced under traffic: nothing wrong, nothing lost, and memory comes back."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import neuroglot as ng
from tests.benchmarks.serving.bundle import bundle
from tests.benchmarks.serving.prompts import Prompter
from tests.benchmarks.serving.servers import Server, serving
from tests.real_size.conftest import BUILD, MemoryTable
from tests.real_size.questions import Answer, ask, difference

pytestmark = [pytest.mark.real_size, pytest.mark.timeout(1200)]

CYCLES = 5
RELOADS = 3
SETTLED_SECONDS = 2.0
"""How long memory must stay as it is: a replaced model is closed when its last request has ended."""
LONGEST_SECONDS = 60.0


class Asking:
    """A client that asks a model for the same group again and again, on a thread.

    Attributes:
        answered: how many answers came.
        wrong: what was not as expected.
    """

    def __init__(self, address: str, name: str, group: ng.Group) -> None:
        self.answered = 0
        self.wrong: list[str] = []
        self._address, self._name, self._group = address, name, group
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        expected: Answer | None = None
        with ng.connect(self._address) as client:
            while not self._stopping.is_set():
                try:
                    answer = ask(client.model(self._name), self._group)
                except Exception as error:  # noqa: BLE001 - whatever it is, the request was lost
                    self.wrong.append(f"{self._name}: {error!r}")
                    continue
                expected = expected or answer
                self.answered += 1
                if differs := difference(answer, expected):
                    self.wrong.append(f"{self._name}: {differs}")

    def end(self) -> None:
        self._stopping.set()
        self._thread.join()


@contextmanager
def asking(server: Server, name: str, group: ng.Group) -> Iterator[Asking]:
    client = Asking(server.address, name, group)
    try:
        yield client
    finally:
        client.end()
    assert client.wrong == []
    assert client.answered > 0


@pytest.fixture
def server(real_bundle: Path) -> Iterator[Server]:
    """A server of a small model, which may load the real one. Without a cache every answer is computed."""
    small = bundle(BUILD / "bench" / "bundles", small=True)
    with serving(small, "--bundles-folder", str(real_bundle.parent), "--cache-bytes", "0") as started:
        yield started


def test_models_come_and_go_under_traffic(real_bundle: Path, server: Server, memory: MemoryTable) -> None:
    group = Prompter(real_bundle).group("compared", [9, 12, 7])
    weights = (real_bundle / "weights.data").stat().st_size
    after_unload = []

    def settled(step: str) -> int:
        """Memory once it does not become less any more."""
        until, before = time.monotonic() + LONGEST_SECONDS, math.inf
        while (now := server.process.memory_info().rss) < before - 0.01 * weights and time.monotonic() < until:
            before = now
            time.sleep(SETTLED_SECONDS)
        return memory.record(step, server.process)

    with ng.connect(server.address) as client, asking(server, "small", group):
        first: Answer | None = None
        memory.record("small model alone", server.process)
        for cycle in range(1, CYCLES + 1):
            model = client.load(real_bundle.name)
            memory.record(f"load {cycle}", server.process)
            if cycle % 2:
                time.sleep(1)
                answer = ask(model, group)
                first = first or answer
                assert difference(answer, first) == ""
            client.unload(real_bundle.name)
            after_unload.append(settled(f"unload {cycle}, {'after an answer' if cycle % 2 else 'at once'}"))
        client.load(real_bundle.name)
        with asking(server, real_bundle.name, group):
            loaded = settled("loaded")
            reloaded = loaded
            for cycle in range(1, RELOADS + 1):
                client.load(real_bundle.name)
                reloaded = settled(f"reload {cycle}")
            assert difference(ask(client.model(real_bundle.name), group), first or answer) == ""
        client.unload(real_bundle.name)
        after_unload.append(settled("unload after reloads"))
    assert max(after_unload) - after_unload[0] < 0.1 * weights
    assert reloaded - loaded < 0.1 * weights
