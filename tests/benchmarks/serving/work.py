"""Work that the server saves, or does as well as a loop made by hand."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

import neuroglot as ng
from tests.benchmarks.serving.bare import BareLoop
from tests.benchmarks.serving.measures import Measure, seconds
from tests.benchmarks.serving.prompts import Prompter
from tests.benchmarks.serving.servers import Server, model_of, serving

VARIANTS = {
    "w/o all-shared": ng.deactivate(ng.ALL_SHARED),
    "w/o partial-shared": ng.deactivate(ng.PARTIAL_SHARED),
    "w/o specific": ng.deactivate(ng.SPECIFIC),
    "control 0": ng.deactivate(ng.control(ng.PARTIAL_SHARED)),
    "control 1": ng.deactivate(ng.control(ng.PARTIAL_SHARED, draw=1)),
    "converted": ng.convert(ng.SPECIFIC, 0.5),
}
EXAMPLES = 6
CLIENTS = 16
DEACTIVATIONS = 32


def ask(model: ng.Model, groups: Iterable[ng.Group], **wanted: object) -> list[ng.GroupResult]:
    """All results, in the order of the groups' ids; a failure is raised."""
    results = []
    for answer in model.analyze_many(groups, **wanted):  # type: ignore[arg-type]
        if isinstance(answer, ng.GroupFailure):
            raise answer.error
        results.append(answer)
    return sorted(results, key=lambda result: result.group_id)


def throughput(server: Server, bare: BareLoop, prompter: Prompter, rounds: int, groups: int) -> Measure:
    """Types and contributions of groups of XNLI's lengths, against the loop at its best batch size."""
    warm = prompter.inferences(1)
    rows = bare.encode(prompter.inferences(groups))
    by_batch = {batch: seconds(lambda batch=batch: bare.tap(rows, batch)) for batch in (8, 16, 32, 64)}
    best = min(by_batch, key=by_batch.__getitem__)
    pairs = []
    with model_of(server) as model:
        ask(model, warm, contribution=True)
        for _ in range(rounds):
            fresh = prompter.inferences(groups)  # or the second round would find the first one's prompts
            served = seconds(lambda fresh=fresh: ask(model, fresh, contribution=True, predict=False))
            encoded = bare.encode(fresh)
            pairs.append((served, seconds(lambda encoded=encoded: bare.tap(encoded, best))))
    return Measure(
        "throughput, types and contributions, against a bare loop of ONNX Runtime",
        statistics.median(loop / served for served, loop in pairs),
        "x",
        0.90,
        "least",
        {"groups": groups, "tokens": sum(map(len, rows)), "loop_batch_rows": best, "served_and_loop_seconds": pairs}
        | {"loop_seconds_by_batch_rows": by_batch},
    )


def variants(server: Server, bare: BareLoop, groups: Sequence[Sequence[ng.Group]], kind: str, bound: float) -> Measure:
    """Baseline and six variants at the last token, against seven full passes a group; a round each list of groups."""
    pairs = []
    random = np.random.default_rng(0)
    masks = [random.integers(0, 2, bare.neurons).astype(np.float32) for _ in range(bare.layers)]
    with model_of(server) as model:
        for of_round in groups:
            served = seconds(lambda of_round=of_round: ask(model, of_round, variants=VARIANTS, generate=False))

            def full_passes(of_round: Sequence[ng.Group] = of_round) -> None:
                for group in of_round:
                    rows = bare.encode([group])
                    for variant in range(1 + len(VARIANTS)):
                        bare.pass_over(rows, masks if variant else None)

            pairs.append((served, seconds(full_passes)))
    return Measure(
        f"baseline and {len(VARIANTS)} variants, against {1 + len(VARIANTS)} full passes, {kind}",
        statistics.median(passes / served for served, passes in pairs),
        "x",
        bound,
        "least",
        {"groups": len(groups[0]), "rounds": len(groups), "served_and_passes_seconds": pairs},
    )


