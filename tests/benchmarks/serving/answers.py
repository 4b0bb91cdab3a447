"""What an answer costs beside the model's own work: bytes on the wire, and time around the pass."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import neuroglot as ng
from neuroglot.tasks import capitals
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


def overhead(bundle: Path, calls: int) -> Measure:
    """What a unary call on an embedded model takes beside the pass over its prompts, which a bare session is asked for.

    They take turns, each group is new to the server, and what is asked is types alone.
    """
    groups = list(capitals.groups())[: calls + 1]
    bare = BareLoop(bundle)
    beside = []
    with serving(bundle) as server, model_of(server) as model:
        model.analyze(groups[0], predict=False)
        for group in groups[1:]:
            rows = bare.encode([group])
            bare.tap(rows, len(rows))
            alone = seconds(lambda rows=rows: bare.tap(rows, len(rows)))
            beside.append((seconds(lambda group=group: model.analyze(group, predict=False)), alone))
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
