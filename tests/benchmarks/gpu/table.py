"""The page of what a device gave, from the JSON that the benchmark wrote.

python -m tests.benchmarks.gpu.table gpu.json "one NVIDIA H100, 16 cores, onnxruntime-gpu 1.30.0" > docs/gpu.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click


def page(content: dict[str, Any], machine: str) -> str:
    """The page, as Markdown.

    Args:
        content: what `python -m tests.benchmarks.gpu` wrote.
        machine: what it ran on, in words.
    """
    return "\n".join([*_agreements(content, machine), "", *_passes(content), "", *_rates(content), ""])


def _agreements(content: dict[str, Any], machine: str) -> Iterator[str]:
    yield "# A server on a CUDA device"
    yield ""
    yield f"Written from what `python -m tests.benchmarks.gpu` measured on {machine}."
    yield ""
    yield "The same questions, asked of a server on the device and of one on the processor (tiny random models): how"
    yield "far the answers are apart. Log-probabilities are relative to the largest."
    yield ""
    yield "| model | types that differ | log-probabilities | texts that are the same | |"
    yield "|---|---|---|---|---|"
    for one in content["agreements"]:
        verdict = "right" if one["right"] else "**wrong**"
        cells = (
            one["bundle"],
            f"{one['types']:.3%}",
            f"{one['log_probabilities']:.1e}",
            f"{one['texts']:.1%}",
            verdict,
        )
        yield f"| {' | '.join(cells)} |"


def _passes(content: dict[str, Any]) -> Iterator[str]:
    yield "Passes in BLOOM-560m's geometry, times as fast as the same machine's processor in float32:"
    yield ""
    yield "| dtype | ten prompts of 32 tokens | 70 forked variants | eight tokens generated for each |"
    yield "|---|---|---|---|"
    for one in content["passes"]:
        faster = [f"{one['times_as_fast'][kind]:.1f} x" for kind in ("prompts", "variants", "generation")]
        yield f"| {one['dtype']} | {' | '.join(faster)} |"


def _rates(content: dict[str, Any]) -> Iterator[str]:
    yield "Served there, groups of ten prompts of XNLI's lengths a second. What limits it is the server's own work on"
    yield "the processor, one Python process, and not the device:"
    yield ""
    kinds = list(next(iter(content["groups_a_second"].values())))
    yield f"| dtype | {' | '.join(kinds)} |"
    yield f"|---|{'---|' * len(kinds)}"
    for dtype, rates in content["groups_a_second"].items():
        yield f"| {dtype} | {' | '.join(f'{rates[kind]:.1f}' for kind in kinds)} |"


if __name__ == "__main__":
    click.echo(page(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2]), nl=False)
