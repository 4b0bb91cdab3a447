"""Many groups survive what happens to servers: each is answered once, whatever breaks in the middle."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

import neuroglot as ng
from neuroglot.v1 import model_pb2, result_pb2, service_pb2


def group(name: object = "", **arguments: object) -> ng.Group:
    return ng.Group({"en": "Hello"}, id=str(name), **arguments)


def failure(request, code: grpc.StatusCode, retry_delay_ms: int | None = None) -> service_pb2.AnalyzeGroupsResponse:
    error = result_pb2.GroupError(code=code.value[0], message="not now", retry_delay_ms=retry_delay_ms)
    return service_pb2.AnalyzeGroupsResponse(group_id=request.group.id, error=error)


def quiet(*_: object) -> None:
    """In place of the log."""


@pytest.mark.parametrize("how", ["abort", "end"])
def test_a_stream_that_breaks_again_and_again(serve, scripted, how: str) -> None:
    read: list[list[str]] = []

    class Breaks(scripted):
        def analyze_groups(self, request_iterator, context):
            ids: list[str] = []
            read.append(ids)
            for number, request in enumerate(request_iterator):
                assert number or (request.model == "small" and request.HasField("analysis")), "a stream of its own"
                ids.append(request.group.id)
                if number == 3:
                    if how == "abort":
                        context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
                    return
                yield self.answer(request)

    with ng.connect(serve(Breaks()), on_retry=quiet) as client:
        answers = client.model().analyze_many((group(n) for n in range(11)), in_flight=2)
        assert Counter(answer.group_id for answer in answers) == Counter(map(str, range(11)))
    assert len(read) == 4
    for before, after in itertools.pairwise(read):
        assert before[3] == after[0], "the oldest of the unanswered first"


def test_a_server_that_is_restarted_in_the_middle(serve, scripted) -> None:
    answered = threading.Semaphore(0)

    class Counts(scripted):
        def answer(self, request):
            answered.release()
            time.sleep(0.005)
            return super().answer(request)

    address = serve(Counts())

    def restart() -> None:
        for _ in range(20):
            answered.acquire()
        serve.stop(address)
        time.sleep(0.3)
        serve(Counts(), address)

    restarting = threading.Thread(target=restart)
    restarting.start()
    told: list[str] = []
    with ng.connect(address, on_retry=lambda error, _: told.append(error.code)) as client:
        answers = list(client.model().analyze_many(group(n) for n in range(60)))
    restarting.join(10)
    assert Counter(answer.group_id for answer in answers) == Counter(map(str, range(60)))
    assert all(isinstance(answer, ng.GroupResult) for answer in answers)
    assert set(told) == {"UNAVAILABLE"}


def test_a_server_that_does_not_come_back(serve, scripted) -> None:
    address = serve(scripted())
    with ng.connect(address, on_retry=quiet, retry_seconds=0.5) as client:
        answers = client.model().analyze_many(group(n) for n in itertools.count())
        next(answers)
        serve.stop(address)
        started = time.monotonic()
        with pytest.raises(ng.UnavailableError, match=f"no answer from {address}"):
            list(itertools.islice(answers, 1000))
        assert 0.4 < time.monotonic() - started < 5


def test_no_more_is_held_than_is_in_flight(serve, scripted) -> None:
    class Refuses(scripted):
        def answer(self, request):
            return failure(request, grpc.StatusCode.UNAVAILABLE)

    taken: list[int] = []

    def groups() -> Iterator[ng.Group]:
        for number in itertools.count():
            taken.append(number)
            yield group(number)

    pauses: list[float] = []
    with ng.connect(serve(Refuses()), on_retry=lambda _, pause: pauses.append(pause), retry_seconds=0.6) as client:
        answers = client.model().analyze_many(groups(), in_flight=3)
        first = next(answers)
        assert isinstance(first, ng.GroupFailure)
        assert first.error.code == "UNAVAILABLE"
        assert len(pauses) >= 3
        assert len(taken) <= 3


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_group_that_is_refused_for_the_time_being_is_asked_again(serve, scripted, code) -> None:
    tries: Counter[str] = Counter()

    class Refuses(scripted):
        def answer(self, request):
            tries[request.group.id] += 1
            again = int(request.group.id) % 5 == 0 and tries[request.group.id] < 3
            return failure(request, code) if again else super().answer(request)

    with ng.connect(serve(Refuses()), on_retry=quiet) as client:
        answers = list(client.model().analyze_many(group(n) for n in range(12)))
    assert Counter(answer.group_id for answer in answers) == Counter(map(str, range(12)))
    assert all(isinstance(answer, ng.GroupResult) for answer in answers)
    assert tries == {str(n): 3 if n % 5 == 0 else 1 for n in range(12)}


def test_a_group_says_how_long_to_wait(serve, scripted) -> None:
    tries: Counter[str] = Counter()

    class Refuses(scripted):
        def answer(self, request):
            tries[request.group.id] += 1
            again = request.group.id == "1" and tries["1"] < 3
            return failure(request, grpc.StatusCode.RESOURCE_EXHAUSTED, 300) if again else super().answer(request)

    told: list[tuple[float | None, float]] = []
    with ng.connect(
        serve(Refuses()), on_retry=lambda *one: told.append((one[0].retry_after_seconds, one[1]))
    ) as client:
        answers = list(client.model().analyze_many(group(n) for n in range(3)))
    assert all(isinstance(answer, ng.GroupResult) for answer in answers)
    assert [asked for asked, _ in told] == [0.3, 0.3]
    assert all(0.3 <= pause <= 0.33 for _, pause in told), "what is asked for, and no back-off of the client's own"


def test_a_group_that_is_refused_for_ever_fails_alone(serve, scripted) -> None:
    class Refuses(scripted):
        def answer(self, request):
            if request.group.id == "1":
                return failure(request, grpc.StatusCode.UNAVAILABLE)
            return super().answer(request)

    with ng.connect(serve(Refuses()), on_retry=quiet, retry_seconds=0.3) as client:
        answers = {answer.group_id: answer for answer in client.model().analyze_many(group(n) for n in range(6))}
    assert set(answers) == set("012345")
    failed = {name for name, answer in answers.items() if isinstance(answer, ng.GroupFailure)}
    assert failed == {"1"}
    assert isinstance(answers["1"].error, ng.UnavailableError)


def test_what_is_wrong_with_a_group_is_not_asked_again(serve, scripted) -> None:
    tries: Counter[str] = Counter()

    class Refuses(scripted):
        def answer(self, request):
            tries[request.group.id] += 1
            return failure(request, grpc.StatusCode.INVALID_ARGUMENT)

    with ng.connect(serve(Refuses()), on_retry=quiet) as client:
        assert len(list(client.model().analyze_many(group(n) for n in range(6)))) == 6
    assert set(tries.values()) == {1}


def test_what_the_maker_of_groups_raises_is_not_taken_for_a_broken_stream(serve, scripted) -> None:
    def groups() -> Iterator[ng.Group]:
        yield group(0)
        raise ng.UnavailableError("UNAVAILABLE", "another server, which the maker asked")

    with ng.connect(serve(scripted()), on_retry=quiet) as client:
        answers = client.model().analyze_many(groups(), in_flight=1)
        assert next(answers).group_id == "0"
        with pytest.raises(ng.UnavailableError, match="another server"):
            next(answers)


def test_another_bundle_under_the_same_name_is_not_mixed_in(serve, scripted) -> None:
    class Serves(scripted):
        def __init__(self, identity: str) -> None:
            self.identity = identity
            self.model = model_pb2.Model(
                name="small", bundle_identity=identity, limits=model_pb2.Limits(groups_in_flight=2)
            )

        def answer(self, request):
            response = super().answer(request)
            response.result.provenance.bundle_identity = self.identity
            return response

    address = serve(Serves("a" * 64))
    with ng.connect(address, on_retry=quiet) as client:
        answers = client.model().analyze_many(group(n) for n in itertools.count())
        assert next(answers).provenance.bundle_identity == "a" * 64
        serve.stop(address)
        serve(Serves("b" * 64), address)
        with pytest.raises(ng.ModelChangedError, match=r"'small' now, b{12} in place of a{12}.*ask the client"):
            list(itertools.islice(answers, 100))


class Uploads:
    """Mixed into a scripted server: groups whose interventions name a set that it does not have are refused."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.uploaded = 0
        self.answered = 0

    def upload_neuron_set(self, request, context):
        self.uploaded += 1
        response = super().upload_neuron_set(request, context)
        self.kept[response.name] = request.neurons.bits
        return response

    def lost(self, analysis) -> bool:
        return any(
            intervention.selection.uploaded not in self.kept
            for variant in analysis.variants
            for intervention in variant.interventions
        )

    def analyze_group(self, request, context):
        if self.lost(request.analysis):
            context.abort(grpc.StatusCode.NOT_FOUND, "no such set")
        return super().analyze_group(request, context)

    def generate(self, request, context):
        if any(one.selection.uploaded not in self.kept for one in request.interventions):
            context.abort(grpc.StatusCode.NOT_FOUND, "no such set")
        yield from super().generate(request, context)

    def analyze_groups(self, request_iterator, context):
        analysis = None
        for request in request_iterator:
            analysis = request.analysis if request.HasField("analysis") else analysis
            self.answered += 1
            if self.answered == 10:
                self.kept.clear()
            yield failure(request, grpc.StatusCode.NOT_FOUND) if self.lost(analysis) else self.answer(request)


