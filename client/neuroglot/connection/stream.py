"""Streams of gRPC, read in the caller's thread: many questions and their answers, or one question and many answers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import grpc

from neuroglot.errors import ServerError, UnavailableError

if TYPE_CHECKING:
    from grpc import _CallIterator as CallIterator

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True)
class _End:
    """The last thing that comes in: the stream is over, by an error or not."""

    error: ServerError | None


def _for_ever() -> None:
    """How long to wait where nobody says."""


def exchange(
    start: Callable[[Iterator[_Request]], CallIterator[_Response]],
    requests: Iterator[_Request],
    in_flight: int,
    explain: Callable[[grpc.RpcError], ServerError],
    patience: Callable[[], float | None] = _for_ever,
) -> Generator[_Response | None, None, None]:
    """Send requests and yield their responses, in the order in which they come.

    Requests are taken in the caller's thread, one for each response once `in_flight` are sent: so they may be without
    end, and what taking one raises reaches the caller. A response that is there is not held back for more than one
    request. Closing the generator cancels the call.

    Args:
        start: opens the stream with the requests it is to send.
        requests: each gets one response.
        in_flight: most requests without a response, at least 1.
        explain: what is raised if the stream breaks before every request had its response.
        patience: for how many seconds at most to wait for the next response, None for ever; asked before each wait.

    Yields:
        A response, or None where none came in time.

    Raises:
        ServerError: what `explain` gave, or the server ended the stream before its time, and said nothing.
    """
    outgoing: SimpleQueue[_Request | None] = SimpleQueue()
    incoming: SimpleQueue[_Response | _End] = SimpleQueue()
    # Before the stream is open: a server ends one on which nothing comes for some seconds.
    requests = chain(list(islice(requests, 1)), requests)
    call = start(iter(outgoing.get, None))
    receiver = _start(_receive, call, incoming, explain, lambda: None)
    # gRPC's sending thread waits on the queue, until None comes.
    close = _closing(call, receiver, lambda: outgoing.put(None))
    del call  # see `_close`: nobody but the finalizer may hold it
    unanswered, more = 0, True
    try:
        while more or unanswered:
            if more:  # and so there is room: below, a full house waits for a response
                request = next(requests, None)
                outgoing.put(request)  # None, at the end, tells the server that no more will come
                more = request is not None
                unanswered += more
            if unanswered == in_flight or (unanswered and not more) or not incoming.empty():
                while (response := _next(incoming, patience())) is None:
                    yield None
                if isinstance(response, _End):
                    raise response.error or _ended_early(unanswered)
                unanswered -= 1
                yield response
        receiver.join()  # the server sees an end, not a cancellation
    finally:
        close()


def listen(
    start: Callable[[], CallIterator[_Response]], explain: Callable[[grpc.RpcError], ServerError]
) -> Generator[_Response, None, None]:
    """Yield the responses to one request; no more than two are held at a time. Closing the generator cancels the call.

    Args:
        start: sends the request.
        explain: what is raised if the stream breaks.

    Raises:
        ServerError: what `explain` gave.
    """
    incoming: SimpleQueue[_Response | _End] = SimpleQueue()
    room = threading.Semaphore()
    call = start()
    receiver = _start(_receive, call, incoming, explain, room.acquire)
    close = _closing(call, receiver, room.release)
    del call
    try:
        while not isinstance(response := incoming.get(), _End):
            yield response
            room.release()
        if response.error:
            raise response.error
    finally:
        close()


def _next(incoming: SimpleQueue[_Response | _End], seconds: float | None) -> _Response | _End | None:
    try:
        return incoming.get(timeout=seconds)
    except Empty:
        return None


def _start(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, name="neuroglot-receiver", daemon=True)
    thread.start()
    return thread


def _receive(
    call: CallIterator[_Response],
    incoming: SimpleQueue[_Response | _End],
    explain: Callable[[grpc.RpcError], ServerError],
    wait_for_room: Callable[[], object],
) -> None:
    error = None
    try:
        for response in call:
            incoming.put(response)
            wait_for_room()
    except grpc.RpcError as raised:
        error = explain(raised)
        raised.__traceback__ = None  # it is the call itself, and would hold on to itself by this frame
    finally:
        incoming.put(_End(error))


def _closing(
    call: CallIterator[_Response], receiver: threading.Thread, wake: Callable[[], None]
) -> weakref.finalize[[CallIterator[_Response], threading.Thread, Callable[[], None]], threading.Thread]:
    """What closes a call: when it is called or, if the program ends before that, at its exit.

    For a generator that was left behind is closed by the interpreter only when daemon threads stand still already, some
    of them with gRPC's locks in hand.
    """
    return weakref.finalize(receiver, _close, call, receiver, wake)


def _close(call: CallIterator[_Response], receiver: threading.Thread, wake: Callable[[], None]) -> None:
    """End a call, and let go of it: once this is over it must be gone, and not be left to the garbage collector.

    For gRPC takes the call's lock when the call is collected, and one that is collected at the interpreter's exit may
    find the lock in the hand of a daemon thread that stands still.
    """
    call.cancel()
    wake()  # only now, for what a receiver that is woken finds must be the end
    if receiver is not threading.current_thread():  # in which a generator may be collected
        receiver.join()


def _ended_early(unanswered: int) -> UnavailableError:
    return UnavailableError("UNAVAILABLE", f"the server ended the stream and left {unanswered} questions unanswered")
