"""Overload: every request is charged for its cost, and other requests are answered meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from neuroglot.definitions.packing import pack_bits
from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2
from neuroglot_exporter import export
from neuroglot_server.core import Settings, Unobserved
from neuroglot_server.models.model import Model
from neuroglot_server.transport.service import ANSWER_LIMIT_BYTES, SERVICE_NAME
from tests.checkpoints import random_checkpoint
from tests.server.live import NAME, Live, serving

LAYERS, HIDDEN = 6, 128
NEURONS = 4 * HIDDEN
SPECIFIC, SHARED = analysis_pb2.NEURON_TYPE_SPECIFIC, analysis_pb2.NEURON_TYPE_PARTIAL_SHARED
MOST_TIMES_PLAIN = 20
MOST_HEALTH_SECONDS = 0.05

Selection = analysis_pb2.Selection
Request = service_pb2.AnalyzeGroupRequest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BLOOM of 6 layers, 512 neurons each."""
    folder = tmp_path_factory.mktemp("overload")
    checkpoint = random_checkpoint(
        folder / "checkpoint", "bloom", hidden_size=HIDDEN, n_layer=LAYERS, n_head=4, vocab_size=2000
    )
    export(str(checkpoint), folder / "bundle", verify=False)
    return folder / "bundle"


class Charged(Unobserved):
    """Sums the tokens that requests are charged."""

    def __init__(self) -> None:
        self.tokens = 0

    def admitted(self, tenant: str, tokens: int) -> None:
        self.tokens += tokens


def group(rows: int, words: int = 6, seed: int = 0, **fields: object) -> group_pb2.Group:
    drawn = random.Random(seed)
    texts = [" ".join("".join(drawn.choices("abcdefgh", k=4)) for _ in range(words)) for _ in range(rows)]
    made = [group_pb2.Row(label=f"l{i}", text=text, answers=["abcd"], **fields) for i, text in enumerate(texts)]
    return group_pb2.Group(id=f"g{seed}", rows=made)


def by_type(*types: analysis_pb2.NeuronType.ValueType) -> Selection:
    return Selection(types=analysis_pb2.TypeSelection(types=types or (SPECIFIC,)))


def by_neuron(seed: int) -> Selection:
    bits = pack_bits(np.random.default_rng(seed).random((LAYERS, NEURONS)) < 0.1)
    return Selection(neurons=analysis_pb2.NeuronSet(layers=LAYERS, neurons=NEURONS, bits=bits))


def control(draw: int, kind: analysis_pb2.ControlKind.ValueType, of: Selection | None = None) -> Selection:
    return Selection(control=analysis_pb2.Control(of=of or by_type(), kind=kind, draw=draw))


def union(*selections: Selection) -> Selection:
    return Selection(union=analysis_pb2.SelectionList(selections=selections))


def variants(*selections: Selection, **fields: object) -> list[analysis_pb2.Variant]:
    """A variant for each selection."""
    return [
        analysis_pb2.Variant(
            name=f"v{index}",
            interventions=[
                analysis_pb2.Intervention(selection=selection, deactivate=analysis_pb2.Deactivate(), **fields)
            ],
        )
        for index, selection in enumerate(selections)
    ]


def analysis(**fields: object) -> analysis_pb2.Analysis:
    return analysis_pb2.Analysis(prediction=analysis_pb2.Prediction(), **fields)


MASS, RANDOM = analysis_pb2.CONTROL_KIND_RANDOM_MASS, analysis_pb2.CONTROL_KIND_RANDOM
TOP = Selection(top_contribution=analysis_pb2.TopContribution(fraction=0.1))
LEADING = {
    "contribution": analysis_pb2.Contribution(neurons=NEURONS),
    "effective_score": analysis_pb2.EffectiveScore(neurons=NEURONS),
}
THRESHOLDS = [index / 100 for index in range(32)]

HOSTILE: dict[str, Callable[[], Request]] = {
    "511 controls by mass": lambda: Request(
        group=group(10), analysis=analysis(variants=variants(union(*(control(i, MASS) for i in range(511)))))
    ),
    "511 controls on 15 short rows": lambda: Request(
        group=group(15, 1), analysis=analysis(variants=variants(union(*(control(i, RANDOM) for i in range(511)))))
    ),
    "a union of 1000 types": lambda: Request(
        group=group(15, 1), analysis=analysis(variants=variants(union(*[by_type()] * 1000)))
    ),
    "a union of 500 sets": lambda: Request(
        group=group(2, 1), analysis=analysis(variants=variants(union(*map(by_neuron, range(500)))))
    ),
    "controls of controls": lambda: Request(
        group=group(10, 1),
        analysis=analysis(variants=variants(control(0, MASS, control(1, MASS, control(2, MASS, TOP))))),
    ),
    "64 variants": lambda: Request(
        group=group(10), analysis=analysis(variants=variants(*(control(i, MASS) for i in range(64))))
    ),
    "32 thresholds, every neuron named": lambda: Request(
        group=group(8, 1), analysis=analysis(thresholds=THRESHOLDS, **LEADING)
    ),
    "dead at 32 thresholds": lambda: Request(
        group=group(8, 40), analysis=analysis(thresholds=THRESHOLDS, dead=True, active_bitmaps=True, type_map=True)
    ),
    "256 choices": lambda: Request(
        group=group(4, 20, choices=[f"a{index}" for index in range(256)]), analysis=analysis()
    ),
    "500 interventions": lambda: Request(
        group=group(10, 1),
        analysis=analysis(
            variants=[
                analysis_pb2.Variant(
                    name="many",
                    interventions=[
                        analysis_pb2.Intervention(
                            selection=by_type(SHARED),
                            add=analysis_pb2.Add(value=0.1),
                            scope=analysis_pb2.SCOPE_ALL_TOKENS,
                        )
                    ]
                    * 500,
                )
            ]
        ),
    ),
}


