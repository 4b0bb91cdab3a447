"""gRPC streams consumed in the caller's thread: bidirectional (`exchange`) and server streaming (`listen`)."""

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
    """Last item of the incoming queue: the stream has ended, with an error or without."""

    error: ServerError | None


def _for_ever() -> None:
    """Default of `patience`: no limit."""


def exchange(
    start: Callable[[Iterator[_Request]], CallIterator[_Response]],
    requests: Iterator[_Request],
    in_flight: int,
    explain: Callable[[grpc.RpcError], ServerError],
    patience: Callable[[], float | None] = _for_ever,
) -> Generator[_Response | None, None, None]:
    """Send requests and yield their responses in the order of arrival.

    Requests are consumed in the caller's thread, one per response once `in_flight` are sent: the iterator may be
    infinite, and its errors reach the caller. At most one request is consumed while a response is ready. Closing the
    generator cancels the call.

    Args:
        start: opens the stream for an iterator of requests.
        requests: the requests; each gets one response.
        in_flight: maximum number of requests without a response, at least 1.
        explain: converts the gRPC error if the stream breaks before every request has its response.
        patience: returns the maximum seconds to wait for the next response, None for no limit; called before each wait.

    Yields:
        A response, or None if none arrived in time.

    Raises:
        ServerError: the error that `explain` returned, or the server ended the stream early without an error.
    """
    outgoing: SimpleQueue[_Request | None] = SimpleQueue()
    incoming: SimpleQueue[_Response | _End] = SimpleQueue()
    # Consumed before the stream is opened: the server ends a stream that stays silent for some seconds.
    requests = chain(list(islice(requests, 1)), requests)
    call = start(iter(outgoing.get, None))
    receiver = _start(_receive, call, incoming, explain, lambda: None)
    # gRPC's sending thread blocks on the queue until it gets None.
    close = _closing(call, receiver, lambda: outgoing.put(None))
    del call  # see `_close`: only the finalizer may hold a reference
    unanswered, more = 0, True
    try:
        while more or unanswered:
            if more:  # there is capacity: at the limit, the code below waits for a response
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
    """Yield the responses to one request, with at most two in memory. Closing the generator cancels the call.

    Args:
        start: sends the request.
        explain: converts the gRPC error if the stream breaks.

    Raises:
        ServerError: the error that `explain` returned.
    """
    incoming: SimpleQueue[_Response | _End] = SimpleQueue()
    capacity = threading.Semaphore()
    call = start()
    receiver = _start(_receive, call, incoming, explain, capacity.acquire)
    close = _closing(call, receiver, capacity.release)
    del call
    try:
        while not isinstance(response := incoming.get(), _End):
            yield response
            capacity.release()
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
    wait_for_capacity: Callable[[], object],
) -> None:
    error = None
    try:
        for response in call:
            incoming.put(response)
            wait_for_capacity()
    except grpc.RpcError as raised:
        error = explain(raised)
        raised.__traceback__ = None  # the error is the call itself: its traceback would keep it alive by this frame
    finally:
        incoming.put(_End(error))


def _closing(
    call: CallIterator[_Response], receiver: threading.Thread, wake: Callable[[], None]
) -> weakref.finalize[[CallIterator[_Response], threading.Thread, Callable[[], None]], threading.Thread]:
    """Return a function that closes a call; it also runs at the program's exit.

    The interpreter closes an abandoned generator only after daemon threads are frozen, and some of them may hold gRPC's
    locks.
    """
    return weakref.finalize(receiver, _close, call, receiver, wake)


def _close(call: CallIterator[_Response], receiver: threading.Thread, wake: Callable[[], None]) -> None:
    """Cancel a call and drop its last reference, so that the garbage collector never has to free it.

    gRPC takes the call's lock when the call is freed, and at the interpreter's exit a frozen daemon thread may hold it.
    """
    call.cancel()
    wake()  # after `cancel`: the woken receiver must find the end of the stream
    if receiver is not threading.current_thread():  # the generator may be collected in the receiver's thread
        receiver.join()


def _ended_early(unanswered: int) -> UnavailableError:
    return UnavailableError("UNAVAILABLE", f"the server ended the stream and left {unanswered} questions unanswered")
