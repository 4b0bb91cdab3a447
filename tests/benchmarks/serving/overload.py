"""More than the server can do: fifty streams of one tenant, and calls offered faster than they can be answered."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc

from neuroglot.request.messages import group_message
from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2
from neuroglot_server.config.tenants import NewToken, new_token
from neuroglot_server.transport.service import SERVICE_NAME
from tests.benchmarks.serving.measures import Measure
from tests.benchmarks.serving.prompts import Prompter
from tests.benchmarks.serving.servers import Server, serving

STREAMS = (1, 4, 16, 50)
OFFERED = (1.5, 3.0)
ROUNDS = 5
"""Beside a first one, which does not count: in it the server meets its first flood, and grows."""
TOKENS_IN_FLIGHT = 4000
"""Few, so that the queue is full within a second."""
CALLS_AT_ONCE = 24
WARM_SECONDS = 2.0
"""How long a load runs before its answers count."""

_Metadata = tuple[tuple[str, str], ...]


def overload(bundle: Path, seconds: float) -> Iterator[Measure]:
    """All measures, each of about so many seconds a step."""
    with _working(bundle) as work:
        yield from asyncio.run(work.streams(seconds))
        yield from asyncio.run(work.offered(OFFERED, ROUNDS, seconds / 2))
        yield asyncio.run(work.refusals())


def real_size(bundle: Path, seconds: float) -> Iterator[Measure]:
    """Goodput of a model that answers some calls a second, in windows of so many seconds.

    What a refused call costs the server is gRPC's own work for a call, whatever the model.
    """
    with _working(bundle) as work:
        for measure in asyncio.run(work.offered(OFFERED[-1:], 3, seconds)):
            yield replace(measure, name=f"{measure.name}, where an answer takes half a second")


@contextmanager
def _working(bundle: Path) -> Iterator[_Work]:
    """Requests to a server of a model, which has a core of its own."""
    prompter = Prompter(bundle)
    tenants = {name: new_token() for name in ("bulk", "interactive", "spent")}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tokens.toml"
        file.write_text(_tenants(tenants))
        options = ("--tokens-file", str(file), "--queue-tokens", str(TOKENS_IN_FLIGHT), "--cache-bytes", "0")
        with _cores_apart() as clients_turn, serving(bundle, "--threads", "1", *options) as server:
            clients_turn()
            yield _Work(server, bundle.name, prompter, tenants)


@contextmanager
def _cores_apart() -> Iterator[Callable[[], None]]:
    """A core for what is started in the block until the function is called; the others are this process' from then on.

    Clients that offer three times what can be answered take as much time as the server, and would take it from it.
    """
    cores = os.sched_getaffinity(0)
    servers, *clients = sorted(cores)
    os.sched_setaffinity(0, {servers})
    try:
        yield lambda: os.sched_setaffinity(0, clients or cores)
    finally:
        os.sched_setaffinity(0, cores)


def _tenants(tokens: dict[str, NewToken]) -> str:
    """A file of tenants; the last one may run next to nothing."""
    tables = (f'[tenants.{name}]\ntoken_sha256 = ["{token.sha256}"]\n' for name, token in tokens.items())
    return "".join(tables) + "tokens_per_minute = 1\n"


class _Work:
    """Requests to one server, which are made before anything is measured."""

    def __init__(self, server: Server, model: str, prompter: Prompter, tenants: dict[str, NewToken]) -> None:
        self._server = server
        self._model = model
        self._metadata: dict[str, _Metadata] = {
            name: (("authorization", f"Bearer {token.token}"),) for name, token in tenants.items()
        }
        analysis = analysis_pb2.Analysis(contribution=analysis_pb2.Contribution(), prediction=analysis_pb2.Prediction())
        self._groups = [group_message(group, group.id) for group in prompter.facts(200)]
        self._calls = [
            service_pb2.AnalyzeGroupRequest(model=model, group=group, analysis=analysis).SerializeToString()
            for group in self._groups
        ]
        self._analysis = analysis
        self._next = count()

    def _call_bytes(self) -> bytes:
        return self._calls[next(self._next) % len(self._calls)]

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._server.address, options=[("grpc.use_local_subchannel_pool", 1)])

    def _cpu(self) -> float:
        times = self._server.process.cpu_times()
        return float(times.user + times.system)

    async def _call(self, channel: grpc.aio.Channel, tenant: str) -> None:
        method = channel.unary_unary(f"/{SERVICE_NAME}/AnalyzeGroup")
        await method(self._call_bytes(), metadata=self._metadata[tenant])

    async def _stream(self, channel: grpc.aio.Channel, number: int, answered: Counter[str]) -> None:
        """Send groups as fast as they are taken, and count the answers."""

        async def messages() -> AsyncIterator[bytes]:
            for index in count():
                group = group_pb2.Group()
                group.CopyFrom(self._groups[(31 * number + index) % len(self._groups)])
                group.id = str(index)
                message = service_pb2.AnalyzeGroupsRequest(group=group)
                if not index:
                    message.model = self._model
                    message.analysis.CopyFrom(self._analysis)
                yield message.SerializeToString()

        method = channel.stream_stream(f"/{SERVICE_NAME}/AnalyzeGroups")
        async for _ in method(messages(), metadata=self._metadata["bulk"]):
            answered["groups"] += 1

    async def _interactive(self, channel: grpc.aio.Channel, asked: int) -> float:
        """Median seconds of a call, one after the other."""
        taken = []
        for _ in range(asked):
            start = time.perf_counter()
            await self._call(channel, "interactive")
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    async def streams(self, seconds: float) -> list[Measure]:
        """Throughput of many streams of one tenant, and the time of another tenant's calls beside them."""
        async with self._channel() as channel:
            await self._interactive(channel, 5)
            alone = await self._interactive(channel, 20)
            rates, beside = {}, 0.0
            for streams in STREAMS:
                answered: Counter[str] = Counter()
                channels = [self._channel() for _ in range(streams)]
                running = [
                    asyncio.create_task(self._stream(own, number, answered)) for number, own in enumerate(channels)
                ]
                await asyncio.sleep(seconds / 2)  # until the queue is full
                before, start = answered["groups"], time.perf_counter()
                await asyncio.sleep(seconds)
                rates[streams] = (answered["groups"] - before) / (time.perf_counter() - start)
                if streams == STREAMS[-1]:
                    beside = await self._interactive(channel, 20)
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                for own in channels:
                    await own.close()
        details = {"groups_a_second_by_streams": rates, "alone_seconds": alone, "beside_seconds": beside}
        most = STREAMS[-1]
        return [
            Measure(
                f"throughput of {most} streams of one tenant, against the best number of streams",
                rates[most] / max(rates.values()),
                "x",
                0.9,
                "least",
                details,
            ),
            Measure(
                f"a call of another tenant beside {most} streams, median over its time alone",
                beside / alone,
                "x",
                3.0,
                "most",
                details,
            ),
        ]

    async def offered(self, loads: Sequence[float], rounds: int, seconds: float) -> list[Measure]:
        """Goodput at several offered loads, over what the server answers when as many calls wait as it likes.

        In rounds, since a machine changes its speed: each load is compared with what was answered just before it.
        """
        goodput: dict[float, list[float]] = {load: [] for load in loads}
        details: dict[float, list[object]] = {load: [] for load in loads}
        async with self._channel() as channel:
            await self._open_loop(channel, loads[-1] * await self._closed_loop(channel, seconds), seconds)
            for _ in range(rounds):
                for load in loads:
                    capacity = await self._closed_loop(channel, seconds)
                    codes = await self._open_loop(channel, load * capacity, seconds)
                    goodput[load].append(codes["OK"] / seconds / capacity)
                    details[load].append({"capacity_a_second": capacity, "codes": dict(codes)})
        return [
            Measure(
                f"calls answered at {load:.0%} of what can be, over what can be",
                statistics.median(goodput[load]),
                "x",
                0.9,
                "least",
                {"rounds": goodput[load], "each": details[load]},
            )
            for load in loads
        ]

    async def _closed_loop(self, channel: grpc.aio.Channel, seconds: float) -> float:
        """Calls that are answered a second when each client sends the next one once it has its answer."""
        start = time.perf_counter() + WARM_SECONDS
        stopping = start + seconds
        answered = 0

        async def client() -> None:
            nonlocal answered
            while time.perf_counter() < stopping:
                await self._call(channel, "bulk")
                answered += start <= time.perf_counter() < stopping

        await asyncio.gather(*(client() for _ in range(CALLS_AT_ONCE)))
        return answered / seconds

    async def _open_loop(self, channel: grpc.aio.Channel, rate: float, seconds: float) -> Counter[str]:
        """Send calls at a rate, whatever becomes of them: how many were answered or refused once the queue was full."""
        codes: Counter[str] = Counter()
        first = time.perf_counter() + WARM_SECONDS
        end = first + seconds

        async def call() -> None:
            try:
                await self._call(channel, "bulk")
                code = "OK"
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            if first <= time.perf_counter() < end:
                codes[code] += 1

        async with asyncio.TaskGroup() as tasks:
            start = time.perf_counter()
            for place in count():
                due = start + place / rate
                if due >= end:
                    break
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                tasks.create_task(call())
        return codes

    async def refusals(self) -> Measure:
        """CPU time of a refusal over that of an answer."""
        async with self._channel() as channel:
            answers = await self._cpu_each(channel, "bulk", 100, "OK")
            await self._call(channel, "spent")  # all of its minute, and more
            refusals = await self._cpu_each(channel, "spent", 1000, "RESOURCE_EXHAUSTED")
        return Measure(
            "CPU time of a call that is refused, over one that is answered",
            refusals / answers,
            "x",
            0.05,
            "most",
            {"answer_ms": answers * 1e3, "refusal_ms": refusals * 1e3},
        )

    async def _cpu_each(self, channel: grpc.aio.Channel, tenant: str, calls: int, expected: str) -> float:
        """The server's CPU seconds for each of some calls, one after the other."""
        start = self._cpu()
        for _ in range(calls):
            outcome = "OK"
            try:
                await self._call(channel, tenant)
            except grpc.aio.AioRpcError as error:
                outcome = error.code().name
            assert outcome == expected, f"a call ended with {outcome}, expected {expected}"
        return (self._cpu() - start) / calls
