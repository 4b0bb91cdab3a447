"""The gRPC server around the servicer: port, health, reflection, and how it goes down."""

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
"""Most that the metadata of a call takes up."""
_LAST_WORDS_SECONDS = 1.0
"""How long the last answers have to get out, and health's watchers to hear the news."""


def health_name(model: str) -> str:
    """The service name under which the health service knows a model; the server as a whole is `""`."""
    return f"{SERVICE_NAME}/{model}"


class Endpoint:
    """A gRPC server that is made, bound, started, drained and stopped, in this order, on one event loop.

    Health and reflection ask for no token: health is for load balancers, which have none, and reflection tells no more
    than the contract does.
    """

    def __init__(
        self,
        registry: Registry,
        access: Access | None = None,
        limits: TransportLimits | None = None,
        observer: TransportObserver | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Make the server; nothing listens yet.

        Args:
            registry: what is served; it may change while the server runs.
            access: who may call; everybody if None.
            limits: what the transport may take up; the defaults if None.
            observer: is told of calls and of models.
            tracer: traces them.
        """
        limits, observer = limits or TransportLimits(), observer or Unwatched()
        self._registry = registry
        self._observer = observer
        self._gate = ConcurrencyLimit(limits.calls)
        self._health = health.aio.HealthServicer()
        self._known_models: set[str] = set()
        self._watching: asyncio.Task[None] | None = None
        calls = Calls(self._gate, access or Access(), observer, tracer or Untraced())
        self._room = HeldBytes(limits.transport_bytes, observer.held)
        servicer = Servicer(registry, calls, self._gate, self._room, limits)
        self._server = grpc.aio.server(options=_options(limits))
        self._server.add_generic_rpc_handlers((servicer.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_reflection(self._server, (SERVICE_NAME, health.SERVICE_NAME))

    def bind(self, target: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Take a place to listen, so that a port that is taken shows before models are loaded.

        Args:
            target: `host:port` or `unix:path`.
            credentials: for TLS; None for none.

        Returns:
            The port.

        Raises:
            AddressError: it cannot be had.
        """
        try:
            if credentials is None:
                return self._server.add_insecure_port(target)
            return self._server.add_secure_port(target, credentials)
        except RuntimeError as error:
            raise AddressError(f"cannot listen on {target}: {error}") from None

    async def start(self) -> None:
        """Answer calls."""
        await self._look_at_models()
        self._watching = asyncio.create_task(self._watch_models())
        await self._server.start()

    async def drain(self, grace_seconds: float) -> None:
        """Take nothing new, say so to whoever asks for health, refuse what waits, and let what runs end.

        What still runs after the grace is cut off by `stop`.
        """
        self._gate.closed.set()
        self._observer.health("the server is shutting down")
        await self._health.enter_graceful_shutdown()
        for model in self._registry.models:
            model.drain()
        try:
            async with asyncio.timeout(grace_seconds):
                await self._gate.empty()
                await self._room.empty()  # the last answers are on their way
        except TimeoutError:
            _logger.warning("requests still run after %g s of grace: cutting them off", grace_seconds)
            return
        await self._server.stop(_LAST_WORDS_SECONDS)

    async def stop(self) -> None:
        """Cancel what runs, and stop listening."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._server.stop(None)

    async def _watch_models(self) -> None:
        while True:
            await self._registry.changed.wait()
            self._registry.changed.clear()
            await self._look_at_models()

    async def _look_at_models(self) -> None:
        """Tell health how each model is. The server as a whole is red when none of its models answers."""
        well = self._registry.health
        self._observer.models(well)
        gone = self._known_models - well.keys()
        self._known_models = set(well)
        for name in gone:
            await self._health.set(health_name(name), _NOT_SERVING)
        for name, answers in well.items():
            await self._health.set(health_name(name), _SERVING if answers else _NOT_SERVING)
        as_a_whole = _SERVING if not well or any(well.values()) else _NOT_SERVING
        for service in ("", SERVICE_NAME):
            await self._health.set(service, as_a_whole)
        if not self._gate.closed.is_set():
            self._observer.health("" if as_a_whole == _SERVING else "a pass hangs in every model")


def _options(limits: TransportLimits) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.so_reuseport", 0),  # the default lets a second server share the port without a word
        ("grpc.max_receive_message_length", limits.request_bytes),
        ("grpc.max_send_message_length", ANSWER_LIMIT_BYTES),
        # More than may run, so that whoever is over is told, and health answers beside them.
        ("grpc.max_concurrent_streams", limits.calls + 100),
        # What a call may say before it sends its request, and no more than that.
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * _METADATA_BYTES),
        # Those over it are closed at once, and those on which no client greets are, after a while.
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", round(limits.request_seconds * 1000)),
        # Connections are not for ever: what runs on an old one ends by itself, however long it takes.
        ("grpc.max_connection_age_ms", round(limits.connection_seconds * 1000)),
        ("grpc.max_connection_idle_ms", round(limits.idle_seconds * 1000)),
        # Otherwise a call that nobody reads from could send up to several MiB ahead.
        ("grpc.http2.bdp_probe", 0),
        # A client whose machine is gone says nothing: ask, so that its work is cancelled too.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Clients may ask the same of us, every ten seconds; those that ask more often are disconnected.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    )
