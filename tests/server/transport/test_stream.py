from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import grpc
import pytest
from google.rpc import code_pb2

from neuroglot.v1 import analysis_pb2, group_pb2, result_pb2, service_pb2, service_pb2_grpc
from neuroglot_server.config.deployment import TransportLimits
from neuroglot_server.core import Group, Limits, ModelDescription, Settings
from neuroglot_server.telemetry.transport_observer import Unwatched
from neuroglot_server.transport import requests as requests_module
from neuroglot_server.transport.result_sizes import result_bytes
from neuroglot_server.transport.service import SERVICE_NAME
from tests.server.live import (
    NAME,
    Finishing,
    Held,
    Live,
    Watched,
    channel_to,
    deactivate,
    group,
    load,
    said,
    serving,
    until,
)

PREDICTED = analysis_pb2.Analysis(prediction=analysis_pb2.Prediction())


def message(group_id: str, **changes: object) -> service_pb2.AnalyzeGroupsRequest:
    return service_pb2.AnalyzeGroupsRequest(**{"group": group(group_id), **changes})


def first(group_id: str, **changes: object) -> service_pb2.AnalyzeGroupsRequest:
    return message(group_id, **{"model": NAME, "analysis": PREDICTED, **changes})


async def all_answers(
    live: Live, requests: Iterable[service_pb2.AnalyzeGroupsRequest]
) -> list[service_pb2.AnalyzeGroupsResponse]:
    return [answer async for answer in live.stub.AnalyzeGroups(iter(requests))]


def answers(
    bundle: Path, requests: Iterable[service_pb2.AnalyzeGroupsRequest], settings: Settings | None = None
) -> dict[str, service_pb2.AnalyzeGroupsResponse]:
    """Send a stream, and return its responses by group id."""

    async def conversation() -> list[service_pb2.AnalyzeGroupsResponse]:
        async with serving(load(bundle, settings)) as live:
            return await all_answers(live, requests)

    received = asyncio.run(conversation())
    by_id = {answer.group_id: answer for answer in received}
    assert len(by_id) == len(received)
    return by_id


def error(answer: service_pb2.AnalyzeGroupsResponse) -> tuple[int, list[str]]:
    assert answer.WhichOneof("outcome") == "error"
    return answer.error.code, [violation.field for violation in answer.error.violations]


def test_groups_have_the_results_of_separate_calls_under_their_ids(bloom_bundle: Path) -> None:
    names = [f"group {index}" for index in range(100)]
    received = answers(bloom_bundle, [first(names[0]), *map(message, names[1:])])
    assert received.keys() == set(names)

    async def alone() -> result_pb2.GroupResult:
        async with serving(load(bloom_bundle)) as live:
            request = service_pb2.AnalyzeGroupRequest(model=NAME, group=group(names[7]), analysis=PREDICTED)
            return (await live.stub.AnalyzeGroup(request)).result

    expected, result = asyncio.run(alone()), received[names[7]].result
    assert result.components == expected.components
    for ours, theirs in zip(result.variants[0].predictions, expected.variants[0].predictions, strict=True):
        assert ours.exact == theirs.exact
        assert ours.gold_log_probability == pytest.approx(theirs.gold_log_probability, abs=1e-4)


def test_an_empty_stream_has_no_responses(bloom_bundle: Path) -> None:
    assert answers(bloom_bundle, []) == {}


def test_a_later_group_may_be_answered_first(bloom_bundle: Path) -> None:
    class HoldsTheFirst(Held):
        async def before(self, group: Group) -> None:
            if group.id == "first":
                await super().before(group)

    async def conversation() -> list[str]:
        model = load(bloom_bundle, kind=HoldsTheFirst)
        order = []
        async with serving(model) as live:
            async for answer in live.stub.AnalyzeGroups(iter([first("first"), message("second")])):
                order.append(answer.group_id)
                model.go.set()
        return order

    assert asyncio.run(conversation()) == ["second", "first"]


def test_a_group_that_fails_does_not_end_the_stream(bloom_bundle: Path) -> None:
    bad_row = message("bad row")
    bad_row.group.rows[1].text = ""
    newer = message("newer")
    newer.group.rows[0].MergeFromString(b"\x88\x7d\x01")
    received = answers(bloom_bundle, [first("a"), bad_row, newer, message("b")])
    assert error(received["bad row"]) == (code_pb2.INVALID_ARGUMENT, ["group.rows[1].text"])
    assert error(received["newer"]) == (code_pb2.INVALID_ARGUMENT, ["group.rows[0].2001"])
    assert "is empty" in received["bad row"].error.message
    assert {name for name, answer in received.items() if answer.HasField("result")} == {"a", "b"}


