"""Whatever is asked, the server says how it is at once, and takes no more time than it charges for."""

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
"""Within which health answers, in 99 of 100 cases."""
CHECKS = 400
SENDERS = 2
TIMES_PLAIN = 20

_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}


def send(channel: grpc.Channel, hostile: Hostile) -> grpc.StatusCode:
    """What comes of a request."""
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


def slow_ones(server: Process) -> float:
    """The seconds that health takes in 1 of 100 cases."""
    taken = []
    with connected(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(CHECKS):
            start = time.perf_counter()
            health.Check(health_pb2.HealthCheckRequest())
            taken.append(time.perf_counter() - start)
            time.sleep(5e-3)
    return float(np.percentile(taken, 99))


def slow_ones_beside(server: Process, requests: Sequence[Hostile]) -> tuple[float, set[grpc.StatusCode]]:
    """As `slow_ones`, while some callers send requests one after the other; and what these came to."""
    ended = Event()

    def work(first: int) -> set[grpc.StatusCode]:
        codes = set()
        with connected(server) as channel:
            for one in cycle([*requests[first:], *requests[:first]]):
                if ended.is_set():
                    return codes
                codes.add(send(channel, one))
        return codes

    with ThreadPoolExecutor(SENDERS) as senders:
        working = [senders.submit(work, place * len(requests) // SENDERS) for place in range(SENDERS)]
        seconds = slow_ones(server)
        ended.set()
        return seconds, set().union(*(one.result() for one in working))


def test_health_answers_at_once_beside_any_request(bloom_bundle: Path) -> None:
    # Their bytes are made before: this process measures, too.
    requests = [one._replace(raw=partial(bytes, one.raw())) for one in (*HOSTILE, *generated())]
    with process(bloom_bundle) as server:
        before = stretch()
        beside, codes = slow_ones_beside(server, requests)
        assert not codes & _FAULTS
        assert works(server)
    assert beside < SECONDS * max(before, stretch())


def stretch() -> float:
    """How much longer than on a machine of its own a process takes here, now, that does not rest: at least 1."""
    start, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < 0.2:
        pass
    return max(1.0, (time.perf_counter() - start) / 0.2)


def plain(number: int) -> Hostile:
    """A request as anybody has it."""
    rows = [group_pb2.Row(label=label, text=f"The capital number {number} is", answers=["x"]) for label in "abcde"]
    analysis = analysis_pb2.Analysis(prediction=analysis_pb2.Prediction())
    group = group_pb2.Group(id=str(number), rows=rows)
    message = service_pb2.AnalyzeGroupRequest(model=NAME, group=group, analysis=analysis)
    return Hostile("plain", "AnalyzeGroup", message.SerializeToString)


def cpu_seconds(server: Process) -> float:
    """What the server and its processes have taken so far."""
    whole = psutil.Process(server.popen.pid)
    times = [one.cpu_times() for one in (whole, *whole.children())]
    return float(sum(one.user + one.system for one in times))


def test_what_is_answered_takes_no_more_time_than_it_is_charged(bloom_bundle: Path) -> None:
    def charged() -> float:
        return server.number("neuroglot_tokens_total")

    with process(bloom_bundle, "--cache-bytes", "0") as server, connected(server) as channel:
        send(channel, plain(-1))
        before, tokens = cpu_seconds(server), charged()
        for number in range(100):
            assert send(channel, plain(number)) is grpc.StatusCode.OK
        of_plain = (cpu_seconds(server) - before) / (charged() - tokens)
        for one in HOSTILE:
            before, tokens = cpu_seconds(server), charged()
            if send(channel, one) is grpc.StatusCode.OK:
                taken, paid = cpu_seconds(server) - before, charged() - tokens
                assert taken < TIMES_PLAIN * of_plain * paid + 0.05, one.name  # times are counted in hundredths


@pytest.mark.parametrize("hostile", [one for one in HOSTILE if one.field], ids=lambda one: one.name)
def test_what_is_refused_takes_next_to_no_time(server_of_all: Process, hostile: Hostile) -> None:
    with connected(server_of_all) as channel:
        before = cpu_seconds(server_of_all)
        assert send(channel, hostile) is grpc.StatusCode.INVALID_ARGUMENT
        assert cpu_seconds(server_of_all) - before < 0.15


@pytest.fixture(scope="module")
def server_of_all(bloom_bundle: Path) -> Iterator[Process]:
    with process(bloom_bundle) as server:
        works(server)
        yield server


def test_groups_that_take_their_time_to_come_are_answered(bloom_bundle: Path) -> None:
    def groups() -> Iterator[ng.Group]:
        for number in range(2):
            time.sleep(0.7)
            yield ng.Group({"en": "The capital"}, id=str(number))

    with process(bloom_bundle, "--request-seconds", "0.4") as server, ng.connect(server.address) as client:
        assert {result.group_id for result in client.model().analyze_many(groups())} == {"0", "1"}
