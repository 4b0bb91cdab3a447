"""Soak test: mixed load for minutes, on an embedded model and one of real size; and what the server held.

    make soak                three minutes, writes docs/soak.md and .json
    make soak MINUTES=30     the whole

Streams, single requests, deadlines that pass, streams that are left, clients that are killed, and hostile clients run
side by side. Every stream counts its answers: none may be lost or come twice. One answer in a hundred, chosen by a hash
of its request, is asked again alone on a server without caches, and must be the same. At the end nothing may be held,
and memory may not have grown.
"""

from __future__ import annotations

import argparse
import random
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

import neuroglot as ng
from neuroglot.tasks import capital_prompts as capitals
from neuroglot_exporter import export
from tests.benchmarks.serving import hostile
from tests.benchmarks.serving.bundle import bundle as bundle_of_real_size
from tests.benchmarks.serving.measures import Measure
from tests.benchmarks.serving.prompts import Prompter
from tests.benchmarks.serving.replay import Differences, Sample, Served, replay
from tests.benchmarks.serving.servers import Server, serving
from tests.benchmarks.serving.tables import write

GROWTH = 1.03
"""Most that memory may grow from the second third of the time to the last; batches of the large model alone move it."""
EMBEDDED = "bloom"
_HELD = re.compile(r"(neuroglot_(?:transport_held_bytes|queue_depth_tokens|memory_bytes{.*part=\"queue\".*})\S*) (\S+)")
"""Gauges of what requests hold, which is nothing once there are none."""
CALM_SECONDS = 10.0
"""How long what the last clients left behind may take to be given up."""

KILLED = """
import itertools, sys
import neuroglot as ng
model = ng.connect(sys.argv[1]).model(sys.argv[2])
groups = (ng.Group({"en": f"Number {n} is", "es": f"El número {n} es"}, id=str(n)) for n in itertools.count())
for answer in model.analyze_many(groups, variants={"w/o": ng.deactivate(ng.ALL_SHARED)}):
    print(answer.group_id, flush=True)
"""


