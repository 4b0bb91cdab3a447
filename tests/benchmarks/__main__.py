"""The benchmarks of serving, each a ratio within one run, as JSON and as a table.

make bench               writes docs/benchmarks.md and .json, half an hour on two cores
make bench ONLY=sizes    one part of it, whose lines it replaces there
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from neuroglot_exporter import export
from tests.benchmarks.serving import answers, clients, memory, overload, work
from tests.benchmarks.serving.bare import BareLoop
from tests.benchmarks.serving.bundle import bundle, medium_bundle
from tests.benchmarks.serving.measures import Measure
from tests.benchmarks.serving.prompts import Prompter
from tests.benchmarks.serving.servers import serving
from tests.benchmarks.serving.tables import earlier, write

PARTS = ("throughput", "variants", "prefixes", "repeated", "clients", "long", "sizes", "overhead", "overload", "starts")


def measures(model: Path, parts: tuple[str, ...], scale: int) -> Iterator[Measure]:
    """Measure; `scale` is how many groups a round has, about."""
    if "starts" in parts:  # first, while nothing else holds memory
        yield from memory.starts(model, rounds=7)
        print(f"  neuroglot prepare: {memory.prepare(model):.0f} s", flush=True)
        yield memory.second_server(model)
    if "overhead" in parts:
        yield from _embedded()
    if "overload" in parts:
        yield from overload.overload(medium_bundle(model.parent), seconds=2 * scale)
        yield from overload.real_size(model, seconds=6 * scale)
    prompter = Prompter(model)
    peaks: dict[str, int] = {}
    with serving(model) as server:

        def after(part: str) -> None:
            peaks[part] = server.peak_resident_bytes()
            print(f"  most memory until here: {peaks[part] / 1e9:.2f} GB", flush=True)

        if "sizes" in parts:
            yield from answers.sizes(server, prompter)
            after("sizes")
        if "clients" in parts:
            yield clients.one_row_each(server, prompter, requests=scale)
            yield clients.interactive(server, prompter, asked=4 * scale)
            after("clients")
        if "prefixes" in parts:
            yield from work.prefixes(model, server, prompter, groups=4 * scale)
            after("prefixes")
        if "long" in parts:
            taken = work.long_prompts(server, prompter, tokens=500)
            print(f"  10 prompts of 500 tokens under 32 variants: {taken:.0f} s", flush=True)
            after("long")
        if {"throughput", "variants", "repeated"} & set(parts):
            bare = BareLoop(model)
            if "throughput" in parts:
                yield work.throughput(server, bare, prompter, rounds=3, groups=scale)
                after("throughput")
            if "variants" in parts:
                rounds = [prompter.inferences(scale // 2) for _ in range(2)]
                yield work.variants(server, bare, rounds, "XNLI's lengths", 3.5)
                rounds = [prompter.facts(scale) for _ in range(2)]
                yield work.variants(server, bare, rounds, "short prompts", 2.5)
                after("variants")
            if "repeated" in parts:
                yield work.repeated(server, bare, prompter, rounds=5, passes=4)
                after("repeated")
        if "long" in parts:  # which takes most; what came before it has left its traces
            whole = memory.peak(server, model, peaks)
            yield replace(whole, name=f"{whole.name}, after all of this and 500 tokens x 10 languages x 32 variants")


def _embedded() -> Iterator[Measure]:
    with TemporaryDirectory() as folder:
        embedded = Path(folder) / "bloom"
        export("embedded:bloom", embedded)
        on_one_stream = {"groups_a_second_on_one_stream": answers.groups_a_second(embedded, 300)}
        call = answers.overhead(embedded, rounds=12, calls=20)
        yield replace(call, details=call.details | on_one_stream)


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
    found = earlier(target) if arguments.only else []
    with TemporaryDirectory(dir=arguments.out) as cache:  # starts are measured before weights are prepared
        os.environ["NEUROGLOT_CACHE"] = cache
        for one in measures(model, tuple(arguments.only or PARTS), arguments.scale):
            print(one, flush=True)
            found.append(one)
    kind = "a tiny one" if arguments.small else "random weights in BLOOM-560m's geometry, float32"
    write(target, "What a server gives", "make bench", kind, found)


if __name__ == "__main__":
    main()
