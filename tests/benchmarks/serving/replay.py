"""A hashed sample of what was served in batches, asked again alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

import neuroglot as ng


@dataclass(frozen=True)
class Served:
    """A request that was answered under load, and its answer.

    Attributes:
        model: name of the model.
        group: what was asked.
        variants: the interventions, by name.
        result: the answer.
    """

    model: str
    group: ng.Group
    variants: Mapping[str, ng.Intervention]
    result: ng.GroupResult


@dataclass(frozen=True)
class Differences:
    """How answers under load differ from the same requests asked alone.

    Attributes:
        groups: number of groups compared.
        neurons: number of types compared.
        types: number of types that differ.
        log_probability: largest difference of a gold log-probability, in nats.
    """

    groups: int
    neurons: int
    types: int
    log_probability: float


class Sample:
    """Keeps every n-th answer by a hash of its request, so that no moment of a run is preferred. Thread-safe."""

    def __init__(self, one_in: int = 100) -> None:
        """Keep about one answer in so many."""
        self._one_in = one_in
        self._kept: list[Served] = []
        self._lock = threading.Lock()

    def offer(self, served: Served) -> None:
        """Keep an answer if its request's hash says so."""
        digest = hashlib.sha256(repr([served.model, sorted(served.group.prompts.items())]).encode()).digest()
        if int.from_bytes(digest[:4], "little") % self._one_in == 0:
            with self._lock:
                self._kept.append(served)

    def of(self, model: str) -> list[Served]:
        """What was kept of a model's answers."""
        return [served for served in self._kept if served.model == model]


def replay(client: ng.Client, sample: list[Served]) -> Differences:
    """Ask each request again, one at a time, and compare; the client's server must have no other caller."""
    neurons = types = 0
    largest = 0.0
    for served in sample:
        alone = client.model(served.model).analyze(served.group, variants=served.variants)
        codes, others = served.result.types.codes(), alone.types.codes()
        neurons += codes.size
        types += int(np.count_nonzero(codes != others))
        largest = max([largest, *_log_probability_differences(served.result, alone)])
    return Differences(len(sample), neurons, types, largest)


def _log_probability_differences(one: ng.GroupResult, other: ng.GroupResult) -> Iterator[float]:
    for variant, rows in one.predictions.items():
        for label, prediction in rows.items():
            mine, theirs = prediction.gold_log_probability, other.predictions[variant][label].gold_log_probability
            if mine is not None and theirs is not None:
                yield abs(mine - theirs)
