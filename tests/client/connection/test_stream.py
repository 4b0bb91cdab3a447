"""Many groups on one stream: order, flow, failures, ends; against a server that does what a test needs."""

from __future__ import annotations

import gc
import itertools
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import grpc
import pytest

import neuroglot as ng
from neuroglot.connection.stream import exchange
from neuroglot.v1 import result_pb2, service_pb2, service_pb2_grpc


def group(name: object = "", **arguments: object) -> ng.Group:
    return ng.Group({"en": "Hello"}, id=str(name), **arguments)


def until(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_every_group_gets_its_answer(serve, scripted) -> None:
    with ng.connect(serve(scripted())) as client:
        answers = list(client.model().analyze_many(group(n) for n in range(100)))
    assert sorted(int(answer.group_id) for answer in answers) == list(range(100))


def test_no_groups_no_answers(serve, scripted) -> None:
    with ng.connect(serve(scripted())) as client:
        assert list(client.model().analyze_many([])) == []


def test_groups_without_an_id_are_numbered_by_their_place(serve, scripted) -> None:
    with ng.connect(serve(scripted())) as client:
        answers = client.model().analyze_many([group(), group("own"), group()], in_flight=1)
        assert [answer.group_id for answer in answers] == ["0", "own", "2"]


@pytest.mark.parametrize("groups", [[group("a"), group("a")], [group("1"), group()]])
def test_an_id_that_comes_twice_is_refused(serve, scripted, groups: list[ng.Group]) -> None:
    with ng.connect(serve(scripted())) as client:
        answers = client.model().analyze_many(groups, in_flight=1)
        assert next(answers).group_id == groups[0].id
        with pytest.raises(ng.InvalidGroupError, match=f"two groups have the id '{groups[0].id}'"):
            next(answers)


@pytest.mark.parametrize(("in_flight", "expected"), [(None, 4), (1, 1), (3, 3), (50, 4)])
def test_no_more_is_sent_ahead_than_the_server_takes(serve, scripted, in_flight: int | None, expected: int) -> None:
    release, read = threading.Event(), []

    class Waits(scripted):
        def analyze_groups(self, request_iterator, context):
            first = next(request_iterator)
            read.append(first)
            held = [first]

            def read_on() -> None:
                for request in request_iterator:
                    read.append(request)
                    held.append(request)

            reader = threading.Thread(target=read_on)
            reader.start()
            release.wait(10)
            answered = 0
            while reader.is_alive() or answered < len(held):
                if answered < len(held):
                    yield self.answer(held[answered])
                    answered += 1
                else:
                    time.sleep(0.005)

    taken = itertools.count()
    with ng.connect(serve(Waits())) as client:
        answers = client.model().analyze_many((group(next(taken)) for _ in range(12)), in_flight=in_flight)
        collected: list[object] = []
        consumer = threading.Thread(target=lambda: collected.extend(answers))
        consumer.start()
        assert until(lambda: len(read) == expected)
        time.sleep(0.1)
        assert len(read) == expected
        assert next(taken) == expected, "and no more is made"
        release.set()
        consumer.join(10)
    assert len(collected) == 12


def test_nothing_is_asked_before_the_first_answer_is(serve, scripted) -> None:
    taken: list[int] = []

    def groups() -> Iterator[ng.Group]:
        for number in itertools.count():
            taken.append(number)
            yield group(number)

    with ng.connect(serve(scripted())) as client:
        answers = client.model().analyze_many(groups())
        time.sleep(0.05)
        assert taken == []
        for _ in range(50):
            next(answers)
        assert len(taken) <= 54
        answers.close()


def test_a_slow_maker_of_groups_does_not_hold_answers_back(serve, scripted) -> None:
    def groups() -> Iterator[ng.Group]:
        for number in range(4):
            yield group(number)
            time.sleep(0.4)

    with ng.connect(serve(scripted())) as client:
        started = time.monotonic()
        arrivals = [time.monotonic() - started for _ in client.model().analyze_many(groups())]
    assert arrivals[0] < 1.1, "the first answer waits for one more group to be made at most, not for four"


def test_closing_the_iterator_cancels_the_stream(serve, scripted) -> None:
    ended = threading.Event()

    class Endless(scripted):
        def analyze_groups(self, request_iterator, context):
            context.add_callback(ended.set)
            yield self.answer(next(request_iterator))
            ended.wait(20)

    def working() -> list[str]:
        """Threads that send or receive for a stream; gRPC names its own after their function."""
        return [thread.name for thread in threading.enumerate() if re.search(r"receiver|\(_run\)", thread.name)]

    with ng.connect(serve(Endless())) as client:
        idle = len(working())
        answers = client.model().analyze_many(group(n) for n in itertools.count())
        assert next(answers).group_id == "0"
        time.sleep(0.2)  # until all that may be sent is sent, and gRPC's thread waits for more
        assert len(working()) > idle
        started = time.monotonic()
        answers.close()
        assert ended.wait(5)
        assert time.monotonic() - started < 5
        assert until(lambda: len(working()) <= idle), working()


def test_leaving_the_loop_cancels_the_stream(serve, scripted) -> None:
    ended = threading.Event()

    class Counts(scripted):
        def analyze_groups(self, request_iterator, context):
            context.add_callback(ended.set)
            yield from super().analyze_groups(request_iterator, context)

    with ng.connect(serve(Counts())) as client:
        for answer in client.model().analyze_many(group(n) for n in itertools.count()):
            if answer.group_id == "20":
                break
        assert ended.wait(5)


LEAVES = """
import itertools, sys
import neuroglot as ng
model = ng.connect(sys.argv[1]).model()
answers = model.analyze_many(ng.Group({"en": "Hello"}) for _ in itertools.count())
print(next(answers).group_id)
"""


def test_a_program_that_ends_in_the_middle_of_a_stream_ends(serve, scripted) -> None:
    address = serve(scripted())
    for _ in range(4):  # what could hang are threads at the interpreter's exit, and not every time
        ended = subprocess.run([sys.executable, "-c", LEAVES, address], capture_output=True, text=True, timeout=15)
        assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, "0", "")