def generated(seed: int) -> Request:
    """A request of random parts."""
    drawn = random.Random(seed)

    def selection(depth: int) -> Selection:
        if depth == 0:
            return drawn.choice([by_type(), TOP, by_neuron(seed)])
        inside = [selection(depth - 1) for _ in range(drawn.randint(1, 6))]
        return drawn.choice([union(*inside), control(seed, drawn.choice([MASS, RANDOM]), inside[0])])

    asked = analysis(
        thresholds=THRESHOLDS[: drawn.choice([1, 4, 32])],
        dead=drawn.random() < 0.5,
        type_map=drawn.random() < 0.5,
        variants=variants(*(selection(drawn.randint(0, 3)) for _ in range(drawn.randint(0, 20)))),
        **(LEADING if drawn.random() < 0.3 else {}),
    )
    return Request(group=group(drawn.randint(2, 20), drawn.randint(1, 30), seed), analysis=asked)


async def ask(channel: grpc.aio.Channel, request: Request) -> None:
    request.model = NAME
    await channel.unary_unary(f"/{SERVICE_NAME}/AnalyzeGroup")(request.SerializeToString())


async def health_seconds(live: Live, work: asyncio.Task[None]) -> list[float]:
    """Seconds of health checks, one after the other, while some work runs."""
    stub = health_pb2_grpc.HealthStub(live.channel)
    taken = []
    while not work.done():
        start = time.perf_counter()
        await stub.Check(health_pb2.HealthCheckRequest())
        taken.append(time.perf_counter() - start)
        await asyncio.sleep(0.002)
    return taken


async def taken(live: Live, charged: Charged, request: Request) -> tuple[float, list[float]]:
    """CPU seconds per token that a request is charged, and seconds of health checks while it runs."""
    before, start = charged.tokens, time.process_time()
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", ANSWER_LIMIT_BYTES)]
    async with grpc.aio.insecure_channel(live.target, options=options) as channel:
        work = asyncio.create_task(ask(channel, request))
        beside = await health_seconds(live, work)
        await work
    return (time.process_time() - start) / (charged.tokens - before), beside


def requests() -> Iterator[tuple[str, Request]]:
    for name, made in HOSTILE.items():
        yield name, made()
    for seed in range(8):
        yield f"generated {seed}", generated(seed)


def test_every_request_is_charged_for_its_cost_and_health_is_answered_meanwhile(bundle: Path) -> None:
    async def test() -> None:
        charged = Charged()
        model = Model.load(bundle, NAME, Settings(threads=1, cache_bytes=0), charged)
        async with serving(model) as live:
            plain = []
            for seed in range(100, 110):
                request = Request(group=group(10, seed=seed), analysis=analysis())
                plain.append((await taken(live, charged, request))[0])
            of_plain = float(np.median(plain))
            beside: list[float] = []
            dear: dict[str, float] = {}
            for name, request in requests():
                before = charged.tokens
                per_token, of_health = await taken(live, charged, request)
                dear[name] = per_token / of_plain
                slowest = max(of_health, default=0.0)
                print(
                    f"{name}: {charged.tokens - before} tokens, {dear[name]:.2f} x plain, "
                    f"health at most {1e3 * slowest:.0f} ms of {len(of_health)}"
                )
                beside += of_health
            print(f"plain: {1e6 * of_plain:.0f} us a token, health p99 {1e3 * np.quantile(beside, 0.99):.1f} ms")
            assert max(dear.values()) < MOST_TIMES_PLAIN, dear
            assert np.quantile(beside, 0.99) < MOST_HEALTH_SECONDS

    asyncio.run(test())


def test_kernels_of_a_call_that_is_cancelled_end_with_it(bundle: Path) -> None:
    async def test() -> list[float]:
        async with serving(Model.load(bundle, NAME, Settings(threads=1))) as live:
            controls = union(*(control(draw, MASS) for draw in range(511)))
            request = Request(group=group(60, 1), analysis=analysis(variants=variants(controls)))
            calling = asyncio.create_task(ask(live.channel, request))
            await asyncio.sleep(0.5)
            assert not calling.done(), "the kernels take four seconds"
            calling.cancel()
            used = []
            for _ in range(5):
                start = time.process_time()
                await asyncio.sleep(0.2)
                used.append(time.process_time() - start)
            return used

    used = asyncio.run(test())
    assert min(used) < 0.05, f"CPU seconds in each fifth of a second after it was cancelled: {used}"