@pytest.fixture
def uploads(serve, scripted):
    class Server(Uploads, scripted):
        pass

    server = Server()
    with ng.connect(serve(server), on_retry=quiet) as client:
        yield server, client.model()


def test_an_uploaded_set_is_sent_by_its_name(uploads) -> None:
    server, model = uploads
    neurons = model.neuron_set([(0, 1), (1, 4)])
    kept = model.upload(neurons)
    assert kept == ng.Uploaded(f"set-{neurons.bits.hex()}", neurons)
    assert model.analyze(group(1), variants={"v": ng.deactivate(kept)}).group_id == "1"
    assert server.uploaded == 1


def test_a_set_that_the_server_lost_is_uploaded_again(uploads) -> None:
    server, model = uploads
    kept = model.upload(model.neuron_set([(0, 1)]))
    server.kept.clear()
    assert model.analyze(group(1), variants={"v": ng.deactivate(kept)}).group_id == "1"
    assert server.uploaded == 2
    server.kept.clear()
    assert [token.text for token in model.generate("x", ng.deactivate(kept))] == [" Pa", "", "ris"]
    assert server.uploaded == 3


def test_a_set_that_is_lost_in_the_middle_of_a_stream(uploads) -> None:
    server, model = uploads
    kept = model.upload(model.neuron_set([(0, 1)]))
    answers = list(model.analyze_many((group(n) for n in range(30)), variants={"v": ng.deactivate(kept)}))
    assert Counter(answer.group_id for answer in answers) == Counter(map(str, range(30)))
    assert all(isinstance(answer, ng.GroupResult) for answer in answers)
    assert server.uploaded == 2