def prefixes(bundle: Path, cached: Server, prompter: Prompter, groups: int) -> Iterator[Measure]:
    """Cross-lingual edits with six in-context examples, with the prefix cache and without.

    One stream with the cache, which knows none of the examples at first. It takes a minute or more, and a machine may
    become faster or slower meanwhile: so half of the groups are asked for without the cache, before it and after it.
    """
    asked = prompter.edits(groups, EXAMPLES)
    wanted = {"variants": {"w/o all-shared": ng.deactivate(ng.ALL_SHARED)}, "generate": False}
    with serving(bundle, "--cache-bytes", "0") as uncached, model_of(uncached) as plain, model_of(cached) as model:

        def run(of: ng.Model, some: Sequence[ng.Group], results: dict[str, ng.GroupResult]) -> float:
            return seconds(lambda: results.update((one.group_id, one) for one in ask(of, some, **wanted))) / len(some)

        known: dict[str, ng.GroupResult] = {}
        computed: dict[str, ng.GroupResult] = {}
        quarter = groups // 4
        before = run(plain, asked[:quarter], computed)
        with_cache = run(model, asked, known)
        after = run(plain, asked[-quarter:], computed)
    differing, largest = _differences([(known[name], one) for name, one in computed.items()])
    yield Measure(
        "edits with six examples, prefix cache against none",
        (before + after) / 2 / with_cache,
        "x",
        3.0,
        "least",
        {
            "groups": groups,
            "examples": EXAMPLES,
            "seconds_a_group_with": with_cache,
            "seconds_a_group_without": [before, after],
        },
    )
    yield Measure(
        "the same, largest difference in a log-probability", largest, "nats", 1e-4, "most", {"types": differing}
    )


def _differences(pairs: Iterable[tuple[ng.GroupResult, ng.GroupResult]]) -> tuple[int, float]:
    """How many neurons are of another type, and the largest difference in a gold log-probability."""
    differing, largest = 0, 0.0
    for one, other in pairs:
        differing += int(np.count_nonzero(one.types.codes() != other.types.codes()))
        for name, rows in one.predictions.items():
            for label, row in rows.items():
                theirs = other.predictions[name][label].gold_log_probability
                assert row.gold_log_probability is not None
                assert theirs is not None
                largest = max(largest, abs(row.gold_log_probability - theirs))
    return differing, largest


def repeated(server: Server, bare: BareLoop, prompter: Prompter, rounds: int, passes: int) -> Measure:
    """Different deactivations of one group of ten prompts of 32 tokens by 16 clients, against a full pass for each."""
    random = np.random.default_rng(0)
    masks = [np.ones(bare.neurons, np.float32)] * bare.layers
    pairs = []
    with model_of(server) as model:
        component = model.info.components[0]
        sets = [
            model.neuron_set(
                (layer, int(neuron))
                for layer in range(component.layers)
                for neuron in random.choice(component.neurons, component.neurons // 20, replace=False)
            )
            for _ in range(DEACTIVATIONS)
        ]
    for one in range(rounds):
        group = prompter.group(f"repeated-{one}", [32] * 10)

        def deactivated(neurons: ng.NeuronSet, group: ng.Group = group) -> ng.GroupResult:
            with model_of(server) as mine:
                return mine.analyze(group, variants={"without": ng.deactivate(neurons)}, type_map=False, generate=False)

        with ThreadPoolExecutor(CLIENTS) as clients:
            served = seconds(lambda clients=clients, ask=deactivated: list(clients.map(ask, sets)))
        rows = bare.encode([group])
        looped = seconds(lambda rows=rows: [bare.pass_over(rows, masks) for _ in range(passes)])
        pairs.append((served, looped * DEACTIVATIONS / passes))
    return Measure(
        f"{DEACTIVATIONS} deactivations of one group by {CLIENTS} clients, against a full pass each",
        statistics.median(loop / served for served, loop in pairs),
        "x",
        8.0,
        "least",
        {"served_and_passes_seconds": pairs, "passes_run": passes},
    )


def long_prompts(server: Server, prompter: Prompter, tokens: int) -> float:
    """Seconds for ten long prompts under 32 variants; what they took up is seen in the server's memory."""
    kinds = list(islice(ng.NeuronType, 4))
    many: Mapping[str, ng.Intervention] = {
        f"{kind.label} {draw}": ng.deactivate(ng.control(kind, draw=draw)) for kind in kinds for draw in range(8)
    }
    with model_of(server) as model:
        return seconds(
            lambda: ask(model, [prompter.group("long", [tokens] * 10)], variants=many, type_map=False, generate=False)
        )