@pytest.mark.parametrize("address_answers", [True, False])
def test_a_stream_that_is_left_leaves_no_call_to_the_garbage_collector(serve, scripted, address_answers) -> None:
    channel = grpc.insecure_channel(serve(scripted()) if address_answers else "127.0.0.1:1")
    calls: list[weakref.ref] = []

    def start(requests: Iterator[service_pb2.AnalyzeGroupsRequest]):
        call = service_pb2_grpc.NeuroglotServiceStub(channel).AnalyzeGroups(requests)
        calls.append(weakref.ref(call))
        return call

    requests = (service_pb2.AnalyzeGroupsRequest() for _ in itertools.count())
    gc.disable()  # it would hide a cycle, and at the interpreter's exit there is one run of it that can hang
    try:
        answers = exchange(start, requests, 4, explain=lambda error: ng.UnavailableError("UNAVAILABLE", str(error)))
        if address_answers:
            next(answers)
        else:
            with pytest.raises(ng.UnavailableError):
                next(answers)
        answers.close()
        assert calls[0]() is None
    finally:
        gc.enable()
        channel.close()


def test_what_the_maker_of_groups_raises_reaches_the_caller(serve, scripted) -> None:
    def groups() -> Iterator[ng.Group]:
        yield group(0)
        yield ng.Group({"en": ""})

    with ng.connect(serve(scripted())) as client:
        answers = client.model().analyze_many(groups(), in_flight=1)
        assert next(answers).group_id == "0"
        with pytest.raises(ng.InvalidGroupError, match="the prompt of 'en' is empty"):
            next(answers)


