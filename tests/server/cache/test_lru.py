"""The LRU cache stays within its capacity, and evicts results seen once before results used again."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neuroglot_server.cache.lru import Cache
from neuroglot_server.engine.steps import StepResult

KILOBYTE = 1024


def result(kilobytes: int) -> StepResult:
    activations = np.zeros((1, kilobytes * KILOBYTE // 4), dtype=np.float32)
    return StepResult(True, activations=activations, coefficients=activations)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40), st.booleans()), max_size=60))
def test_the_capacity_is_never_exceeded_and_hits_return_what_was_put(operations: list[tuple[int, int, bool]]) -> None:
    cache = Cache(32 * KILOBYTE)
    last: dict[int, StepResult] = {}
    for key, size, looks in operations:
        if looks:
            assert cache.get(key) in (None, last.get(key))
        else:
            last[key] = result(size)
            cache.put(key, last[key])
        assert 0 <= cache.nbytes <= 32 * KILOBYTE


def test_results_used_again_survive_a_scan_of_results_seen_once() -> None:
    cache = Cache(64 * KILOBYTE)
    cache.put("template", result(8))
    assert cache.get("template") is not None
    for number in range(1000):
        cache.put(number, result(8))
    assert cache.get("template") is not None
    assert cache.get(0) is None
    assert cache.get(999) is not None


def test_results_not_used_recently_are_evicted_in_the_end() -> None:
    cache = Cache(64 * KILOBYTE)
    for number in range(50):
        cache.put(number, result(8))
        cache.get(number)
    assert cache.get(0) is None
    assert cache.get(49) is not None


def test_results_without_arrays_count_towards_the_capacity() -> None:
    cache = Cache(16 * KILOBYTE)
    for number in range(1000):
        cache.put(number, StepResult(finite=False))
    assert sum(cache.get(number) is not None for number in range(1000)) < 20


def test_evicted_results_are_found_while_referenced() -> None:
    cache = Cache(16 * KILOBYTE)
    held = {"small": result(8), "larger than all the space": result(40)}
    for key in held:
        cache.put(key, held[key])
    for number in range(10):
        cache.put(number, result(8))
    assert all(key in cache for key in held)
    assert cache.get("larger than all the space") is held["larger than all the space"]
    assert cache.nbytes <= 16 * KILOBYTE
    held.clear()
    assert not any(cache.get(key) for key in ("small", "larger than all the space"))


def test_a_hit_on_an_evicted_result_caches_it_again() -> None:
    cache = Cache(16 * KILOBYTE)
    held = result(8)
    cache.put("key", held)
    for number in range(10):
        cache.put(number, result(8))
    assert cache.get("key") is held
    del held
    for number in range(10):
        cache.put(number, result(8))
    assert "key" in cache


def test_nothing_is_cached_at_capacity_0() -> None:
    cache = Cache(0)
    cache.put("key", result(0))
    assert cache.get("key") is None
