"""The gRPC server around the servicer: port, health, reflection and graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from neuroglot_server.config.address import AddressError
from neuroglot_server.config.deployment import TransportLimits
from neuroglot_server.models.registry import Registry
from neuroglot_server.telemetry.transport_observer import Tracer, TransportObserver, Untraced, Unwatched
from neuroglot_server.transport.auth import Access
from neuroglot_server.transport.calls import Calls
from neuroglot_server.transport.concurrency import ConcurrencyLimit
from neuroglot_server.transport.held_bytes import HeldBytes
from neuroglot_server.transport.reflection import add_reflection
from neuroglot_server.transport.service import ANSWER_LIMIT_BYTES, SERVICE_NAME, Servicer

_logger = logging.getLogger(__name__)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_METADATA_BYTES = 8 * 2**10
"""Maximum size of a call's metadata."""
_FLUSH_SECONDS = 1.0
"""Time at shutdown for the last responses to be sent and for health's watchers to be notified."""


def health_name(model: str) -> str:
    """Return the health service's name for a model; the server as a whole is `""`."""
    return f"{SERVICE_NAME}/{model}"


class Endpoint:
    """A gRPC server on one event loop: construct, `bind`, `start`, `drain`, `stop`, in this order.

    Health and reflection require no token: load balancers, which use health, have none, and reflection reveals only
    the public contract.
    """

    def __init__(
        self,
        registry: Registry,
        access: Access | None = None,
        limits: TransportLimits | None = None,
        observer: TransportObserver | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Create the server, without listening yet.

        Args:
            registry: the served models; may change while the server runs.
            access: authenticates callers; no authentication if None.
            limits: limits of the transport; the defaults if None.
            observer: receives metrics of calls and models.
            tracer: traces calls.
        """
        limits, observer = limits or TransportLimits(), observer or Unwatched()
        self._registry = registry
        self._observer = observer
        self._concurrency = ConcurrencyLimit(limits.calls)
        self._health = health.aio.HealthServicer()
        self._known_models: set[str] = set()
        self._watching: asyncio.Task[None] | None = None
        calls = Calls(self._concurrency, access or Access(), observer, tracer or Untraced())
        self._held_bytes = HeldBytes(limits.transport_bytes, observer.held)
        servicer = Servicer(registry, calls, self._concurrency, self._held_bytes, limits)
        self._server = grpc.aio.server(options=_options(limits))
        self._server.add_generic_rpc_handlers((servicer.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_reflection(self._server, (SERVICE_NAME, health.SERVICE_NAME))

    def bind(self, target: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Bind an address, separately from `start` so that a port in use fails before models are loaded.

        Args:
            target: `host:port` or `unix:path`.
            credentials: TLS credentials; None for plaintext.

        Returns:
            The port.

        Raises:
            AddressError: the address cannot be bound.
        """
        try:
            if credentials is None:
                return self._server.add_insecure_port(target)
            return self._server.add_secure_port(target, credentials)
        except RuntimeError as error:
            raise AddressError(f"cannot listen on {target}: {error}") from None

    async def start(self) -> None:
        """Start serving calls."""
        await self._update_health()
        self._watching = asyncio.create_task(self._watch_models())
        await self._server.start()

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new calls, report NOT_SERVING, fail queued requests, and let running ones finish.

        Requests that are still running after the grace period are cancelled by `stop`.

        Args:
            grace_seconds: how long running requests may take.
        """
        self._concurrency.closed.set()
        self._observer.health("the server is shutting down")
        await self._health.enter_graceful_shutdown()
        for model in self._registry.models:
            model.drain()
        try:
            async with asyncio.timeout(grace_seconds):
                await self._concurrency.wait_idle()
                await self._held_bytes.wait_empty()  # the last responses are being sent
        except TimeoutError:
            _logger.warning("requests still run after %g s of grace: cancelling them", grace_seconds)
            return
        await self._server.stop(_FLUSH_SECONDS)

    async def stop(self) -> None:
        """Cancel running calls, and stop listening."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._server.stop(None)

    async def _watch_models(self) -> None:
        while True:
            await self._registry.changed.wait()
            self._registry.changed.clear()
            await self._update_health()

    async def _update_health(self) -> None:
        """Update the health service for each model. The server as a whole is NOT_SERVING when all its models hang."""
        healthy = self._registry.health
        self._observer.models(healthy)
        removed = self._known_models - healthy.keys()
        self._known_models = set(healthy)
        for name in removed:
            await self._health.set(health_name(name), _NOT_SERVING)
        for name, is_healthy in healthy.items():
            await self._health.set(health_name(name), _SERVING if is_healthy else _NOT_SERVING)
        overall = _SERVING if not healthy or any(healthy.values()) else _NOT_SERVING
        for service in ("", SERVICE_NAME):
            await self._health.set(service, overall)
        if not self._concurrency.closed.is_set():
            self._observer.health("" if overall == _SERVING else "a pass hangs in every model")


def _options(limits: TransportLimits) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.so_reuseport", 0),  # with the default a second server silently shares the port
        ("grpc.max_receive_message_length", limits.request_bytes),
        ("grpc.max_send_message_length", ANSWER_LIMIT_BYTES),
        # More than the concurrency limit, so that calls over it get our status and health checks still get through.
        ("grpc.max_concurrent_streams", limits.calls + 100),
        # Metadata arrives before any of our checks run.
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * _METADATA_BYTES),
        # Connections over the limit are closed at once, those without an HTTP/2 handshake after the timeout.
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", round(limits.request_seconds * 1000)),
        # Connections are renewed at this age; calls on an old one still run to their end.
        ("grpc.max_connection_age_ms", round(limits.connection_seconds * 1000)),
        ("grpc.max_connection_idle_ms", round(limits.idle_seconds * 1000)),
        # Without this the flow control window grows: a call whose client does not read could buffer several MiB.
        ("grpc.http2.bdp_probe", 0),
        # A machine that vanished closes no connection: keepalive pings detect it, so that its work is cancelled.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Clients may ping as often as every ten seconds; those that ping more often are disconnected.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    )
