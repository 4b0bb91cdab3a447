"""A real server in a process of its own, on loopback, for the length of a block."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

import neuroglot as ng


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        address: `127.0.0.1:PORT`.
        process: its process.
        ready_seconds: from the start of the process until it said that it listens.
    """

    address: str
    process: psutil.Process
    ready_seconds: float

    def peak_resident_bytes(self) -> int:
        """Most memory that it has had so far, mapped files included."""
        return peak_resident_bytes(self.process.pid)

    def private_bytes(self) -> int:
        """Memory that it shares with nobody."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup")
        return (_kilobytes(rollup, "Private_Clean") + _kilobytes(rollup, "Private_Dirty")) * 1024


def peak_resident_bytes(pid: int) -> int:
    """Most memory that a process has had so far, mapped files included."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM") * 1024


def _kilobytes(file: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", file.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None, f"{file} has no {name}"
    return int(found[1])


@contextmanager
def serving(bundle: Path, *options: str) -> Iterator[Server]:
    """Start `neuroglot serve`, and end it by the process that was started."""
    start = time.monotonic()
    arguments = ["-m", "neuroglot", "serve", str(bundle), "--address", "127.0.0.1:0", "--log-level", "warning"]
    with subprocess.Popen([sys.executable, *arguments, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Server(_address(process), psutil.Process(process.pid), time.monotonic() - start)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.fullmatch(r"listening on (\S+)\n", line):
            return found[1]
    raise RuntimeError(f"the server ended with status {process.wait()} before it answered")


@contextmanager
def model_of(server: Server) -> Iterator[ng.Model]:
    """A connection of its own."""
    with ng.connect(server.address) as client:
        yield client.model()
