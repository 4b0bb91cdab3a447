"""Hostile requests do not delay health checks, and cost no more time than they are charged for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from threading import Event

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import neuroglot as ng
from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2
from tests.end_to_end.processes import Process, process, works
from tests.server.hostile_requests import HOSTILE, Hostile, generated
from tests.server.live import NAME

SECONDS = 50e-3
"""Maximum 99th percentile of a health check's latency."""
CHECKS = 400
SENDERS = 2
TIMES_PLAIN = 20

_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}


def send(channel: grpc.Channel, hostile: Hostile) -> grpc.StatusCode:
    """Send a request, and return its status."""
    answers = channel.unary_stream(f"/neuroglot.v1.NeuroglotService/{hostile.method}")(hostile.raw(), timeout=60)
    try:
        for _ in answers:
            pass
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@contextmanager
def connected(server: Process) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def p99_seconds(server: Process) -> float:
    """The 99th percentile of a health check's latency in seconds."""
    taken = []
    with connected(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(CHECKS):
            start = time.perf_counter()
            health.Check(health_pb2.HealthCheckRequest())
            taken.append(time.perf_counter() - start)
            time.sleep(5e-3)
    return float(np.percentile(taken, 99))


def p99_seconds_under_load(server: Process, requests: Sequence[Hostile]) -> tuple[float, set[grpc.StatusCode]]:
    """Like `p99_seconds`, while clients send requests one after the other; also returns the statuses of these."""
    ended = Event()

    def work(first: int) -> set[grpc.StatusCode]:
        codes = set()
        with connected(server) as channel:
            for request in cycle([*requests[first:], *requests[:first]]):
                if ended.is_set():
                    return codes
                codes.add(send(channel, request))
        return codes

    with ThreadPoolExecutor(SENDERS) as senders:
        working = [senders.submit(work, index * len(requests) // SENDERS) for index in range(SENDERS)]
        seconds = p99_seconds(server)
        ended.set()
        return seconds, set().union(*(future.result() for future in working))


def test_health_responds_at_once_during_any_request(bloom_bundle: Path) -> None:
    # Bytes are built in advance: this process also measures.
    requests = [hostile._replace(raw=partial(bytes, hostile.raw())) for hostile in (*HOSTILE, *generated())]
    with process(bloom_bundle) as server:
        before = slowdown()
        under_load, codes = p99_seconds_under_load(server, requests)
        assert not codes & _FAULTS
        assert works(server)
    assert under_load < SECONDS * max(before, slowdown())


def slowdown() -> float:
    """Ratio of wall time to CPU time of a busy process on this machine now, at least 1."""
    start, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < 0.2:
        pass
    return max(1.0, (time.perf_counter() - start) / 0.2)


def plain(number: int) -> Hostile:
    """An ordinary request."""
    rows = [group_pb2.Row(label=label, text=f"The capital number {number} is", answers=["x"]) for label in "abcde"]
    analysis = analysis_pb2.Analysis(prediction=analysis_pb2.Prediction())
    group = group_pb2.Group(id=str(number), rows=rows)
    message = service_pb2.AnalyzeGroupRequest(model=NAME, group=group, analysis=analysis)
    return Hostile("plain", "AnalyzeGroup", message.SerializeToString)


def cpu_seconds(server: Process) -> float:
    """CPU seconds used so far by the server and its child processes."""
    parent = psutil.Process(server.popen.pid)
    times = [running.cpu_times() for running in (parent, *parent.children())]
    return float(sum(time.user + time.system for time in times))


def test_answered_requests_cost_no_more_time_than_they_are_charged(bloom_bundle: Path) -> None:
    def charged() -> float:
        return server.number("neuroglot_tokens_total")

    with process(bloom_bundle, "--cache-bytes", "0") as server, connected(server) as channel:
        send(channel, plain(-1))
        before, tokens = cpu_seconds(server), charged()
        for number in range(100):
            assert send(channel, plain(number)) is grpc.StatusCode.OK
        of_plain = (cpu_seconds(server) - before) / (charged() - tokens)
        for hostile in HOSTILE:
            before, tokens = cpu_seconds(server), charged()
            if send(channel, hostile) is grpc.StatusCode.OK:
                taken, paid = cpu_seconds(server) - before, charged() - tokens
                assert taken < TIMES_PLAIN * of_plain * paid + 0.05, hostile.name  # CPU times have steps of 0.01 s


@pytest.mark.parametrize("hostile", [hostile for hostile in HOSTILE if hostile.field], ids=lambda hostile: hostile.name)
def test_refused_requests_cost_almost_no_time(shared_server: Process, hostile: Hostile) -> None:
    with connected(shared_server) as channel:
        before = cpu_seconds(shared_server)
        assert send(channel, hostile) is grpc.StatusCode.INVALID_ARGUMENT
        assert cpu_seconds(shared_server) - before < 0.15


@pytest.fixture(scope="module")
def shared_server(bloom_bundle: Path) -> Iterator[Process]:
    with process(bloom_bundle) as server:
        works(server)
        yield server


def test_groups_that_arrive_slowly_are_answered(bloom_bundle: Path) -> None:
    def groups() -> Iterator[ng.Group]:
        for number in range(2):
            time.sleep(0.7)
            yield ng.Group({"en": "The capital"}, id=str(number))

    with process(bloom_bundle, "--request-seconds", "0.4") as server, ng.connect(server.address) as client:
        assert {result.group_id for result in client.model().analyze_many(groups())} == {"0", "1"}
