"""Connections: gRPC channels to a server at an address, or to one that serves a bundle in this process.

Code above this module does not distinguish the two.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from neuroglot.connection.credentials import Credentials
from neuroglot.connection.retries import Patience, is_passing
from neuroglot.connection.statuses import REQUEST_ID_KEY, from_rpc_error
from neuroglot.connection.stream import exchange, listen
from neuroglot.connection.tls_diagnosis import tls_problem
from neuroglot.errors import DeadlineError, InstallationError, InvalidTargetError, ServerError, UnavailableError
from neuroglot.v1 import service_pb2, service_pb2_grpc

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_logger = logging.getLogger(__name__)

_MESSAGE_LIMIT_BYTES = 64 * 2**20
_OPTIONS = [
    ("grpc.max_receive_message_length", _MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_LIMIT_BYTES),
    # A server whose machine is down sends nothing: keepalive pings during calls make them fail instead of hang.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # By default gRPC waits up to two minutes before it reconnects to a server that is up again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
# By default gRPC sends even connections to this machine through the environment's HTTP proxy.
_OPTIONS_ON_THIS_MACHINE = [*_OPTIONS, ("grpc.enable_http_proxy", 0)]

_TLS = "https://"
_UNIX = "unix:"
_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\\\[\]]+):(?P<port>\d+)")
_LARGEST_PORT = 65535
_THIS_MACHINE = re.compile(r"localhost|127(\.\d+){3}|\[::1\]|unix")


@dataclass(frozen=True)
class Retries:
    """Retry policy for a server that is unavailable or overloaded.

    Attributes:
        seconds: seconds for which a request is retried, from its first failure; 0 disables retries.
        told: called before each pause with the error and the length of the pause in seconds.
    """

    seconds: float
    told: Callable[[ServerError, float], None]


def log_retry(error: ServerError, seconds: float) -> None:
    """Log that a request will be retried."""
    _logger.warning("%s: asking again in %.1f s", error.message, seconds)


class Connection:
    """An open gRPC channel. Failed calls raise neuroglot's errors.

    Attributes:
        address: address of the server, for messages.
        stub: gRPC stub of the service.
    """

    def __init__(
        self,
        address: str,
        retries: Retries,
        *,
        token: str = "",
        tls: Credentials | None = None,
        close_server: Callable[[], None] | None = None,
    ) -> None:
        self.address = address
        self._retries = retries
        self._token = token
        self._tls = tls
        self._has_answered = False
        self._close_server = close_server
        self._closed = threading.Event()
        options = _OPTIONS_ON_THIS_MACHINE if _is_on_this_machine(address) else _OPTIONS
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            shown = grpc.ssl_channel_credentials(tls.root_certificates, tls.key, tls.certificate)
            self._channel = grpc.secure_channel(address, shown, options=options)
        # If the program exits without `close`, the finalizer closes the channel before the in-process server stops: in
        # the other order gRPC reports on stderr that the server has gone away.
        self._close_channel = weakref.finalize(self, self._channel.close)
        self.stub = service_pb2_grpc.NeuroglotServiceStub(self._channel)

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout: float | None,
        *,
        again: bool = True,
    ) -> _Response:
        """Send a unary request, and retry it while the server is unavailable or overloaded.

        Args:
            method: a method of `stub`.
            request: the request.
            timeout: seconds to wait for the response, all attempts together; None for no limit.
            again: whether the request may be retried, that is, has no side effects.

        Raises:
            ServerError: the server returned an error, or no server answers.
        """
        patience = self.patience(timeout, again=again)
        while True:
            metadata, request_id = self._metadata()
            try:
                response = method(request, timeout=patience.time_left, metadata=metadata)
            except grpc.RpcError as error:
                failure = self._failure(error, request_id)
            else:
                self._has_answered = True
                return response
            self.pause(patience, failure)

    def exchange(
        self,
        requests: Iterator[service_pb2.AnalyzeGroupsRequest],
        in_flight: int,
        timeout: float | None,
        patience: Callable[[], float | None],
    ) -> Generator[service_pb2.AnalyzeGroupsResponse | None, None, None]:
        """Send many groups on one bidirectional stream; see `neuroglot.connection.stream.exchange`.

        Raises:
            ServerError: the stream as a whole failed.
        """
        metadata, request_id = self._metadata()
        return exchange(
            lambda sent: self.stub.AnalyzeGroups(sent, timeout=timeout, metadata=metadata),
            requests,
            in_flight,
            explain=lambda error: self._failure(error, request_id),
            patience=patience,
        )

    def listen(
        self, method: grpc.UnaryStreamMultiCallable[_Request, _Response], request: _Request, timeout: float | None
    ) -> Generator[_Response, None, None]:
        """Send a request that has a stream of responses; see `neuroglot.connection.stream.listen`.

        Raises:
            ServerError: the server returned an error, or no server answers.
        """
        metadata, request_id = self._metadata()
        return listen(
            lambda: method(request, timeout=timeout, metadata=metadata),
            explain=lambda error: self._failure(error, request_id),
        )

    def patience(self, timeout: float | None, *, again: bool = True) -> Patience:
        """Start the retry and timeout budget of a request."""
        return Patience(self._retries.seconds if again else 0, timeout)

    def pause(self, patience: Patience, error: ServerError) -> None:
        """Wait until the next retry.

        Raises:
            ServerError: `error`, if it is not retryable, the time for retries is over, or the connection is closed.
        """
        seconds = patience.pause_after(error) if is_passing(error) else None
        if seconds is None:
            raise error
        self.wait(seconds, error)

    def wait(self, seconds: float, error: ServerError) -> None:
        """Report an error as a retry, and wait for some seconds.

        Raises:
            ServerError: `error`, as soon as the connection is closed.
        """
        if not self._closed.is_set():
            self._retries.told(error, seconds)
        if self._closed.wait(seconds):
            raise error

    def close(self) -> None:
        """Close the channel, which cancels the calls in flight, and stop the server if it runs in this process."""
        self._closed.set()
        self._close_channel()
        if self._close_server is not None:
            self._close_server()

    def _failure(self, error: grpc.RpcError, request_id: str) -> ServerError:
        """Convert the error of a call; if no server answered, diagnose TLS."""
        failure = from_rpc_error(error, self.address, request_id)
        unheard = isinstance(failure, UnavailableError) and not failure.request_id
        late = isinstance(failure, DeadlineError) and not self._has_answered
        if (unheard or late) and not self.address.startswith(_UNIX):
            problem = tls_problem(self.address, self._tls)
            if problem:
                return UnavailableError("UNAVAILABLE", problem)
        return failure

    def _metadata(self) -> tuple[tuple[tuple[str, str], ...], str]:
        """Make the metadata of a call; return it with the request id for the server's log."""
        request_id = secrets.token_hex(8)
        metadata = ((REQUEST_ID_KEY, request_id),)
        return (*metadata, ("authorization", f"Bearer {self._token}")) if self._token else metadata, request_id


