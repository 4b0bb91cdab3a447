"""Passes that hang or exceed the memory: the health status meanwhile, and the callers' results."""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2
from tests.end_to_end.processes import Process, process, raw, until, works
from tests.server.live import said

SERVICE = "neuroglot.v1.NeuroglotService"
LONG = ("--row-tokens", "20000", "--cache-bytes", "0", "--batch-bytes", "2GiB", "--queue-bytes", "4GiB")


def long_request(model: str, tokens: int, rows: int = 1) -> service_pb2.AnalyzeGroupRequest:
    """A group whose rows take one pass; its time and its memory grow with the square of their length."""
    prompts = [[4 + (row + token) % 300 for token in range(tokens)] for row in range(rows)]
    group = group_pb2.Group(
        id=f"long {tokens}",
        rows=[group_pb2.Row(label=str(row), token_ids={"ids": ids}) for row, ids in enumerate(prompts)],
    )
    return service_pb2.AnalyzeGroupRequest(model=model, group=group, analysis=analysis_pb2.Analysis())


@contextmanager
def watched(address: str, *services: str) -> Iterator[dict[str, list[str]]]:
    """What health says of services, one word after another."""
    said: dict[str, list[str]] = {service: [] for service in services}
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        calls = {name: stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in services}

        def listen(name: str) -> None:
            with contextlib.suppress(grpc.RpcError):  # it is cancelled in the end
                for answer in calls[name]:
                    said[name].append(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

        threads = [threading.Thread(target=listen, args=(name,)) for name in services]
        for thread in threads:
            thread.start()
        try:
            yield said
        finally:
            for call in calls.values():
                call.cancel()
            for thread in threads:
                thread.join(10)


def test_health_is_red_while_a_pass_takes_too_long(bloom_bundle: Path, tmp_path: Path) -> None:
    """And only that of its model; the caller is answered all the same, and so is who asks the other one meanwhile."""
    shutil.copytree(bloom_bundle, tmp_path / "other")
    slow, other = (f"{SERVICE}/{name}" for name in (bloom_bundle.name, "other"))
    red, green = "NOT_SERVING", "SERVING"
    with (
        process(bloom_bundle, str(tmp_path / "other"), "--hang-seconds", "0.15", *LONG) as server,
        raw(server.address) as stub,
        watched(server.address, slow, other, "") as said,
    ):
        assert until(lambda: list(said.values()) == [[green]] * 3)
        of_slow = f'model="{bloom_bundle.name}"'
        assert server.number("neuroglot_model_up", of_slow) == 1
        long = stub.AnalyzeGroup.future(long_request(bloom_bundle.name, 4000))
        assert until(lambda: said[slow] == [green, red])
        assert not long.done(), "it is red while the pass runs, not after it"
        assert server.number("neuroglot_model_up", of_slow) == 0
        assert stub.AnalyzeGroup(long_request("other", 3), timeout=20).result.group_id == "long 3"
        assert not long.done()
        assert long.result(60).result.rows[0].prompt_tokens == 4000
        assert until(lambda: said[slow] == [green, red, green])
        assert server.number("neuroglot_model_up", of_slow) == 1
        assert said[other] == said[""] == [green], "the other model answers, and so the server as a whole is well"


def test_a_signal_refuses_what_waits_and_lets_the_pass_that_runs_end(bloom_bundle: Path) -> None:
    with process(bloom_bundle, *LONG) as server, raw(server.address) as stub:
        runs = stub.AnalyzeGroup.future(long_request(bloom_bundle.name, 4000))
        assert until(lambda: server.depth() > 0)
        of_one = server.depth()
        waits = [stub.AnalyzeGroup.future(long_request(bloom_bundle.name, tokens)) for tokens in (7, 8, 9)]
        assert until(lambda: server.depth() >= of_one + 7 + 8 + 9)
        server.popen.send_signal(signal.SIGTERM)
        for call in waits:
            refusal = call.exception(20)
            assert refusal.code() is grpc.StatusCode.UNAVAILABLE
            assert "shutting down and has not started this request" in refusal.details()
        assert not runs.done(), "they were refused at once, not when the pass had ended"
        assert runs.result(60).result.rows[0].prompt_tokens == 4000
        assert server.popen.wait(20) == 0


@contextmanager
def cramped(server: Process, more_bytes: int) -> Iterator[None]:
    """Limit the server's memory to its current use plus a margin, within a block."""
    running = psutil.Process(server.popen.pid)
    before = running.rlimit(resource.RLIMIT_AS)
    running.rlimit(resource.RLIMIT_AS, (running.memory_info().vms + more_bytes, before[1]))
    try:
        yield
    finally:
        running.rlimit(resource.RLIMIT_AS, before)


def test_a_batch_that_is_too_much_for_the_memory_is_run_in_halves(bloom_bundle: Path, deployed_allocator: None) -> None:
    """Requests that fit are answered; a request too large on its own is refused, and the server keeps running."""
    with process(bloom_bundle, "--batch-tokens", "100000", *LONG) as server, raw(server.address) as stub:
        assert works(server)

        def asked(tokens: int, rows: int) -> tuple[service_pb2.AnalyzeGroupResponse, float, float]:
            """The answer, and how many batches and rows ran for it."""
            before = [server.number(f"neuroglot_batch_rows_{what}") for what in ("count", "sum")]
            answer = stub.AnalyzeGroup(long_request(bloom_bundle.name, tokens, rows), timeout=60)
            batches, run = (server.number(f"neuroglot_batch_rows_{what}") for what in ("count", "sum"))
            return answer, batches - before[0], run - before[1]

        with cramped(server, 300 * 2**20):
            with pytest.raises(grpc.RpcError) as caught:
                asked(9000, 1)
            in_halves, batches, rows = asked(1000, 16)
        at_once, of_one, all_rows = asked(1000, 16)
        refused = said(caught.value)
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "memory is too small for a row of this request" in refused.message
        assert refused.retry_seconds is None, "it is not to be sent again"
        assert (of_one, all_rows) == (1, 16)
        assert batches > 1
        assert rows == 16, "each of them ran once"
        assert in_halves.result.components == at_once.result.components
        assert server.depth() == 0
        assert works(server)
