"""Resumable streams of groups: a stream that breaks is replaced by a new one for the groups without a result.

Every question is either answered once or fails once. No more of them are held than may be in flight.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING

from neuroglot.connection.retries import Patience
from neuroglot.connection.statuses import from_group_error
from neuroglot.errors import (
    DeadlineError,
    NotFoundError,
    OverloadedError,
    ServerError,
    UnavailableError,
)
from neuroglot.results.results import GroupFailure, GroupResult, require_same_bundle
from neuroglot.v1 import analysis_pb2, group_pb2, model_pb2, service_pb2

if TYPE_CHECKING:
    from neuroglot.connection.connection import Connection


@dataclass
class Question:
    """A request for one group.

    Attributes:
        group: the group, with a unique id.
        analysis: options of the analysis; requests with the same options share the message.
        due: deadline on the monotonic clock; set when the request is first sent.
        patience: retry budget of this request; set at its first failure.
        restored: whether it is a retry after uploads were restored.
    """

    group: group_pb2.Group
    analysis: analysis_pb2.Analysis
    due: float = field(default=math.inf, init=False)
    patience: Patience | None = field(default=None, init=False)
    restored: bool = field(default=False, init=False)


@dataclass(frozen=True)
class Terms:
    """Settings of a call for many groups.

    Attributes:
        model: the model as of `Client.model`; results of another bundle are rejected.
        priority: priority of the groups.
        in_flight: maximum number of groups in flight.
        timeout: seconds for the whole call; None for no limit.
        group_timeout: seconds for each group from when it is first sent; None for no limit.
        restore: uploads neuron sets again that the server may have lost; None without uploaded sets.
    """

    model: model_pb2.Model
    priority: service_pb2.Priority.ValueType
    in_flight: int
    timeout: float | None
    group_timeout: float | None
    restore: Callable[[], None] | None


class Resuming:
    """Sends requests, over several streams if needed, until each has an outcome. For a single iteration."""

    def __init__(self, connection: Connection, terms: Terms, questions: Iterator[Question]) -> None:
        """Store the arguments. Nothing is consumed or sent before the first result is requested."""
        self._connection = connection
        self._terms = terms
        self._questions = questions
        self._patience = connection.patience(terms.timeout)
        self._unanswered: dict[str, Question] = {}  # sent, or to be sent again
        self._refused: dict[str, tuple[Question, ServerError]] = {}  # temporarily, to be retried
        self._late: set[str] = set()  # timed out, but still in flight on the open stream
        self._exhausted = False
        self._taking = False

    def answers(self) -> Generator[GroupResult | GroupFailure, None, None]:
        """Yield results and failures as they arrive.

        Raises:
            ModelChangedError: a result was made by another bundle than the model's.
            NotFoundError: the model was unloaded.
            ServerError: no stream could be opened until the time for retries was over.
        """
        while not (self._exhausted and not self._unanswered and not self._refused):
            broken = yield from self._one_stream()
            yield from self._overdue()
            if broken is not None:
                self._connection.pause(self._patience, broken)
            elif self._refused:
                yield from self._after_refusals()

    def _one_stream(self) -> Generator[GroupResult | GroupFailure, None, ServerError | None]:
        """Use one stream until no more can be sent on it; return the error if it broke."""
        self._late.clear()
        in_flight, timeout = self._terms.in_flight, self._patience.time_left
        stream = self._connection.exchange(self._requests(), in_flight, timeout, self._seconds_to_wait)
        with closing(stream) as responses:
            while not self._late or (len(self._late) < in_flight and not self._only_late_ones_are_left):
                try:
                    response = next(responses)
                except StopIteration:
                    return None
                except ServerError as error:
                    if self._taking:
                        raise  # the caller's iterator of groups raised it, not the stream
                    return error
                if response is not None and (answer := self._settled(response)):
                    yield answer
                yield from self._overdue()
        return None

    def _requests(self) -> Generator[service_pb2.AnalyzeGroupsRequest, None, None]:
        """Yield one message per request; fields that equal the previous message's are left out."""
        previous = None
        for question in self._to_ask():
            yield service_pb2.AnalyzeGroupsRequest(
                model=self._terms.model.name if previous is None else "",
                group=question.group,
                analysis=None if question.analysis is previous else question.analysis,
                priority=self._terms.priority,
            )
            previous = question.analysis

    def _to_ask(self) -> Generator[Question, None, None]:
        """Yield the requests left over from earlier streams, then new ones unless some are waiting for a retry."""
        for group_id in tuple(self._unanswered):
            if group_id in self._unanswered:  # it may have timed out meanwhile
                yield self._unanswered[group_id]
        while not self._refused:
            self._taking = True
            question = next(self._questions, None)
            self._taking = False
            if question is None:
                self._exhausted = True
                return
            if self._terms.group_timeout is not None:
                question.due = time.monotonic() + self._terms.group_timeout
            self._unanswered[question.group.id] = question
            yield question

    def _settled(self, response: service_pb2.AnalyzeGroupsResponse) -> GroupResult | GroupFailure | None:
        """Return the outcome of a response; None if its request will be retried, or has timed out."""
        question = self._unanswered.pop(response.group_id, None)
        if question is None:
            self._late.discard(response.group_id)
            return None
        if response.WhichOneof("outcome") == "result":
            require_same_bundle(response.result.provenance, self._terms.model)
            self._patience.calm()
            return GroupResult(response.result)
        error = from_group_error(response.error)
        if isinstance(error, NotFoundError):  # the model or an uploaded set is missing: not the group's fault
            if self._terms.restore is None or question.restored:
                raise error
            self._refused[response.group_id] = question, error
            return None
        if isinstance(error, UnavailableError | OverloadedError):
            self._refused[response.group_id] = question, error
            return None
        return GroupFailure(response.group_id, error)

    def _after_refusals(self) -> Generator[GroupFailure, None, None]:
        """Prepare retries: restore uploads and pause. Requests whose retry time is over fail."""
        refused, self._refused = self._refused, {}
        pauses: list[tuple[float, ServerError]] = []
        if self._terms.restore and any(isinstance(error, NotFoundError) for _, error in refused.values()):
            self._terms.restore()
        for group_id, (question, error) in refused.items():
            if isinstance(error, NotFoundError):
                question.restored = True
            else:
                question.patience = question.patience or self._connection.patience(None)
                seconds = question.patience.pause_after(error)
                if seconds is None:
                    yield GroupFailure(group_id, error)
                    continue
                pauses.append((seconds, error))
            self._unanswered[group_id] = question
        if pauses:
            self._connection.wait(*max(pauses, key=itemgetter(0)))

    def _overdue(self) -> Generator[GroupFailure, None, None]:
        """Yield failures for the groups whose deadline has passed."""
        now = time.monotonic()
        for group_id in [group_id for group_id, question in self._unanswered.items() if question.due <= now]:
            del self._unanswered[group_id]
            self._late.add(group_id)
            message = f"group {group_id!r} had no answer within the {self._terms.group_timeout:g} s that a group has"
            yield GroupFailure(group_id, DeadlineError("DEADLINE_EXCEEDED", message))

    def _seconds_to_wait(self) -> float | None:
        """Return the seconds until the next deadline of a group; None without one."""
        due = min((question.due for question in self._unanswered.values()), default=math.inf)
        return None if math.isinf(due) else max(0.0, due - time.monotonic())

    @property
    def _only_late_ones_are_left(self) -> bool:
        return self._exhausted and not self._unanswered