def test_a_model_that_is_gone_ends_it_all(serve, scripted) -> None:
    class Gone(scripted):
        def answer(self, request):
            return failure(request, grpc.StatusCode.NOT_FOUND)

    with ng.connect(serve(Gone())) as client:
        model = client.model()
        with pytest.raises(ng.NotFoundError, match="not now"):
            list(model.analyze_many(group(n) for n in itertools.count()))
        lost = ng.Uploaded("set", model.neuron_set([(0, 0)]))
        with pytest.raises(ng.NotFoundError, match="not now"):
            list(model.analyze_many((group(n) for n in itertools.count()), variants={"v": ng.add(lost, 1)}))


def test_a_group_that_takes_too_long_fails_alone(serve, scripted) -> None:
    done = threading.Event()

    class Waits(scripted):
        def analyze_groups(self, request_iterator, context):
            for request in request_iterator:
                if request.group.id in ("2", "4"):
                    continue
                yield self.answer(request)
            done.wait(10)

    with ng.connect(serve(Waits())) as client:
        started = time.monotonic()
        answers = list(client.model().analyze_many((group(n) for n in range(8)), group_timeout=0.4))
        assert time.monotonic() - started < 3
    done.set()
    assert Counter(answer.group_id for answer in answers) == Counter(map(str, range(8)))
    late = {answer.group_id: answer.error for answer in answers if isinstance(answer, ng.GroupFailure)}
    assert set(late) == {"2", "4"}
    assert all(isinstance(error, ng.DeadlineError) for error in late.values())
    assert "group '2' had no answer within the 0.4 s that a group has" in str(late["2"])


