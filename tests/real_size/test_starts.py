"""Every start gives the same answers: at once, after some seconds, and after load."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import neuroglot as ng
from tests.benchmarks.serving.prompts import Prompter
from tests.benchmarks.serving.servers import model_of, serving
from tests.real_size.conftest import MemoryTable
from tests.real_size.questions import TOLERANCE, TOLERANCE_TO_PLAIN, Answer, ask, difference, plain_answer

pytestmark = [pytest.mark.real_size, pytest.mark.timeout(1200)]

STARTS = 10
LENGTHS = [9, 12, 7, 15, 11]


def test_answers_of_ten_starts_are_equal(real_bundle: Path, memory: MemoryTable) -> None:
    prompter = Prompter(real_bundle)
    group = prompter.group("compared", LENGTHS)
    load = prompter.facts(12)
    expected = plain_answer(real_bundle, group)
    assert_interventions_matter(expected)
    first: Answer | None = None
    for start in range(1, STARTS + 1):
        # Without a cache every answer is computed.
        with serving(real_bundle, "--cache-bytes", "0") as server, model_of(server) as model:
            answers = {"at once": ask(model, group)}
            memory.record(f"start {start}, after {server.ready_seconds:.1f} s, first answer", server.process)
            time.sleep(3)
            answers["after 3 s"] = ask(model, group)
            assert all(isinstance(one, ng.GroupResult) for one in model.analyze_many(load, predict=False))
            answers["after load"] = ask(model, group)
            memory.record(f"start {start}, after load", server.process)
        first = first or answers["at once"]
        assert {when: difference(answer, first) for when, answer in answers.items()} == dict.fromkeys(answers, "")
    assert first is not None
    np.testing.assert_array_equal(first.types, expected.types)
    assert first.log_probabilities == pytest.approx(expected.log_probabilities, abs=TOLERANCE_TO_PLAIN)


def assert_interventions_matter(answer: Answer) -> None:
    """Or a server that ignored them would give the same answers."""
    found = answer.log_probabilities
    moved = [abs(found["w/o all-shared", label] - found["baseline", label]) for _, label in found]
    assert min(moved) > 100 * TOLERANCE
    assert len(np.unique(answer.types)) == 4