def test_model_and_analysis_default_to_those_of_the_previous_message(bloom_bundle: Path) -> None:
    off = analysis_pb2.Variant(name="off", interventions=[deactivate(analysis_pb2.NEURON_TYPE_SPECIFIC)])
    other = analysis_pb2.Analysis(prediction=analysis_pb2.Prediction(), variants=[off])
    wrong = analysis_pb2.Analysis(
        variants=[analysis_pb2.Variant(name="w", interventions=[analysis_pb2.Intervention()])]
    )
    requests = [
        first("one"),
        message("two"),
        message("three", analysis=other),
        message("four"),
        message("five", model="unknown"),
        message("six"),
        message("seven", model=NAME, analysis=wrong),
        message("eight"),
    ]
    received = answers(bloom_bundle, requests)
    variants = {
        name: [variant.name for variant in received[name].result.variants] for name in ("one", "two", "three", "four")
    }
    assert variants == {
        "one": ["baseline"],
        "two": ["baseline"],
        "three": ["baseline", "off"],
        "four": ["baseline", "off"],
    }
    assert error(received["five"]) == error(received["six"]) == (code_pb2.NOT_FOUND, [])
    # An invalid analysis stays in effect: it is not replaced by an older one.
    path = "analysis.variants[0].interventions[0]"
    assert error(received["seven"]) == error(received["eight"])
    assert error(received["eight"]) == (code_pb2.INVALID_ARGUMENT, [f"{path}.action", f"{path}.selection"])


def test_the_first_message_needs_a_model_but_no_analysis(bloom_bundle: Path) -> None:
    assert error(answers(bloom_bundle, [message("a")])["a"]) == (code_pb2.NOT_FOUND, [])
    counted = answers(bloom_bundle, [message("a", model=NAME)])["a"].result
    assert counted.components[0].thresholds[0].type_counts
    assert not counted.variants


def test_a_group_s_id_is_unique_while_it_is_in_flight(bloom_bundle: Path) -> None:
    async def conversation() -> None:
        model = load(bloom_bundle, kind=Held)
        async with serving(model) as live:
            call = live.stub.AnalyzeGroups()
            await call.write(first("twin"))
            await call.write(message("twin"))
            again = await call.read()
            assert again.group_id == "twin"
            assert error(again) == (code_pb2.INVALID_ARGUMENT, ["group.id"])
            assert "in flight" in again.error.message
            await call.write(message(""))
            assert error(await call.read()) == (code_pb2.INVALID_ARGUMENT, ["group.id"])
            model.go.set()
            assert (await call.read()).HasField("result")
            await call.write(message("twin"))  # answered by now, so the id is free again
            assert (await call.read()).HasField("result")
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF

    asyncio.run(conversation())


def test_malformed_messages_get_an_error_each_and_the_stream_continues(bloom_bundle: Path) -> None:
    noise = random.Random(1)
    malformed = [b"\xff" + noise.randbytes(length) for length in (0, 5, 50, 500)]

    async def conversation() -> list[service_pb2.AnalyzeGroupsResponse]:
        async with serving(load(bloom_bundle)) as live:
            method = live.channel.stream_stream(
                f"/{SERVICE_NAME}/AnalyzeGroups",
                response_deserializer=service_pb2.AnalyzeGroupsResponse.FromString,
            )
            sent = [*malformed, first("good").SerializeToString()]
            return [answer async for answer in method(iter(sent))]

    *errors, good = sorted(asyncio.run(conversation()), key=lambda answer: answer.group_id)
    assert [error(answer) for answer in errors] == [(code_pb2.INVALID_ARGUMENT, ["request"])] * len(malformed)
    assert good.HasField("result")


def test_groups_in_flight_are_limited(bloom_bundle: Path) -> None:
    async def conversation() -> tuple[int, int]:
        model = load(bloom_bundle, Settings(Limits(groups_in_flight=3), threads=1), Held)
        sent = 0

        async def requests() -> AsyncIterator[service_pb2.AnalyzeGroupsRequest]:
            nonlocal sent
            for index in range(10):
                yield first(str(index))
                sent += 1

        async with serving(model) as live:
            call = live.stub.AnalyzeGroups(requests())
            await until(lambda: model.in_flight == 3)
            await asyncio.sleep(0.2)
            seen = model.seen
            model.go.set()
            received = [answer async for answer in call]
            assert len(received) == sent == 10
            return seen, model.max_in_flight

    assert asyncio.run(conversation()) == (3, 3)


