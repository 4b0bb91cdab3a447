"""What is kept for requests to come: results of steps, in a bounded space."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from weakref import WeakValueDictionary

from neuroglot_server.engine.steps import StepResult

_SHARE_OF_USED = 0.8
"""How much of the space may be held by results that were used again."""

_OVERHEAD_BYTES = 1024
"""What keeping a result takes beside its arrays."""


class Cache:
    """Keeps results by key, up to so many bytes, the least used ones being dropped first.

    A result is on trial until it is used again, and what is on trial is dropped first. So prompts that are seen once
    (most of a bulk analysis) drive each other out, and not what many requests share. What is dropped is found for as
    long as a request still holds it: it takes up no more space then, and would if it were computed again.
    """

    def __init__(self, most_bytes: int) -> None:
        """Keep up to so many bytes."""
        self.most_bytes = most_bytes
        self._trial = _Segment()
        self._used = _Segment()
        self._dropped: WeakValueDictionary[Hashable, StepResult] = WeakValueDictionary()

    @property
    def nbytes(self) -> int:
        """What everything that is kept takes up."""
        return self._trial.nbytes + self._used.nbytes

    def __contains__(self, key: Hashable) -> bool:
        """Whether something is kept under a key, which counts as no use of it."""
        return key in self._trial or key in self._used or key in self._dropped

    def get(self, key: Hashable) -> StepResult | None:
        """What is kept under a key, and keep it longer."""
        result = self._used.pop(key) or self._trial.pop(key) or self._dropped.get(key)
        if result is not None and (size := _size(result)) <= self.most_bytes:
            self._used.add(key, result, size)
            while self._used.nbytes > _SHARE_OF_USED * self.most_bytes and len(self._used) > 1:
                self._trial.add(*self._used.pop_oldest())
            self._drop()
        return result

    def put(self, key: Hashable, result: StepResult) -> None:
        """Keep a result, unless it is larger than all the space there is."""
        if not self.most_bytes:
            return
        self._used.pop(key)
        self._trial.pop(key)
        size = _size(result)
        if size <= self.most_bytes:
            self._trial.add(key, result, size)
            self._drop()
        else:
            self._dropped[key] = result

    def _drop(self) -> None:
        """Let go of the least used until there is room."""
        while self.nbytes > self.most_bytes:
            key, result, _ = (self._trial if len(self._trial) else self._used).pop_oldest()
            self._dropped[key] = result


class _Segment:
    """Results in the order of their last use."""

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
