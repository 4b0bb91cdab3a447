from __future__ import annotations

import pytest

from neuroglot_server.admission import Admission
from neuroglot_server.core import QueueFull


def test_no_more_is_admitted_than_may_wait() -> None:
    admission = Admission(100)
    with admission.admit(60):
        with (
            admission.admit(40),
            pytest.raises(QueueFull, match="100 tokens are waiting, this request has 1, and 100") as full,
        ):
            admission.admit(1).__enter__()
        assert 0.1 <= full.value.retry_after_seconds <= 60
        with admission.admit(40):
            pass


def test_a_request_that_fails_gives_its_place_back() -> None:
    admission = Admission(100)
    for _ in range(3):
        with pytest.raises(KeyError), admission.admit(100):
            raise KeyError


def test_a_request_larger_than_the_queue_is_admitted_when_it_is_alone() -> None:
    admission = Admission(100)
    with admission.admit(500), pytest.raises(QueueFull):
        admission.admit(1).__enter__()
    with admission.admit(1), pytest.raises(QueueFull):
        admission.admit(500).__enter__()