def test_a_client_that_does_not_read_causes_backpressure(bloom_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """HTTP/2 buffers some megabytes of responses; after that the server reads no more groups."""
    analysis = analysis_pb2.Analysis(type_map=True, active_bitmaps=True, thresholds=[i / 64 for i in range(32)])
    total, slots = 2000, 4

    def requests() -> Iterable[service_pb2.AnalyzeGroupsRequest]:
        rows = [row for number in range(20) for row in group().rows]
        for index in range(total):
            request = first(str(index), analysis=analysis) if not index else message(str(index))
            del request.group.rows[:]
            request.group.rows.extend(rows)
            for number, row in enumerate(request.group.rows):
                row.label = str(number)
            yield request

    async def conversation() -> tuple[int, int]:
        model = load(bloom_bundle, Settings(Limits(groups_in_flight=slots), threads=1), Watched)
        async with serving(model) as live:
            call = live.stub.AnalyzeGroups(requests())
            size = (await call.read()).ByteSize()
            settled, before = 0, -1
            while settled < 4:  # until no group has been read for a second
                settled = settled + 1 if model.seen == before else 0
                before = model.seen
                await asyncio.sleep(0.25)
            call.cancel()
            await until(lambda: model.in_flight == 0)
            return model.seen, size

    seen, size = asyncio.run(conversation())
    print(f"{seen} of {total} groups read, responses of {size} bytes")
    assert seen < total / 4
    # The client then left while responses waited to be written, which is not an error.
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_stream_waits_when_the_queue_is_full(bloom_bundle: Path) -> None:
    """Each group is validated and tokenized once, however long it waits."""
    names = [str(index) for index in range(20)]

    async def conversation() -> tuple[list[service_pb2.AnalyzeGroupsResponse], int]:
        model = load(bloom_bundle, Settings(queue_tokens=1, threads=1), Watched)
        async with serving(model) as live:
            return await all_answers(live, [first(names[0]), *map(message, names[1:])]), model.seen

    received, seen = asyncio.run(conversation())
    assert {answer.group_id for answer in received if answer.HasField("result")} == set(names)
    assert seen == len(names)


def test_a_full_queue_refuses_a_call_before_its_group_is_read_and_draining_fails_waiting_groups(
    bloom_bundle: Path,
) -> None:
    async def conversation() -> None:
        model = load(bloom_bundle, Settings(queue_tokens=1, threads=1), Watched)
        async with serving(model) as live:
            row = group_pb2.Row(label="en", text="a b")
            long = live.stub.Generate(
                service_pb2.GenerateRequest(model=NAME, row=row, max_tokens=1000, past_newlines=True)
            )
            await long.read()
            request = service_pb2.AnalyzeGroupRequest(model=NAME, group=group("refused"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.stub.AnalyzeGroup(request)
            assert said(caught.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert said(caught.value).retry_seconds
            assert model.seen == 0
            call = live.stub.AnalyzeGroups()
            await call.write(first("waits"))
            await until(lambda: model.in_flight == 1)
            draining = asyncio.create_task(live.endpoint.drain(10))
            waited = await call.read()
            assert waited.group_id == "waits"
            assert error(waited) == (code_pb2.UNAVAILABLE, [])
            long.cancel()
            await draining

    asyncio.run(conversation())


def test_all_groups_of_a_client_that_disconnects_are_cancelled(bloom_bundle: Path) -> None:
    async def conversation() -> tuple[int, int]:
        model = load(bloom_bundle, kind=Held)
        async with serving(model) as live:
            other = grpc.aio.insecure_channel(live.target, options=[("grpc.use_local_subchannel_pool", 1)])
            call = other.stream_stream(
                f"/{SERVICE_NAME}/AnalyzeGroups",
                request_serializer=service_pb2.AnalyzeGroupsRequest.SerializeToString,
            )()
            for index in range(5):
                await call.write(first(str(index)))
            await until(lambda: model.in_flight == 5)
            await other.close()  # the connection goes, not just the call
            await until(lambda: model.in_flight == 0)
            model.go.set()
            assert len(await all_answers(live, [first("still here")])) == 1
            return model.cancelled, model.seen

    assert asyncio.run(conversation()) == (5, 6)


def test_a_server_error_fails_only_its_own_group(bloom_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    class BreaksOnB(Watched):
        async def before(self, group: Group) -> None:
            if group.id == "b":
                raise RuntimeError("cannot open /srv/secret")

    async def conversation() -> dict[str, service_pb2.AnalyzeGroupsResponse]:
        async with serving(load(bloom_bundle, kind=BreaksOnB)) as live:
            received = await all_answers(live, [first("a"), message("b"), message("c")])
            return {answer.group_id: answer for answer in received}

    received = asyncio.run(conversation())
    assert error(received["b"]) == (code_pb2.INTERNAL, [])
    assert "secret" not in received["b"].error.message
    assert received["b"].error.request_id in caplog.text
    assert received["a"].HasField("result")
    assert received["c"].HasField("result")


def test_groups_in_flight_are_answered_before_the_server_stops(bloom_bundle: Path) -> None:
    async def conversation() -> tuple[set[str], grpc.aio.AioRpcError]:
        model = load(bloom_bundle, kind=Finishing)
        async with serving(model) as live:
            call = live.stub.AnalyzeGroups()
            for name in ("a", "b"):
                await call.write(first(name))
            await until(lambda: model.in_flight == 2)
            draining = asyncio.create_task(live.endpoint.drain(10))
            await asyncio.sleep(0.1)
            await call.write(message("too late"))
            model.go.set()
            received = {(await call.read()).group_id for _ in range(2)}
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            await draining
            return received, caught.value

    received, failure = asyncio.run(conversation())
    assert received == {"a", "b"}
    assert failure.code() is grpc.StatusCode.UNAVAILABLE
    assert said(failure).message.startswith("the server is shutting down")


class HeldBytesObserver(Unwatched):
    """Records how many bytes the transport holds, now and at the maximum."""

    maximum = now = 0

    def held(self, size: int) -> None:
        self.now = size
        self.maximum = max(self.maximum, size)


def test_clients_that_do_not_read_neither_fill_memory_nor_delay_others(bloom_bundle: Path) -> None:
    """Three streams of up to 32 groups in flight whose responses are not read, and one whose responses are."""
    analysis = analysis_pb2.Analysis(type_map=True, active_bitmaps=True, thresholds=[i / 64 for i in range(32)])
    limit = 2**20

    def requests(total: int, labels: int) -> Iterable[service_pb2.AnalyzeGroupsRequest]:
        for index in range(total):
            request = first(str(index), analysis=analysis) if not index else message(str(index))
            request.group.CopyFrom(group_pb2.Group(id=str(index)))
            request.group.rows.extend(group_pb2.Row(label=str(label), text="a b") for label in range(labels))
            yield request

    async def conversation() -> tuple[int, int]:
        observer = HeldBytesObserver()
        limits = TransportLimits(transport_bytes=limit)
        async with serving(load(bloom_bundle), observer=observer, limits=limits) as live:
            connections = [channel_to(live.target) for _ in range(3)]
            stuck = [
                service_pb2_grpc.NeuroglotServiceStub(channel).AnalyzeGroups(requests(1000, 60))
                for channel in connections
            ]
            size = max([(await call.read()).ByteSize() for call in stuck])
            before = -1
            while before != observer.now:  # until it no longer changes
                before = observer.now
                await asyncio.sleep(0.5)
            assert observer.now > limit / 2
            assert len([answer async for answer in live.stub.AnalyzeGroups(requests(20, 2))]) == 20
            for call in stuck:
                call.cancel()
            await until(lambda: observer.now == 0)
            for channel in connections:
                await channel.close()
            return observer.maximum, size

    held, size = asyncio.run(conversation())
    print(f"held at most {held} bytes, a result has {size}")
    assert held < limit + 4 * 1.2 * size
    assert held < 3 * 32 * size / 2  # far less than without a limit


def test_the_size_of_a_result_is_estimated_before_it_is_computed(bloom_bundle: Path) -> None:
    prediction = analysis_pb2.Prediction(generate=True, max_tokens=8)
    off = analysis_pb2.Variant(name="off", interventions=[deactivate(analysis_pb2.NEURON_TYPE_SPECIFIC)])
    contribution = analysis_pb2.Contribution(neurons=5)
    for analysis in (
        analysis_pb2.Analysis(),
        analysis_pb2.Analysis(type_map=True, active_bitmaps=True, thresholds=[0, 0.1, 0.2], dead=True),
        analysis_pb2.Analysis(contribution=contribution, active_bitmaps=True, prediction=prediction, variants=[off]),
    ):
        sent = [first("a", analysis=analysis)]
        size = answers(bloom_bundle, sent)["a"].ByteSize()
        expected = result_bytes(_description(bloom_bundle), requests_module.analysis(analysis), len(sent[0].group.rows))
        assert 0.4 * size - 400 < expected < 1.5 * size + 800


def _description(bundle: Path) -> ModelDescription:
    async def describe() -> ModelDescription:
        model = load(bundle)
        await model.close()
        return model.description

    return asyncio.run(describe())
