"""The benchmarks of serving, each a ratio within one run, as JSON and as a table.

make bench               writes docs/benchmarks.md and .json, half an hour on two cores
make bench ONLY=sizes    one part of it, whose lines it replaces there
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from neuroglot_exporter import export
from tests.benchmarks.serving import answers, clients, memory, work
from tests.benchmarks.serving.bare import BareLoop
from tests.benchmarks.serving.bundle import bundle
from tests.benchmarks.serving.measures import Measure
from tests.benchmarks.serving.prompts import Prompter
from tests.benchmarks.serving.servers import serving

PARTS = ("throughput", "variants", "prefixes", "repeated", "clients", "long", "sizes", "overhead", "starts")


def measures(model: Path, parts: tuple[str, ...], scale: int) -> Iterator[Measure]:
    """Measure; `scale` is how many groups a round has, about."""
    if "starts" in parts:  # first, while nothing else holds memory
        yield from memory.starts(model, rounds=3)
        print(f"  neuroglot prepare: {memory.prepare(model):.0f} s", flush=True)
        yield memory.second_server(model)
    if "overhead" in parts:
        yield from _embedded()
    prompter = Prompter(model)
    with serving(model) as server:
        if "sizes" in parts:
            yield from answers.sizes(server, prompter)
        if "clients" in parts:
            yield clients.one_row_each(server, prompter, requests=scale)
            yield clients.interactive(server, prompter, asked=4 * scale)
        if "prefixes" in parts:
            yield from work.prefixes(model, server, prompter, groups=2 * scale)
        if "long" in parts:
            taken = work.long_prompts(server, prompter, tokens=500)
            print(f"  10 prompts of 500 tokens under 32 variants: {taken:.0f} s", flush=True)
        if {"throughput", "variants", "repeated"} & set(parts):
            bare = BareLoop(model)
            if "throughput" in parts:
                yield work.throughput(server, bare, prompter, rounds=3, groups=scale)
            if "variants" in parts:
                rounds = [prompter.inferences(scale // 2) for _ in range(2)]
                yield work.variants(server, bare, rounds, "XNLI's lengths", 3.5)
                rounds = [prompter.facts(scale) for _ in range(2)]
                yield work.variants(server, bare, rounds, "short prompts", 2.5)
            if "repeated" in parts:
                yield work.repeated(server, bare, prompter, rounds=5, passes=4)
        if "long" in parts:  # which takes most; what came before it has left its traces
            yield memory.peak(server, model)


def _embedded() -> Iterator[Measure]:
    with TemporaryDirectory() as folder:
        embedded = Path(folder) / "bloom"
        export("embedded:bloom", embedded)
        yield answers.overhead(embedded, rounds=12, calls=20)
        print(f"  {answers.groups_a_second(embedded, 300):.0f} groups/s of facts on one stream", flush=True)


def _earlier(file: Path) -> dict[str, Measure]:
    """What an earlier run found, by name; nothing where there was none."""
    if not file.exists():
        return {}
    kept = json.loads(file.read_text(encoding="utf-8"))["measures"]
    measures = [Measure(**{name: value for name, value in one.items() if name != "met"}) for one in kept]
    return {one.name: one for one in measures}


def table(found: list[Measure]) -> str:
    """The measures as Markdown."""
    lines = ["| what | measured | bound | |", "|---|---|---|---|"]
    for one in found:
        sign = "≥" if one.kept == "least" else "≤"
        kept = "met" if one.met else "**missed**"
        lines.append(f"| {one.name} | {one.value:.3g} {one.unit} | {sign} {one.bound:g} {one.unit} | {kept} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--table", type=Path, help="where the table goes, and the JSON beside it")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="parts to run; all by default")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark itself")
    parser.add_argument("--scale", type=int, default=6, help="about how many groups a round has")
    arguments = parser.parse_args()
    model = bundle(arguments.out / "bundles", small=arguments.small)
    target = arguments.table or arguments.out / "serving.md"
    found = _earlier(target.with_suffix(".json")) if arguments.only else {}
    with TemporaryDirectory(dir=arguments.out) as cache:  # starts are measured before weights are prepared
        os.environ["NEUROGLOT_CACHE"] = cache
        for one in measures(model, tuple(arguments.only or PARTS), arguments.scale):
            print(f"{'met   ' if one.met else 'MISSED'} {one.value:10.3g} {one.unit:5} {one.name}", flush=True)
            found[one.name] = one
    about: dict[str, Any] = {
        "model": "a tiny one" if arguments.small else "random weights in BLOOM-560m's geometry, float32",
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("neuroglot", "onnxruntime", "numpy", "grpcio")},
    }
    target.with_suffix(".json").write_text(
        json.dumps(about | {"measures": [asdict(one) | {"met": one.met} for one in found.values()]}, indent=1) + "\n"
    )
    heading = (
        "# What a server gives\n\nWritten by `make bench`; each line is a ratio within one run, or bytes. "
        f"The model: {about['model']}; {about['cores']} cores, onnxruntime {about['versions']['onnxruntime']}.\n\n"
    )
    target.write_text(heading + table(list(found.values())), encoding="utf-8")


if __name__ == "__main__":
    main()
