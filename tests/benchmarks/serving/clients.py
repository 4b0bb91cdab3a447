"""Many clients at once, and one that does not want to wait."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile

import numpy as np

import neuroglot as ng
from tests.benchmarks.serving.measures import Measure, seconds
from tests.benchmarks.serving.prompts import Prompter
from tests.benchmarks.serving.servers import Server, model_of

CLIENTS = 16
TOKENS = 12


def one_row_each(server: Server, prompter: Prompter, requests: int) -> Measure:
    """Sixteen clients, each with a prompt and an intervention of its own, against one after the other."""

    def work(count: int) -> list[Callable[[ng.Model], object]]:
        random = np.random.default_rng(count)
        made = []
        for index in range(count):
            group = prompter.group(f"one-{index}", [TOKENS])
            indices = [(0, int(neuron)) for neuron in random.choice(64, 8, replace=False)]

            def asked(model: ng.Model, group: ng.Group = group, indices: list[tuple[int, int]] = indices) -> object:
                without = {"without": ng.deactivate(model.neuron_set(indices))}
                return model.analyze(group, variants=without, type_map=False, generate=False)

            made.append(asked)
        return made

    total = CLIENTS * requests
    with model_of(server) as model:
        alone = seconds(lambda: [asked(model) for asked in work(total)])
    batches = np.array_split(np.array(work(total), dtype=object), CLIENTS)

    def client(mine: np.ndarray) -> None:
        with model_of(server) as model:
            for asked in mine:
                asked(model)

    with ThreadPoolExecutor(CLIENTS) as clients:
        together = seconds(lambda: list(clients.map(client, batches)))
    return Measure(
        f"{CLIENTS} clients with a row of {TOKENS} tokens and an intervention each, against one at a time",
        alone / together,
        "x",
        1.9,
        "least",
        {"requests": total, "alone_seconds": alone, "together_seconds": together},
    )


def interactive(server: Server, prompter: Prompter, asked: int) -> Measure:
    """How long a single group takes while a bulk stream runs, over three times what it takes alone and one batch."""

    def ask(model: ng.Model) -> float:
        group = prompter.group("interactive", [TOKENS] * 10)
        return seconds(lambda: model.analyze(group, type_map=False))

    stopping, started = threading.Event(), threading.Event()
    bulk = prompter.inferences(200)  # made before, for a generator is used by one thread

    def stream() -> float:
        """Keep the server busy; the least time that batches ran for one group, one after the other."""
        least = float("inf")
        with model_of(server) as model:
            groups = takewhile(lambda _: not stopping.is_set(), bulk)
            for answer in model.analyze_many(groups, type_map=False, predict=False):
                assert isinstance(answer, ng.GroupResult)
                least = min(least, answer.message.provenance.compute_time_ms / 1e3)
                started.set()
        return least

    with model_of(server) as model, ThreadPoolExecutor(1) as background:
        ask(model)
        alone = [ask(model) for _ in range(asked)]
        streaming = background.submit(stream)
        started.wait(300)
        beside = [ask(model) for _ in range(asked)]
        stopping.set()
        batch = streaming.result()
    most = float(np.quantile(beside, 0.99))
    return Measure(
        "a single group beside a bulk stream, 99th percentile over (3 x its time alone and one batch)",
        most / (3 * statistics.median(alone) + batch),
        "x",
        1.0,
        "most",
        {"alone_seconds": alone, "beside_seconds": beside, "batch_seconds": batch},
    )
