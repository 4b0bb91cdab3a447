"""What an answer costs beside the model's own work: bytes on the wire, and time around the pass."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import neuroglot as ng
from neuroglot.tasks import capital_prompts as capitals
from tests.benchmarks.serving.bare import BareLoop
from tests.benchmarks.serving.measures import Measure, seconds
from tests.benchmarks.serving.prompts import Prompter
from tests.benchmarks.serving.servers import Server, model_of, serving


def sizes(server: Server, prompter: Prompter) -> Iterator[Measure]:
    """Bytes of the answer about one group of ten languages."""
    with model_of(server) as model:
        group = prompter.facts(1)[0]
        neurons = sum(part.layers * part.neurons for part in model.info.components)
        full = len(model.analyze(group, predict=False).to_bytes())
        counts = len(model.analyze(group, type_map=False, predict=False).to_bytes())
    yield Measure(
        "an answer with a type map, bytes beyond 2 bits a neuron",
        full - neurons / 4,
        "bytes",
        1024,
        "most",
        {"answer_bytes": full, "neurons": neurons},
    )
    yield Measure("an answer of counts", counts, "bytes", 20 * 1024, "most")


def overhead(bundle: Path, rounds: int, calls: int) -> Measure:
    """What a unary call on an embedded model takes beside the pass over its prompts, which a bare session is asked for.

    A round is so many calls, one after the other, and then the passes for the same groups. Taking turns at every group
    would measure calls to a server that idled between them, which take about 2 ms more. Each group is new to the
    server, and what is asked is types alone.
    """
    groups = list(capitals.groups())[: rounds * calls]
    bare = BareLoop(bundle)
    beside = []
    with serving(bundle) as server, model_of(server) as model:
        for start in range(0, len(groups), calls):
            of_round = groups[start : start + calls]
            rows = [bare.encode([group]) for group in of_round]
            served = [seconds(lambda group=group: model.analyze(group, predict=False)) for group in of_round]
            alone = [seconds(lambda of_group=of_group: bare.tap(of_group, len(of_group))) for of_group in rows]
            beside += zip(served, alone, strict=True)
    return Measure(
        "a unary call on an embedded model, median beside the pass itself",
        statistics.median(call - alone for call, alone in beside) * 1e3,
        "ms",
        5.0,
        "most",
        {
            "calls": len(beside),
            "call_ms": statistics.median(call for call, _ in beside) * 1e3,
            "pass_ms": statistics.median(alone for _, alone in beside) * 1e3,
        },
    )


def groups_a_second(bundle: Path, groups: int) -> float:
    """How many groups of facts an embedded model answers in a second, on one stream."""
    asked: list[ng.Group] = list(capitals.groups())[:groups]
    with serving(bundle) as server, model_of(server) as model:
        taken = seconds(lambda: list(model.analyze_many(asked, predict=False)))
    return len(asked) / taken