def test_a_group_that_fails_does_not_end_the_stream(serve, scripted) -> None:
    class Picky(scripted):
        def answer(self, request):
            if request.group.id != "1":
                return super().answer(request)
            error = result_pb2.GroupError(
                code=3,
                message="refused",
                violations=[result_pb2.FieldViolation(field="group.rows[0].text", description="too long")],
                request_id="4f",
            )
            return service_pb2.AnalyzeGroupsResponse(group_id="1", error=error)

    with ng.connect(serve(Picky())) as client:
        answers = {answer.group_id: answer for answer in client.model().analyze_many(group(n) for n in range(3))}
    assert isinstance(answers["0"], ng.GroupResult)
    assert isinstance(answers["2"], ng.GroupResult)
    failure = answers["1"]
    assert isinstance(failure, ng.GroupFailure)
    assert type(failure.error) is ng.InvalidRequestError
    assert failure.error.code == "INVALID_ARGUMENT"
    assert failure.error.violations == (ng.Violation("group.rows[0].text", "too long"),)
    assert failure.error.request_id == "4f"


def test_a_stream_that_breaks_gives_what_came_and_then_the_error(serve, scripted) -> None:
    class Breaks(scripted):
        def analyze_groups(self, request_iterator, context):
            yield self.answer(next(request_iterator))
            yield self.answer(next(request_iterator))
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server is going down")

    with ng.connect(serve(Breaks()), retry_seconds=0) as client:
        answers = client.model().analyze_many(group(n) for n in itertools.count())
        assert [next(answers).group_id, next(answers).group_id] == ["0", "1"]
        with pytest.raises(ng.UnavailableError, match="the server is going down"):
            next(answers)


def test_a_stream_that_ends_too_early(serve, scripted) -> None:
    class Stops(scripted):
        def analyze_groups(self, request_iterator, context):
            yield self.answer(next(request_iterator))

    with ng.connect(serve(Stops()), retry_seconds=0) as client:
        answers = client.model().analyze_many((group(n) for n in range(3)), in_flight=3)
        assert next(answers).group_id == "0"
        with pytest.raises(ng.UnavailableError, match="left 2 questions unanswered"):
            next(answers)


def test_a_deadline_for_the_stream(serve, scripted) -> None:
    class Silent(scripted):
        def analyze_groups(self, request_iterator, context):
            time.sleep(0.5)
            yield from super().analyze_groups(request_iterator, context)

    with ng.connect(serve(Silent())) as client, pytest.raises(ng.DeadlineError):
        list(client.model().analyze_many([group()], timeout=0.1))


def test_a_stream_that_was_read_to_its_end_is_not_cancelled(serve, scripted) -> None:
    states: list[bool] = []

    class Watches(scripted):
        def analyze_groups(self, request_iterator, context):
            yield from super().analyze_groups(request_iterator, context)
            states.append(context.is_active())

    with ng.connect(serve(Watches())) as client:
        assert len(list(client.model().analyze_many(group(n) for n in range(3)))) == 3
    assert states == [True]


def test_what_is_as_in_the_message_before_is_left_out(serve, scripted) -> None:
    read: list[service_pb2.AnalyzeGroupsRequest] = []

    class Notes(scripted):
        def answer(self, request):
            read.append(request)
            return super().answer(request)

    with ng.connect(serve(Notes())) as client:
        answered = {"answers": {"en": "world"}}
        groups = [group(0), group(1), group(2, **answered), group(3, **answered), group(4)]
        list(client.model().analyze_many(groups, thresholds=[0.5]))
    assert [request.model for request in read] == ["small", "", "", "", ""]
    assert [request.HasField("analysis") for request in read] == [True, False, True, False, True]
    assert [request.analysis.HasField("prediction") for request in read if request.HasField("analysis")] == [
        False,
        True,
        False,
    ]


def test_bad_arguments_are_refused_at_the_call(serve, scripted) -> None:
    with ng.connect(serve(scripted())) as client:
        model = client.model()
        with pytest.raises(ValueError, match="in_flight must be an integer of 1 or more, not 0"):
            model.analyze_many([], in_flight=0)
        with pytest.raises(ValueError, match=r"contribution must be True, a share of .*, not 2"):
            model.analyze_many([], contribution=2)
        with pytest.raises(ng.InvalidSelectionError, match="variant 'v'"):
            model.analyze_many([], variants={"v": []})
