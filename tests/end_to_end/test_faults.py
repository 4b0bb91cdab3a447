"""What goes wrong around a real server, and what is kept: a process of its own, on loopback, under real load.

Each test says what the caller was told, and what the server holds afterwards: the queue's depth, as Prometheus sees it.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path

import grpc
import pytest

import neuroglot as ng
from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2, service_pb2_grpc
from tests.end_to_end.processes import PROMPT, SMALL, Process, process, raw, until, works


def heavy(name: str = "heavy", rows: int = 30) -> ng.Group:
    """A group that takes a while under the variants below; each is of other prompts."""
    return ng.Group({f"row{n}": f"{name} {n} " + PROMPT * 6 for n in range(rows)}, id=name)


def numbered(many: int) -> list[ng.Group]:
    return [
        ng.Group({"en": f"Number {n} is", "es": f"El {n} es"}, answers={"en": "odd"}, id=str(n)) for n in range(many)
    ]


EVERYWHERE = {
    f"scaled {n}": ng.scale(ng.control(ng.PARTIAL_SHARED, draw=n), 0.5, scope=ng.Scope.ALL_TOKENS) for n in range(24)
}


@pytest.fixture(scope="module")
def server(bloom_bundle: Path) -> Iterator[Process]:
    with process(bloom_bundle) as running:
        yield running


def request_of(server: Process, group: ng.Group) -> service_pb2.AnalyzeGroupRequest:
    """The client's request, to be sent by a call that can be cancelled."""
    rows = [group_pb2.Row(label=label, text=text) for label, text in group.prompts.items()]
    analysis = analysis_pb2.Analysis(prediction={"generate": True, "max_tokens": 16})
    for n in range(24):
        control = {"kind": analysis_pb2.CONTROL_KIND_RANDOM_ACTIVE, "draw": n}
        variant = analysis_pb2.Variant(name=str(n))
        one = variant.interventions.add(scale={"factor": 0.5}, scope=analysis_pb2.SCOPE_ALL_TOKENS)
        one.selection.control.MergeFrom(analysis_pb2.Control(**control))
        one.selection.control.of.types.types.append(analysis_pb2.NEURON_TYPE_PARTIAL_SHARED)
        analysis.variants.append(variant)
    group_message = group_pb2.Group(id=group.id, rows=rows)
    return service_pb2.AnalyzeGroupRequest(model=server.bundle.name, group=group_message, analysis=analysis)


def test_cancelled_while_it_waits_and_while_it_runs(server: Process) -> None:
    with raw(server.address) as stub:
        first = stub.AnalyzeGroup.future(request_of(server, heavy("first")))
        assert until(lambda: server.depth() > 0)
        of_one = server.depth()
        second = stub.AnalyzeGroup.future(request_of(server, heavy("second")))
        assert until(lambda: server.depth() > of_one)
        second.cancel()  # most of it waits
        assert until(lambda: server.depth() == of_one), "the first one stays"
        assert not first.done()
        first.cancel()
        assert until(lambda: server.depth() == 0)
        for call in (first, second):
            assert call.code() is grpc.StatusCode.CANCELLED
    assert works(server)


def test_cancelled_while_it_streams(server: Process) -> None:
    with raw(server.address) as stub:
        row = group_pb2.Row(label="en", text=PROMPT)
        tokens = stub.Generate(
            service_pb2.GenerateRequest(model=server.bundle.name, row=row, max_tokens=900, past_newlines=True)
        )
        next(tokens)
        tokens.cancel()
        assert tokens.code() is grpc.StatusCode.CANCELLED
        assert until(lambda: server.depth() == 0)
    assert works(server)


def test_a_deadline_passes_in_the_queue(server: Process) -> None:
    with raw(server.address) as stub, ng.connect(server.address) as client:
        running = stub.AnalyzeGroup.future(request_of(server, heavy("running")))
        assert until(lambda: server.depth() > 0)
        of_one = server.depth()
        with pytest.raises(ng.DeadlineError, match="in the time given"):
            client.model().analyze(heavy("late"), variants=EVERYWHERE, timeout=0.3)
        assert not running.done(), "it passed in the queue, not after the run"
        assert until(lambda: server.depth() == of_one)
        running.cancel()
    assert until(lambda: server.depth() == 0)


