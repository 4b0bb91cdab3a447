"""An LRU cache of step results, bounded in bytes, that resists scans."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from weakref import WeakValueDictionary

from neuroglot_server.engine.steps import StepResult

_USED_FRACTION = 0.8
"""Fraction of the capacity available to results that were used again."""

_OVERHEAD_BYTES = 1024
"""Memory that an entry takes beside its arrays."""


class Cache:
    """A segmented LRU cache of at most `max_bytes` bytes.

    A result starts in the trial segment and moves to the used segment on its first hit; results on trial are evicted
    first. So prompts that are seen once (most of a bulk analysis) evict each other, not results that many requests
    share. An evicted result can still be found while a request holds a reference to it: that takes no extra memory,
    computing it again would.
    """

    def __init__(self, max_bytes: int) -> None:
        """Create an empty cache; a capacity of 0 caches nothing."""
        self.max_bytes = max_bytes
        self._trial = _Segment()
        self._used = _Segment()
        self._evicted: WeakValueDictionary[Hashable, StepResult] = WeakValueDictionary()

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self._trial.nbytes + self._used.nbytes

    def __contains__(self, key: Hashable) -> bool:
        """Whether a key is cached; does not count as a use."""
        return key in self._trial or key in self._used or key in self._evicted

    def get(self, key: Hashable) -> StepResult | None:
        """Return the result of a key and mark it as used; None on a miss."""
        result = self._used.pop(key) or self._trial.pop(key) or self._evicted.get(key)
        if result is not None and (size := _size(result)) <= self.max_bytes:
            self._used.add(key, result, size)
            while self._used.nbytes > _USED_FRACTION * self.max_bytes and len(self._used) > 1:
                self._trial.add(*self._used.pop_oldest())
            self._evict()
        return result

    def put(self, key: Hashable, result: StepResult) -> None:
        """Add a result, unless it is larger than the whole capacity."""
        if not self.max_bytes:
            return
        self._used.pop(key)
        self._trial.pop(key)
        size = _size(result)
        if size <= self.max_bytes:
            self._trial.add(key, result, size)
            self._evict()
        else:
            self._evicted[key] = result

    def _evict(self) -> None:
        """Evict the least recently used results until the rest fits."""
        while self.nbytes > self.max_bytes:
            key, result, _ = (self._trial if len(self._trial) else self._used).pop_oldest()
            self._evicted[key] = result


class _Segment:
    """Results in the order of their last use, the oldest first."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._results: OrderedDict[Hashable, tuple[StepResult, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._results)

    def add(self, key: Hashable, result: StepResult, size: int) -> None:
        self._results[key] = result, size
        self.nbytes += size

    def __contains__(self, key: Hashable) -> bool:
        return key in self._results

    def pop(self, key: Hashable) -> StepResult | None:
        if key not in self._results:
            return None
        result, size = self._results.pop(key)
        self.nbytes -= size
        return result

    def pop_oldest(self) -> tuple[Hashable, StepResult, int]:
        key, (result, size) = self._results.popitem(last=False)
        self.nbytes -= size
        return key, result, size


def _size(result: StepResult) -> int:
    return result.nbytes + _OVERHEAD_BYTES
