"""The HTTP server beside gRPC: `/metrics` for Prometheus and `/healthz` for probes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from neuroglot_server.config.address import Address, AddressError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_REQUEST_SECONDS = 10.0
"""Timeout for the request line and headers of a client."""


@contextmanager
def monitoring_at(address: Address, registry: CollectorRegistry, problem: Callable[[], str]) -> Iterator[Address]:
    """Serve `GET /metrics` and `GET /healthz` from separate threads, for the duration of a block.

    `/healthz` returns 200 and `ok`, or 503 and the problem. It does not use the event loop, so it cannot detect that
    the loop is stuck: use the gRPC health service for that.

    Args:
        address: address to listen on; port 0 for a free port.
        registry: registry of the metrics.
        problem: returns why the server as a whole is unhealthy, empty while it is healthy. Called on any thread.

    Yields:
        The address, with the port that was bound.

    Raises:
        AddressError: the address cannot be bound.
    """
    metrics: WSGIApplication = make_wsgi_app(registry)

    def answer(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        match environment["PATH_INFO"]:
            case "/metrics":
                return metrics(environment, start)
            case "/healthz":
                wrong = problem()
                status, text = ("503 Service Unavailable", wrong) if wrong else ("200 OK", "ok")
            case _:
                status, text = "404 Not Found", "unknown path, expected /metrics or /healthz"
        start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
        return [f"{text}\n".encode()]

    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        server = (_ServerIPv6 if family is socket.AF_INET6 else _Server)((address.host, address.port), _Handler)
    except OSError as error:
        raise AddressError(f"cannot serve metrics on {address}: {error.strerror or error}") from None
    server.set_app(answer)
    thread = Thread(target=server.serve_forever, name="monitoring", daemon=True)
    thread.start()
    try:
        yield Address(address.host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a client that reads slowly does not delay the shutdown


class _ServerIPv6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _REQUEST_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Log nothing for probes and scrapes."""