def test_the_queue_is_full(bloom_bundle: Path) -> None:
    with process(bloom_bundle, "--queue-tokens", "200") as server, raw(server.address) as stub:
        running = stub.AnalyzeGroup.future(request_of(server, heavy("running")))
        assert until(lambda: server.depth() > 200), "what comes alone is let in, whatever its size"
        with (
            ng.connect(server.address, retry_seconds=0) as client,
            pytest.raises(ng.OverloadedError, match="queue is full") as caught,
        ):
            client.model().analyze(heavy("refused"), variants=EVERYWHERE)
        assert caught.value.retry_after_seconds is not None
        assert caught.value.retry_after_seconds > 0
        with ng.connect(server.address) as client:
            patient = client.model().analyze_many([SMALL])  # a stream waits
            waiting = ThreadPoolExecutor(1).submit(next, patient)
            assert not waiting.done()
            running.cancel()
            assert waiting.result(20).group_id == "small"


KILLED = """
import itertools, sys
import neuroglot as ng
model = ng.connect(sys.argv[1]).model()
groups = (ng.Group({"en": f"Number {n} is", "es": f"El {n} es"}, id=str(n)) for n in itertools.count())
for answer in model.analyze_many(groups):
    print(answer.group_id, flush=True)
"""


def test_a_client_that_is_killed_leaves_nothing_behind(server: Process) -> None:
    client = subprocess.Popen([sys.executable, "-c", KILLED, server.address], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    for _ in range(5):
        client.stdout.readline()
    client.kill()
    client.wait()
    client.stdout.close()
    assert until(lambda: server.depth() == 0)
    assert works(server)


def test_sigterm_under_load(bloom_bundle: Path) -> None:
    with process(bloom_bundle) as server, raw(server.address) as stub:
        started = stub.AnalyzeGroup.future(request_of(server, heavy("started", rows=4)))
        assert until(lambda: server.depth() > 0)
        server.popen.send_signal(signal.SIGTERM)
        outcome = started.exception(60)
        told = None if outcome is None else outcome.code()
        assert told in (None, grpc.StatusCode.UNAVAILABLE), "answered if it had begun, else sent elsewhere"
        assert server.popen.wait(60) == 0
        with pytest.raises(grpc.RpcError) as refused:
            stub.AnalyzeGroup(request_of(server, heavy("late", rows=2)), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_goes_in_the_middle_of_a_stream_costs_nothing(bloom_bundle: Path, how: signal.Signals) -> None:
    groups = numbered(90)
    variants = {"w/o": ng.deactivate(ng.PARTIAL_SHARED)}
    with ng.connect(bloom_bundle) as alone:
        expected = {one.group_id: one for one in alone.model().analyze_many(groups, variants=variants)}
    server = Process(bloom_bundle, "--grace", "0.2")
    try:
        with ng.connect(server.address, on_retry=lambda *_: None) as client:
            seen: Counter[str] = Counter()
            for answer in client.model().analyze_many(groups, variants=variants, in_flight=8):
                assert isinstance(answer, ng.GroupResult)
                seen[answer.group_id] += 1
                same = expected[answer.group_id]
                assert (answer.types.codes() == same.types.codes()).all()
                got, wanted = answer.predictions["w/o"]["en"], same.predictions["w/o"]["en"]
                assert got.gold_log_probability == pytest.approx(wanted.gold_log_probability, abs=1e-4)
                if len(seen) in (20, 50):
                    server.popen.send_signal(how)
                    server.popen.wait(20)
                    server.end()
                    server = Process(bloom_bundle, "--grace", "0.2", port=int(server.address.rpartition(":")[2]))
    finally:
        server.end()
    assert seen == Counter(expected.keys()), "none is lost, and none comes twice"


def test_a_slow_reader_does_not_fill_the_server(bloom_bundle: Path) -> None:
    with process(bloom_bundle) as server, raw(server.address) as stub:
        sent = count()

        def requests() -> Iterator[service_pb2.AnalyzeGroupsRequest]:
            unread = "word " * 100  # it is large on the wire, and nothing is run for it
            rows = [group_pb2.Row(label=str(n), text=PROMPT, answers=[unread]) for n in range(60)]
            analysis = analysis_pb2.Analysis(
                active_bitmaps=True, type_map=True, thresholds=[n / 100 for n in range(32)]
            )
            for number in range(3000):
                next(sent)
                yield service_pb2.AnalyzeGroupsRequest(
                    model=server.bundle.name, group=group_pb2.Group(id=str(number), rows=rows), analysis=analysis
                )

        answers = stub.AnalyzeGroups(requests())
        next(answers)
        before, taken = server.resident_bytes(), -1
        while taken != (taken := next(sent)) - 1:  # until no more is taken
            time.sleep(1)
        assert taken < 1000, "the sender is held back"
        assert server.resident_bytes() - before < 64 * 2**20
        answers.cancel()
        assert until(lambda: server.depth() == 0)
        assert works(server)


def test_malformed_bytes_and_masks_of_the_wrong_shape_are_refused_by_name(server: Process) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/neuroglot.v1.NeuroglotService/AnalyzeGroup")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"\xff\xff\xff", timeout=5)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        stub = service_pb2_grpc.NeuroglotServiceStub(channel)
        request = request_of(server, SMALL)
        for layers, neurons, bits in ((2, 96, b"\x01" * 24), (3, 96, b"\x01" * 35), (3, 95, b"\xff" * 36)):
            chosen = analysis_pb2.NeuronSet(layers=layers, neurons=neurons, bits=bits)
            request.analysis.variants[3].interventions[0].selection.neurons.CopyFrom(chosen)
            with pytest.raises(grpc.RpcError) as refused:
                stub.AnalyzeGroup(request, timeout=5)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "analysis.variants[3].interventions[0].selection.neurons" in refused.value.details()
    with socket.create_connection(server.address.split(":"), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert works(server)


def test_rows_that_overflow_cost_nobody_else(server: Process) -> None:
    """Poisoned and sound requests at once, which share batches: the sound ones come out as alone."""
    poison = {"poison": ng.override(ng.union(*ng.NeuronType), 3e38), "sound": ng.deactivate(ng.SPECIFIC)}
    sound = {"sound": ng.deactivate(ng.SPECIFIC)}
    groups = numbered(12)
    with ng.connect(server.address) as client, ThreadPoolExecutor(12) as callers:
        model = client.model()
        alone = [model.analyze(group, variants=sound) for group in groups]
        futures: list[Future[ng.GroupResult]] = [
            callers.submit(model.analyze, group, variants=poison if n % 3 == 0 else sound)
            for n, group in enumerate(groups)
        ]
        for n, (future, expected) in enumerate(zip(futures, alone, strict=True)):
            got = future.result(60)
            assert (got.types.codes() == expected.types.codes()).all()
            for name in ("baseline", "sound"):
                one, other = got.predictions[name]["en"], expected.predictions[name]["en"]
                assert one.gold_log_probability == pytest.approx(other.gold_log_probability, abs=1e-4)
            if n % 3 == 0:
                assert "overflow" in got.predictions["poison"]["en"].error


def test_models_come_and_go_under_traffic(bloom_bundle: Path) -> None:
    with process(bloom_bundle, "--bundles-folder", str(bloom_bundle.parent)) as server, raw(server.address) as stub:
        stopping = threading.Event()
        answered: list[str] = []

        def traffic() -> None:
            with ng.connect(server.address) as client:
                model = client.model(bloom_bundle.name)
                while not stopping.is_set():
                    answered.append(model.analyze(SMALL).group_id)

        with ThreadPoolExecutor(2) as callers:
            traffics = [callers.submit(traffic) for _ in range(2)]
            for _ in range(3):
                stub.LoadModel(service_pb2.LoadModelRequest(bundle=bloom_bundle.name, name="second"), timeout=30)
                with ng.connect(server.address) as client:
                    assert {info.name for info in client.models()} == {bloom_bundle.name, "second"}
                    assert client.model("second").analyze(SMALL).group_id == "small"
                stub.UnloadModel(service_pb2.UnloadModelRequest(model="second"), timeout=30)
                with ng.connect(server.address) as client, pytest.raises(ng.NotFoundError, match=bloom_bundle.name):
                    client.model("second")
            stopping.set()
            for one in traffics:
                one.result(30)
        assert answered
