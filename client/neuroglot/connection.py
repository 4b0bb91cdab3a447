"""Where questions go: a server at an address, or one that runs in this process over a bundle.

The seam between the two is here, at the channel; above it there is one client.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import grpc

from neuroglot.errors import InstallationError, InvalidTargetError
from neuroglot.statuses import from_rpc_error
from neuroglot.stream import exchange
from neuroglot.v1 import service_pb2, service_pb2_grpc

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_MESSAGE_LIMIT_BYTES = 64 * 2**20
_OPTIONS = [
    ("grpc.max_receive_message_length", _MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_LIMIT_BYTES),
]
# gRPC sends what is meant for this machine to the proxy of the environment, too, unless it is told not to.
_OPTIONS_ON_THIS_MACHINE = [*_OPTIONS, ("grpc.enable_http_proxy", 0)]

_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\\\[\]]+):(?P<port>\d+)")
_LARGEST_PORT = 65535
_THIS_MACHINE = re.compile(r"localhost|127(\.\d+){3}|\[::1\]|unix")


class Connection:
    """An open channel. What fails on it is raised as neuroglot's errors.

    Attributes:
        address: where the server is, for messages.
        stub: the methods of the contract.
    """

    def __init__(self, address: str, *, close_server: Callable[[], None] | None = None) -> None:
        self.address = address
        self._close_server = close_server
        host, _, _ = address.rpartition(":") if not address.startswith("unix:") else ("unix", "", "")
        options = _OPTIONS_ON_THIS_MACHINE if _THIS_MACHINE.fullmatch(host) else _OPTIONS
        self._channel = grpc.insecure_channel(address, options=options)
        self.stub = service_pb2_grpc.NeuroglotServiceStub(self._channel)

    def call(
        self, method: grpc.UnaryUnaryMultiCallable[_Request, _Response], request: _Request, timeout: float | None
    ) -> _Response:
        """Ask a question.

        Args:
            method: one of `stub`.
            request: the question.
            timeout: seconds to wait for the answer; None for ever.

        Raises:
            ServerError: what the server said, or that none answers.
        """
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from None

    def analyze_groups(
        self, requests: Iterator[service_pb2.AnalyzeGroupsRequest], in_flight: int, timeout: float | None
    ) -> Generator[service_pb2.AnalyzeGroupsResponse, None, None]:
        """Ask about many groups; see `neuroglot.stream.exchange`.

        Raises:
            ServerError: the stream as a whole failed.
        """
        yield from exchange(
            lambda sent: self.stub.AnalyzeGroups(sent, timeout=timeout),
            requests,
            in_flight,
            explain=lambda error: from_rpc_error(error, self.address),
        )

    def close(self) -> None:
        """Close the channel, which cancels what is under way on it, and the server if it runs in this process."""
        self._channel.close()
        if self._close_server is not None:
            self._close_server()


def open_connection(target: str | Path) -> Connection:
    """Open what a user gave: a bundle's folder or an address.

    Raises:
        InvalidTargetError: it is neither.
        InstallationError: it is a folder, and the server's packages are not installed.
        BundleError: it is a folder, but no bundle, or a damaged one.
    """
    if str(target) and Path(target).is_dir():
        return _serve_in_process(Path(target))
    address = str(target)
    host_and_port = _HOST_AND_PORT.fullmatch(address)
    if not address.startswith("unix:") and not (host_and_port and int(host_and_port["port"]) <= _LARGEST_PORT):
        raise InvalidTargetError(
            f"{address!r} is neither the folder of a bundle (there is no such folder) nor the address of a server: "
            "give a folder that `neuroglot export` wrote, or host:port, 'localhost:50051'"
        )
    return Connection(address)


def _serve_in_process(bundle: Path) -> Connection:
    try:
        from neuroglot_server.lifecycle import start_in_thread
    except ImportError as error:
        raise InstallationError(
            f"{bundle} is a bundle, and to serve it here takes the server ({error}): pip install 'neuroglot[cpu]', or "
            "connect to a server elsewhere, host:port"
        ) from None
    server = start_in_thread([bundle])
    return Connection(server.target, close_server=server.close)
