"""Measures as JSON, and as the table beside it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks.serving.measures import Measure, number


def earlier(target: Path) -> list[Measure]:
    """What is in a table; nothing where there is none."""
    file = target.with_suffix(".json")
    if not file.exists():
        return []
    kept = json.loads(file.read_text(encoding="utf-8"))["measures"]
    return [Measure(**{name: value for name, value in one.items() if name != "met"}) for one in kept]


def write(target: Path, title: str, by: str, model: str, measures: Iterable[Measure]) -> None:
    """Write measures to a Markdown file and to the JSON beside it; of several of one name the last one counts.

    Args:
        target: the Markdown file.
        title: its heading.
        by: the command that does this.
        model: what was served.
        measures: its lines.
    """
    found = list({one.name: one for one in measures}.values())
    about: dict[str, Any] = {
        "model": model,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("neuroglot", "onnxruntime", "numpy", "grpcio")},
        "measures": [asdict(one) | {"met": one.met} for one in found],
    }
    target.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# {title}",
        "",
        f"Written by `{by}`; each line is a ratio within one run, or counts what its unit says. The model: {model}; "
        f"{about['cores']} cores, onnxruntime {about['versions']['onnxruntime']}.",
        "",
        "| what | measured | bound | |",
        "|---|---|---|---|",
    ]
    for one in found:
        sign = "≥" if one.kept == "least" else "≤"
        kept = "met" if one.met else "**missed**"
        lines.append(
            f"| {one.name} | {number(one.value)} {one.unit} | {sign} {number(one.bound)} {one.unit} | {kept} |"
        )
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
