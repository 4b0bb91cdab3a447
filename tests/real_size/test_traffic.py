"""Models are loaded, unloaded and replaced under traffic: nothing wrong, nothing lost, and memory comes back."""

from __future__ import annotations

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
LONGEST_SECONDS = 60.0
"""How long memory may take to come back: a replaced model is closed when its last request has ended."""


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
    alone = memory.record("small model alone", server.process)

    def comes_back(step: str, before: int) -> None:
        """Memory is soon what it was before, but for a tenth of the weights."""
        until = time.monotonic() + LONGEST_SECONDS
        while server.process.memory_info().rss > before + 0.1 * weights and time.monotonic() < until:
            time.sleep(0.2)
        assert memory.record(step, server.process) < before + 0.1 * weights

    with ng.connect(server.address) as client, asking(server, "small", group):
        first: Answer | None = None
        for cycle in range(1, CYCLES + 1):
            model = client.load(real_bundle.name)
            loaded = memory.record(f"load {cycle}", server.process)
            if cycle % 2:
                time.sleep(1)
                answer = ask(model, group)
                first = first or answer
                assert difference(answer, first) == ""
            client.unload(real_bundle.name)
            comes_back(f"unload {cycle}, {'after an answer' if cycle % 2 else 'at once'}", alone)
        client.load(real_bundle.name)
        with asking(server, real_bundle.name, group):
            for cycle in range(1, RELOADS + 1):
                client.load(real_bundle.name)
                comes_back(f"reload {cycle}", loaded)
            assert difference(ask(client.model(real_bundle.name), group), first or answer) == ""
        client.unload(real_bundle.name)
        comes_back("unload after reloads", alone)
