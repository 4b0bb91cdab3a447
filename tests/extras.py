"""Installs each extra into an environment of exactly its requirements, and does there what the extra promises.

    python -m tests.extras           # all of them: minutes, and 2 GB of disk under build/extras
    python -m tests.extras base cpu

`gpu` is checked with the CPU build of ONNX Runtime in place of CUDA's, which is several gigabytes: what its own path
imports and runs is the same.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "extras"
BUNDLE = FOLDER / "bloom"

ASK = """
import sys
import neuroglot as ng
with ng.connect(sys.argv[1]) as client:
    result = client.model().analyze(ng.Group({"en": "The capital of France is", "es": "La capital de Francia es"}))
    assert result.types.counts().sum() > 0
"""

ASSEMBLE = """
import numpy as np
from neuroglot_server import lifecycle
from neuroglot_server.engine import kv_device
from neuroglot_server.engine.devices import Device
from neuroglot_server.engine.kv_graphs import Assembly
assembly = Assembly(Device.parse("cpu"), np.dtype(np.float32))
value = assembly.of_host(np.arange(24, dtype=np.float32).reshape(2, 1, 2, 3, 2))
(piece,) = assembly.cut(value, [(0, range(1, 3))])
assert piece.numpy().shape == (2, 1, 2, 2, 2)
"""


class Environment:
    """A virtual environment with some extras of the checkout, and nothing else."""

    def __init__(self, name: str, *requirements: str) -> None:
        self._bin = FOLDER / name / "bin"
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        self._called([sys.executable, "-m", "venv", str(FOLDER / name)])
        pip = [str(self._bin / "pip"), "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
        self._called([*pip, *requirements])
        self._called([str(self._bin / "pip"), "check"])

    def neuroglot(self, *arguments: object, status: int = 0) -> str:
        """What the command prints, on both streams."""
        return self._called([str(self._bin / "neuroglot"), *map(str, arguments)], status)

    def python(self, script: str, *arguments: object) -> None:
        self._called([str(self._bin / "python"), "-I", "-c", script, *map(str, arguments)])

    @contextmanager
    def serving(self, *arguments: object) -> Iterator[str]:
        """The address of a server of the bundle."""
        command = [str(self._bin / "neuroglot"), "serve", str(BUNDLE), "--address", "127.0.0.1:0", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=FOLDER)
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            yield next(line.split()[-1] for line in lines if line.startswith("listening on "))
        finally:
            process.kill()
            process.communicate()

    @staticmethod
    def _called(command: list[str], status: int = 0) -> str:
        """Run in a folder from which no package of the checkout can be imported.

        Raises:
            SystemExit: it ended with another status; what it printed is shown.
        """
        ended = subprocess.run(command, cwd=FOLDER, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if ended.returncode != status:
            sys.exit(f"{' '.join(command)}\nended with {ended.returncode}, not {status}:\n{ended.stdout}")
        return ended.stdout


def exporter() -> None:
    """Alone it says what is missing; with a build of ONNX Runtime it exports and verifies."""
    alone = Environment("exporter", str(ROOT / "models"), f"{ROOT}[exporter]")
    said = alone.neuroglot("export", "embedded:bloom", FOLDER / "other", status=1)
    assert said.splitlines() == [
        "Error: exporting needs the package onnxruntime, which is not installed: pip install 'neuroglot[exporter,cpu]'"
    ], said


def exporter_cpu() -> None:
    """Exports, verifies and serves in the process."""
    environment = Environment("exporter-cpu", str(ROOT / "models"), f"{ROOT}[exporter,cpu]")
    shutil.rmtree(BUNDLE, ignore_errors=True)
    environment.neuroglot("export", "embedded:bloom", BUNDLE)
    environment.neuroglot("verify", BUNDLE, "--source", "embedded:bloom")
    environment.python(ASK, BUNDLE)


def cpu() -> None:
    """Serves; `base`, `analysis` and `tracing` ask or are asked."""
    environment = Environment("cpu", f"{ROOT}[cpu]")
    environment.python(ASK, BUNDLE)
    environment.neuroglot("token", "alice")
    said = environment.neuroglot("serve", BUNDLE, "--tracing-endpoint", "http://127.0.0.1:1", status=1)
    assert "pip install 'neuroglot[tracing]'" in said, said


def base() -> None:
    """Asks a server; says what commands need that it has not."""
    environment = Environment("base", str(ROOT))
    server = Environment("cpu", f"{ROOT}[cpu]")
    with server.serving() as address:
        environment.python(ASK, address)
        assert "bloom" in environment.neuroglot("models", address)
    for command, install in (
        (("serve", BUNDLE), "neuroglot[cpu]"),
        (("analyze", "capitals"), "neuroglot[analysis]"),
        (("export", "embedded:bloom", FOLDER / "other"), "pip install ./models"),
    ):
        said = environment.neuroglot(*command, status=1)
        assert install in said, said
        assert "Traceback" not in said, said


def analysis() -> None:
    """Runs a task on a server."""
    environment = Environment("analysis", f"{ROOT}[analysis]")
    server = Environment("cpu", f"{ROOT}[cpu]")
    out = FOLDER / "results"
    shutil.rmtree(out, ignore_errors=True)
    with server.serving() as address:
        environment.neuroglot(
            "analyze", "capitals", "--server", address, "--model", "bloom", "--limit", 2, "--out", out
        )
    assert (out / "report.html").exists()
    environment.neuroglot("report", out)


def tracing() -> None:
    """Serves, with spans for a collector."""
    environment = Environment("tracing", f"{ROOT}[cpu,tracing]")
    with environment.serving("--tracing-endpoint", "http://127.0.0.1:1") as address:
        environment.python(ASK, address)


def gpu() -> None:
    """Puts keys and values together as on a device."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    own = [
        requirement for requirement in extras["gpu"] if not requirement.startswith(("neuroglot[", "onnxruntime-gpu"))
    ]
    environment = Environment("gpu", f"{ROOT}[server]", *own, "onnxruntime")
    environment.python(ASSEMBLE)


CHECKS: dict[str, Callable[[], None]] = {
    "exporter": exporter,
    "exporter-cpu": exporter_cpu,
    "cpu": cpu,
    "base": base,
    "analysis": analysis,
    "tracing": tracing,
    "gpu": gpu,
}
"""In this order: those behind `exporter-cpu` serve its bundle."""


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or CHECKS:
        print(f"{name} ...", flush=True)
        CHECKS[name]()