class Load:
    """What the clients do, and what they saw."""

    def __init__(self, address: str, large: Path) -> None:
        """Prepare for a server that serves the embedded model and one of real size.

        Args:
            address: the server's.
            large: the bundle of real size, which is served under its folder's name.
        """
        self.address = address
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.sample = Sample()
        self.health_seconds: list[float] = []
        self.stopping = threading.Event()
        self._facts = list(capitals.groups())
        self._large = large.name
        self._prompts = Prompter(large).endless_facts()

    def run(self, seconds: float) -> None:
        """Let all clients work for a while."""
        kinds: Sequence[Callable[[random.Random], None]] = (
            self._stream, self._stream, self._single, self._large_stream, self._impatient, self._leaves, self._killed,
            self._garbage, self._hostile, self._silent, self._unfinished, self._healthy,
        )  # fmt: skip
        threads = [threading.Thread(target=self._until_stopped, args=(kind, seed)) for seed, kind in enumerate(kinds)]
        for thread in threads:
            thread.start()
        self.stopping.wait(seconds)
        self.stopping.set()
        for thread in threads:
            thread.join()

    def _until_stopped(self, work: Callable[[random.Random], None], seed: int) -> None:
        generator = random.Random(seed)
        while not self.stopping.is_set():
            try:
                work(generator)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what this program is there to find
                self.wrong.append(f"{work.__name__}: {error!r}")

    def _groups(self, generator: random.Random, count: int) -> Iterator[ng.Group]:
        for index in range(count):
            group = generator.choice(self._facts)
            noise = generator.randrange(10**6)  # or the server would know every prompt after a minute
            prompts = {label: f"{noise} {text}" for label, text in group.prompts.items()}
            yield ng.Group(prompts, answers=group.answers, id=str(index))

    def _variants(self, generator: random.Random) -> dict[str, ng.Intervention]:
        kind = generator.choice([ng.ALL_SHARED, ng.PARTIAL_SHARED, ng.SPECIFIC])
        return {"w/o": ng.deactivate(kind), "control": ng.deactivate(ng.control(kind, seed=generator.randrange(9)))}

    def _stream(self, generator: random.Random) -> None:
        """A bulk analysis, counted."""
        self._counted(EMBEDDED, list(self._groups(generator, generator.randrange(20, 80))), self._variants(generator))

    def _large_stream(self, generator: random.Random) -> None:
        """The same of the model of real size, a few groups at a time."""
        groups = [next(self._prompts) for _ in range(4)]
        self._counted(self._large, groups, self._variants(generator))

    def _counted(self, model: str, groups: Sequence[ng.Group], variants: Mapping[str, ng.Intervention]) -> None:
        asked = {group.id: group for group in groups}
        found: Counter[str] = Counter()
        with ng.connect(self.address) as client:
            for answer in client.model(model).analyze_many(groups, variants=variants, contribution=True, active=True):
                if isinstance(answer, ng.GroupFailure):
                    self.wrong.append(f"a group of a stream failed: {answer.error!r}")
                    continue
                found[answer.group_id] += 1
                self.sample.offer(Served(model, asked[answer.group_id], variants, answer))
        if found != Counter(asked.keys()):
            self.wrong.append(f"a stream of {len(asked)} groups got {found.total()} answers to {len(found)} of them")
        self.seen[f"groups of streams of {model}"] += len(asked)

    def _single(self, generator: random.Random) -> None:
        with ng.connect(self.address) as client:
            for group in self._groups(generator, 10):
                variants = self._variants(generator)
                answer = client.model(EMBEDDED).analyze(group, variants=variants)
                self.sample.offer(Served(EMBEDDED, group, variants, answer))
                self.seen["single requests"] += 1

    def _impatient(self, generator: random.Random) -> None:
        """Deadlines that pass in the queue or in the middle of a run."""
        with ng.connect(self.address) as client:
            model = client.model(generator.choice([EMBEDDED, self._large]))
            for group in self._groups(generator, 10):
                try:
                    model.analyze(group, variants=self._variants(generator), timeout=generator.random() / 20)
                except ng.DeadlineError:
                    self.seen["deadlines that passed"] += 1
                except ng.OverloadedError:  # to come again later than its deadline
                    self.seen["calls refused"] += 1

    def _leaves(self, generator: random.Random) -> None:
        """A stream that is closed in the middle."""
        with ng.connect(self.address) as client:
            answers = client.model(EMBEDDED).analyze_many(
                self._groups(generator, 200), variants=self._variants(generator)
            )
            for _ in range(generator.randrange(5)):
                next(answers)
            answers.close()
        self.seen["streams that were left"] += 1

    def _killed(self, generator: random.Random) -> None:
        """A client that is killed in the middle of its stream."""
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, self.address, EMBEDDED], stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout is not None
            for _, _ in zip(range(generator.randrange(1, 20)), client.stdout, strict=False):
                pass
            client.kill()
        self.seen["clients killed"] += 1

    def _garbage(self, generator: random.Random) -> None:
        """Bytes that are no HTTP/2, and messages that are no requests."""
        host, port = self.address.split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(generator.randbytes(generator.randrange(1, 2000)))
        with grpc.insecure_channel(self.address) as channel:
            method = channel.unary_unary("/neuroglot.v1.NeuroglotService/AnalyzeGroup")
            try:
                method(generator.randbytes(generator.randrange(1, 200)), timeout=5)
            except grpc.RpcError as error:
                if error.code() not in hostile.REFUSALS:
                    raise
        self.seen["garbage"] += 1
        self.stopping.wait(0.2)

    def _hostile(self, generator: random.Random) -> None:
        """Requests that cost much: each is answered or refused, never a fault of the server's own."""
        with grpc.insecure_channel(self.address) as channel:
            for request in hostile.requests(generator.choice([EMBEDDED, self._large])):
                code = hostile.send(channel, request)
                if code not in hostile.REFUSALS | {grpc.StatusCode.OK}:
                    self.wrong.append(f"hostile request ({request.name}) ended as {code.name}")
                self.seen["hostile requests"] += 1
                if self.stopping.wait(0.3):
                    return

    def _silent(self, generator: random.Random) -> None:
        """Calls that send nothing."""
        calls = generator.randrange(50, 300)
        with hostile.silent_calls(self.address, calls):
            self.seen["silent calls"] += calls
            self.stopping.wait(generator.uniform(1, 15))

    def _unfinished(self, generator: random.Random) -> None:
        """Messages that never end."""
        with ExitStack() as opened:
            for _ in range(generator.randrange(1, 24)):
                opened.enter_context(hostile.unfinished_message(self.address, 3 * 2**20, 2 * 2**20))
                self.seen["unfinished messages"] += 1
            self.stopping.wait(generator.uniform(1, 15))

    def _healthy(self, _: random.Random) -> None:
        """A health check, as a load balancer makes them."""
        with grpc.insecure_channel(self.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            while not self.stopping.wait(0.05):
                start = time.perf_counter()
                answer = check(health_pb2.HealthCheckRequest(), timeout=30)
                self.health_seconds.append(time.perf_counter() - start)
                if answer.status != health_pb2.HealthCheckResponse.SERVING:
                    self.wrong.append(f"health said {answer.status}")


def watch(server: Server, stopping: threading.Event) -> list[int]:
    """Resident bytes of a server and the processes that it started, once a second."""
    found = []
    while not stopping.wait(1):
        processes = [server.process, *server.process.children(recursive=True)]
        found.append(sum(_resident_bytes(process) for process in processes))
    return found


def _resident_bytes(process: psutil.Process) -> int:
    try:
        resident: int = process.memory_info().rss
    except psutil.NoSuchProcess:  # it has just ended
        return 0
    return resident


def gauges_above_zero(metrics_address: str) -> dict[str, float]:
    """Gauges of what is held, queued or running that are not 0 although no client is left; waits for them a while."""
    end = time.monotonic() + CALM_SECONDS
    while True:
        with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        values = [_HELD.fullmatch(line) for line in lines]
        found = {one[1]: float(one[2]) for one in values if one and float(one[2])}
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.2)


