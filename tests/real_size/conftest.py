"""A bundle of BLOOM-560m's geometry with random weights, made once and kept under `build/`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.benchmarks.serving.bundle import bundle

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"


class MemoryTable:
    """Resident memory of servers after each step, written to `build/real-size/NAME.md` and printed at the end."""

    def __init__(self, title: str) -> None:
        self._title = title
        self.rows: list[tuple[str, int]] = []

    def record(self, step: str, process: psutil.Process) -> int:
        """Add a row, and return its bytes."""
        resident: int = process.memory_info().rss
        self.rows.append((step, resident))
        return resident

    def write(self, file: Path) -> None:
        lines = [f"| {self._title} | resident memory |", "|---|---|"]
        lines += [f"| {step} | {resident / 1e9:.2f} GB |" for step, resident in self.rows]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print("", *lines, sep="\n")


@pytest.fixture(scope="session")
def real_bundle() -> Path:
    """24 layers of 4,096 neurons, hidden size 1,024, vocabulary 250,880, float32: 2.24 GB. The benchmarks' own."""
    return bundle(BUILD / "bench" / "bundles", small=False)


@pytest.fixture(autouse=True)
def allocator(deployed_allocator: None) -> None:
    """Every server runs as it is deployed."""


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[MemoryTable]:
    table = MemoryTable(request.node.name)
    yield table
    table.write(BUILD / "real-size" / f"{request.node.name}.md")
