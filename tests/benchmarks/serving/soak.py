"""Mixed load for minutes: streams, single requests, cancellations, clients that break; and what the server held.

    make soak                three minutes, writes docs/soak.md and .json
    make soak MINUTES=30     the whole

Every stream counts its answers: none may be lost or come twice. Memory after the first third of the time may not grow.
"""

from __future__ import annotations

import argparse
import random
import socket
import statistics
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc

import neuroglot as ng
from neuroglot.tasks import capital_prompts as capitals
from neuroglot_exporter import export
from tests.benchmarks.serving.measures import Measure
from tests.benchmarks.serving.servers import Server, serving
from tests.benchmarks.serving.tables import write

GROWTH_MIB = 24.0
"""Most that memory may grow between the second and the last third of the time."""

KILLED = """
import itertools, sys
import neuroglot as ng
model = ng.connect(sys.argv[1]).model()
groups = (ng.Group({"en": f"Number {n} is", "es": f"El número {n} es"}, id=str(n)) for n in itertools.count())
for answer in model.analyze_many(groups, variants={"w/o": ng.deactivate(ng.ALL_SHARED)}):
    print(answer.group_id, flush=True)
"""


class Load:
    """What the clients do, and what they saw."""

    def __init__(self, address: str) -> None:
        """Prepare for a server."""
        self.address = address
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stopping = threading.Event()
        self._facts = list(capitals.groups())

    def run(self, seconds: float) -> None:
        """Let all clients work for a while."""
        kinds: Sequence[Callable[[random.Random], None]] = (
            self._stream, self._stream, self._single, self._impatient, self._leaves, self._killed, self._garbage
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

    def _groups(self, generator: random.Random, many: int) -> Iterator[ng.Group]:
        for place in range(many):
            group = generator.choice(self._facts)
            noise = generator.randrange(10**6)  # or the server would know every prompt after a minute
            prompts = {label: f"{noise} {text}" for label, text in group.prompts.items()}
            yield ng.Group(prompts, answers=group.answers, id=str(place))

    def _variants(self, generator: random.Random) -> dict[str, ng.Intervention]:
        kind = generator.choice([ng.ALL_SHARED, ng.PARTIAL_SHARED, ng.SPECIFIC])
        return {"w/o": ng.deactivate(kind), "control": ng.deactivate(ng.control(kind, seed=generator.randrange(9)))}

    def _stream(self, generator: random.Random) -> None:
        """A bulk analysis, counted."""
        many = generator.randrange(20, 80)
        with ng.connect(self.address) as client:
            answers = client.model().analyze_many(
                self._groups(generator, many), variants=self._variants(generator), contribution=True, active=True
            )
            found = Counter(answer.group_id for answer in answers if isinstance(answer, ng.GroupResult))
        if found != Counter(map(str, range(many))):
            self.wrong.append(f"a stream of {many} groups got {sum(found.values())} answers to {len(found)} of them")
        self.seen["groups of streams"] += many

    def _single(self, generator: random.Random) -> None:
        with ng.connect(self.address) as client:
            for group in self._groups(generator, 10):
                client.model().analyze(group, variants=self._variants(generator))
                self.seen["single requests"] += 1

    def _impatient(self, generator: random.Random) -> None:
        """Deadlines that pass in the queue or in the middle of a run."""
        with ng.connect(self.address) as client:
            for group in self._groups(generator, 10):
                try:
                    client.model().analyze(group, variants=self._variants(generator), timeout=generator.random() / 20)
                except ng.DeadlineError:
                    self.seen["deadlines that passed"] += 1

    def _leaves(self, generator: random.Random) -> None:
        """A stream that is closed in the middle."""
        with ng.connect(self.address) as client:
            answers = client.model().analyze_many(self._groups(generator, 200), variants=self._variants(generator))
            for _ in range(generator.randrange(5)):
                next(answers)
            answers.close()
        self.seen["streams that were left"] += 1

    def _killed(self, generator: random.Random) -> None:
        """A client that is killed in the middle of its stream."""
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, self.address], stdout=subprocess.PIPE, text=True
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
                if error.code() not in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
                    raise
        self.seen["garbage"] += 1
        self.stopping.wait(0.2)


def watch(server: Server, stopping: threading.Event) -> list[int]:
    """Resident bytes, once a second."""
    found = []
    while not stopping.wait(1):
        found.append(server.process.memory_info().rss)
    return found


def soak(minutes: float) -> tuple[list[Measure], list[str]]:
    """Run the load against a server of its own: what is measured, and what went wrong."""
    with TemporaryDirectory() as folder:
        bundle = Path(folder) / "bloom"
        export("embedded:bloom", bundle)
        with serving(bundle, "--cache-bytes", str(32 * 2**20)) as server:
            load = Load(server.address)
            watched: list[int] = []
            watching = threading.Thread(target=lambda: watched.extend(watch(server, load.stopping)))
            watching.start()
            load.run(60 * minutes)
            watching.join()
            with ng.connect(server.address) as client:  # after all that, it answers
                client.model().analyze(next(capitals.groups()))
    third = len(watched) // 3
    middle, last = (statistics.median(watched[part]) for part in (slice(third, 2 * third), slice(-third, None)))
    about = {"minutes": minutes, "seen": dict(load.seen)}
    memory = {"second_third_bytes": middle, "last_third_bytes": last, "resident_bytes_by_half_minute": watched[::30]}
    measures = [
        Measure(
            f"answers that were lost, came twice or were wrong in {minutes:g} minutes of mixed load",
            len(load.wrong),
            "answers",
            0,
            "most",
            about,
        ),
        Measure(
            f"growth in memory from the second third of {minutes:g} minutes to the last",
            (last - middle) / 2**20,
            "MiB",
            GROWTH_MIB,
            "most",
            memory,
        ),
    ]
    return measures, load.wrong


def main() -> None:
    """Run, print, write; the exit code is 1 if anything was lost, came twice or grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=Path("build/bench/soak.md"), help="where the table goes")
    parser.add_argument("--minutes", type=float, default=3.0)
    arguments = parser.parse_args()
    arguments.table.parent.mkdir(parents=True, exist_ok=True)
    measures, wrong = soak(arguments.minutes)
    write(arguments.table, "What a server stands", "make soak", "an embedded one", measures)
    print(", ".join(f"{times} {what}" for what, times in measures[0].details["seen"].items()))
    for one in measures:
        print(one)
    for line, times in Counter(wrong).most_common(20):
        print(f"wrong, {times} x: {line}")
    if not all(one.met for one in measures):
        sys.exit(1)


if __name__ == "__main__":
    main()