def soak(minutes: float, large: Path) -> tuple[list[Measure], list[str]]:
    """Run the load against a server of its own: what is measured, and what went wrong."""
    with TemporaryDirectory() as folder:
        bundle = Path(folder) / EMBEDDED
        export(f"embedded:{EMBEDDED}", bundle)
        metrics = f"127.0.0.1:{_free_port()}"
        options = (str(large), "--cache-bytes", str(32 * 2**20), "--metrics-address", metrics)
        with serving(bundle, *options) as server:
            load = Load(server.address, large)
            watched: list[int] = []
            watching = threading.Thread(target=lambda: watched.extend(watch(server, load.stopping)))
            watching.start()
            load.run(60 * minutes)
            watching.join()
            held = gauges_above_zero(metrics)
            with ng.connect(server.address) as client:  # after all that, it answers
                client.model(EMBEDDED).analyze(next(capitals.groups()))
        with serving(bundle, str(large), "--cache-bytes", "0") as server, ng.connect(server.address) as client:
            replayed = {model: replay(client, load.sample.of(model)) for model in (EMBEDDED, large.name)}
    return list(_measures(minutes, load, watched, held, replayed)), load.wrong


def _measures(
    minutes: float, load: Load, watched: Sequence[int], held: Mapping[str, float], replayed: Mapping[str, Differences]
) -> Iterator[Measure]:
    third = len(watched) // 3
    middle, last = (statistics.median(watched[part]) for part in (slice(third, 2 * third), slice(-third, None)))
    health = sorted(load.health_seconds)
    about = {"minutes": minutes, "seen": dict(load.seen), "health_p99_ms": 1000 * health[len(health) * 99 // 100]}
    memory = {"second_third_bytes": middle, "last_third_bytes": last, "resident_bytes_by_half_minute": watched[::30]}
    run = f"in {minutes:g} minutes of mixed load"
    yield Measure(
        f"answers that were lost, came twice or were wrong {run}", len(load.wrong), "answers", 0, "most", about
    )
    details = {model: asdict(differences) for model, differences in replayed.items()}
    yield Measure(
        f"types that differ when 1 % of the answers {run} are asked for again alone",
        sum(differences.types for differences in replayed.values()),
        "types",
        0,
        "most",
        details,
    )
    yield Measure(
        "the same, largest difference in a log-probability",
        max(differences.log_probability for differences in replayed.values()),
        "nats",
        1e-4,
        "most",
    )
    yield Measure(
        f"gauges of what is held or queued that are not 0 after {run[3:]}", len(held), "gauges", 0, "most", dict(held)
    )
    yield Measure(
        f"growth in memory from the second third of {minutes:g} minutes to the last",
        last / middle,
        "x",
        GROWTH,
        "most",
        memory,
    )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def main() -> None:
    """Run, print, write; the exit code is 1 if anything was lost, came twice, differs or grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=Path("build/bench/soak.md"), help="where the table goes")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("build/bench/bundles"), help="where the bundle is kept")
    parser.add_argument("--small", action="store_true", help="a small bundle in its place, to try the program itself")
    arguments = parser.parse_args()
    arguments.table.parent.mkdir(parents=True, exist_ok=True)
    large = bundle_of_real_size(arguments.out, small=arguments.small)
    measures, wrong = soak(arguments.minutes, large)
    write(arguments.table, "Soak test", "make soak", f"an embedded one, and {large.name} beside it", measures)
    print(", ".join(f"{times} {what}" for what, times in measures[0].details["seen"].items()))
    print(f"health checks: {measures[0].details['health_p99_ms']:.0f} ms at the 99th percentile")
    for one in measures:
        print(one)
    for line, times in Counter(wrong).most_common(20):
        print(f"wrong, {times} x: {line}")
    if not all(one.met for one in measures):
        sys.exit(1)


if __name__ == "__main__":
    main()
