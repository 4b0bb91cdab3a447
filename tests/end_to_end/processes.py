"""`neuroglot serve` as a process of its own, on loopback."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil

import neuroglot as ng
from neuroglot.v1 import service_pb2_grpc

PROMPT = "The capital of France is "
SMALL = ng.Group({"en": PROMPT, "es": "La capital de Francia es"}, id="small")


class Process:
    """`neuroglot serve` on a bundle."""

    def __init__(self, bundle: Path, *options: str, port: int = 0) -> None:
        self.bundle, self.options = bundle, options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._metrics = f"127.0.0.1:{probe.getsockname()[1]}"
        arguments = ["serve", str(bundle), "--address", f"127.0.0.1:{port}", "--metrics-address", self._metrics]
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "neuroglot", *arguments, "--threads", "1", "--log-level", "warning", *options],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            self.address = self._listens()
        except BaseException:
            self.end()
            raise

    def _listens(self) -> str:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            if found := re.fullmatch(r"listening on (\S+)\n", line):
                return found[1]
        raise AssertionError(f"the server ended with status {self.popen.wait()}")

    def number(self, series: str, labels: str = "") -> float:
        """What Prometheus sees of a series whose labels have this among them, over all of them."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=5) as page:
            pattern = rf"^{series}\{{[^}}]*{re.escape(labels)}[^}}]*\}} (\S+)$"
            return sum(map(float, re.findall(pattern, page.read().decode(), re.MULTILINE)))

    def depth(self) -> float:
        """Tokens that wait or run."""
        return self.number("neuroglot_queue_depth_tokens")

    def resident_bytes(self) -> int:
        return int(psutil.Process(self.popen.pid).memory_info().rss)

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


@contextmanager
def process(bundle: Path, *options: str) -> Iterator[Process]:
    running = Process(bundle, *options)
    try:
        yield running
    finally:
        running.end()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@contextmanager
def raw(address: str, **options: int) -> Iterator[service_pb2_grpc.NeuroglotServiceStub]:
    """The contract's own methods, on a channel with options of gRPC: `http2__bdp_probe=0` is `grpc.http2.bdp_probe`."""
    named = [("grpc." + name.replace("__", "."), value) for name, value in options.items()]
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1), *named]) as channel:
        yield service_pb2_grpc.NeuroglotServiceStub(channel)


def works(server: Process) -> bool:
    """Whether another client gets an answer."""
    with ng.connect(server.address) as client:
        return client.model().analyze(SMALL).group_id == "small"