def test_groups_that_take_too_long_do_not_take_all_places(serve, scripted) -> None:
    done, streams = threading.Event(), []

    class Waits(scripted):
        def analyze_groups(self, request_iterator, context):
            streams.append(None)
            context.add_callback(done.set) if len(streams) == 3 else None
            for request in request_iterator:
                if int(request.group.id) >= 6:
                    yield self.answer(request)

    with ng.connect(serve(Waits())) as client:
        answers = list(client.model().analyze_many((group(n) for n in range(9)), in_flight=2, group_timeout=0.2))
    assert Counter(answer.group_id for answer in answers) == Counter(map(str, range(9)))
    assert {answer.group_id for answer in answers if isinstance(answer, ng.GroupResult)} == {"6", "7", "8"}
    assert len(streams) == 4


def test_an_answer_that_comes_too_late_is_not_a_second_one(serve, scripted) -> None:
    class Slow(scripted):
        def analyze_groups(self, request_iterator, context):
            first = next(request_iterator)
            for number, request in enumerate(request_iterator):
                time.sleep(0.1)
                yield self.answer(request)
                if number == 3:
                    yield self.answer(first)

    with ng.connect(serve(Slow())) as client:
        answers = list(client.model().analyze_many((group(n) for n in range(7)), in_flight=2, group_timeout=0.25))
    assert Counter(answer.group_id for answer in answers) == Counter(map(str, range(7)))
    assert {answer.group_id for answer in answers if isinstance(answer, ng.GroupFailure)} == {"0"}


def test_a_timeout_holds_over_all_streams(serve, scripted) -> None:
    class Breaks(scripted):
        def analyze_groups(self, request_iterator, context):
            next(request_iterator)
            context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

    with ng.connect(serve(Breaks()), on_retry=quiet) as client:
        started = time.monotonic()
        with pytest.raises((ng.DeadlineError, ng.UnavailableError)):
            list(client.model().analyze_many([group()], timeout=0.5))
        assert 0.3 < time.monotonic() - started < 3


ASKS = """
import itertools, sys
import neuroglot as ng
client = ng.connect(sys.argv[1], on_retry=lambda *_: print("pausing", flush=True))
for answer in client.model().analyze_many(ng.Group({"en": "Hello"}) for _ in itertools.count()):
    print("answered", flush=True)
"""


def test_ctrl_c_ends_a_pause_at_once(serve, scripted) -> None:
    class Full(scripted):
        def analyze_groups(self, request_iterator, context):
            yield self.answer(next(request_iterator))
            status = status_pb2.Status()
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=60)))
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    command = [sys.executable, "-c", ASKS, serve(Full())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        assert [asking.stdout.readline(), asking.stdout.readline()] == ["answered\n", "pausing\n"]
        started = time.monotonic()
        asking.send_signal(signal.SIGINT)
        _, said = asking.communicate(timeout=20)
        assert time.monotonic() - started < 5
    assert said.endswith("KeyboardInterrupt\n")