def open_connection(target: str | Path, credentials: Credentials, retries: Retries) -> Connection:
    """Open a connection to an address, or to an in-process server for a bundle's folder.

    Raises:
        InvalidTargetError: the target is neither, or a token would cross the network unencrypted.
        InstallationError: the target is a folder, and the server's packages are not installed.
        BundleError: the target is a folder that is not a bundle, or a damaged bundle.
    """
    if str(target) and Path(target).is_dir():
        return _serve_in_process(Path(target), retries)
    address = str(target).removeprefix(_TLS)
    host_and_port = _HOST_AND_PORT.fullmatch(address)
    if not address.startswith(_UNIX) and not (host_and_port and int(host_and_port["port"]) <= _LARGEST_PORT):
        raise InvalidTargetError(
            f"{str(target)!r} is neither the folder of a bundle (there is no such folder) nor the address of a server: "
            "give a folder that `neuroglot export` wrote, or host:port, 'localhost:50051'"
        )
    if str(target).startswith(_TLS) or (credentials.asks_for_tls and not address.startswith(_UNIX)):
        return Connection(address, retries, token=credentials.token, tls=credentials)
    if credentials.token and not _is_on_this_machine(address):
        raise InvalidTargetError(
            f"the token of {credentials.token_from} would go to {address} in the clear, for everybody on the way to "
            f"read: connect to {_TLS}{address}, give the server's root certificates, or leave the token out"
        )
    return Connection(address, retries, token=credentials.token)


def _is_on_this_machine(address: str) -> bool:
    host, _, _ = address.rpartition(":") if not address.startswith(_UNIX) else ("unix", "", "")
    return _THIS_MACHINE.fullmatch(host) is not None


def _serve_in_process(bundle: Path, retries: Retries) -> Connection:
    try:
        from neuroglot_server.lifecycle import start_in_thread
    except ImportError as error:
        raise InstallationError(
            f"{bundle} is a bundle, and to serve it here takes the server ({error}): pip install 'neuroglot[cpu]', or "
            "connect to a server elsewhere, host:port"
        ) from None
    server = start_in_thread([bundle])
    return Connection(server.target, retries, close_server=server.close)
