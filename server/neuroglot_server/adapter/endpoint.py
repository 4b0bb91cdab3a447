"""The gRPC server around the servicer: port, health, reflection, and how it goes down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from neuroglot_server.adapter.gate import Gate
from neuroglot_server.adapter.servicer import MESSAGE_LIMIT_BYTES, SERVICE_NAME, Servicer
from neuroglot_server.address import AddressError

if TYPE_CHECKING:
    from neuroglot_server.model import Model

_logger = logging.getLogger(__name__)

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # the default lets a second server share the port without a word
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    # A client whose machine is gone says nothing: ask, so that its work is cancelled too.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)

_LAST_WORDS_SECONDS = 1.0
"""How long the last answers have to get out, and health's watchers to hear the news."""


def health_name(model: str) -> str:
    """The service name under which the health service knows a model; the server as a whole is `""`."""
    return f"{SERVICE_NAME}/{model}"


class Endpoint:
    """A gRPC server that is made, bound, started, drained and stopped, in this order, on one event loop."""

    def __init__(self) -> None:
        """Make the server; nothing listens yet."""
        self._server = grpc.aio.server(options=_OPTIONS)
        self._gate = Gate()
        self._health = health.aio.HealthServicer()

    def bind(self, target: str) -> int:
        """Take a place to listen, so that a port that is taken shows before models are loaded.

        Args:
            target: `host:port` or `unix:path`.

        Returns:
            The port.

        Raises:
            AddressError: it cannot be had.
        """
        try:
            return self._server.add_insecure_port(target)
        except RuntimeError as error:
            raise AddressError(f"cannot listen on {target}: {error}") from None

    async def start(self, models: Sequence[Model]) -> None:
        """Serve models."""
        self._server.add_generic_rpc_handlers((Servicer(models, self._gate).handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for service in (SERVICE_NAME, *(health_name(model.description.name) for model in models)):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._server.start()

    async def drain(self, grace_seconds: float) -> None:
        """Take nothing new, say so to whoever asks for health, and let what runs end.

        What still runs after the grace is cut off by `stop`.
        """
        self._gate.closed.set()
        await self._health.enter_graceful_shutdown()
        try:
            await asyncio.wait_for(self._gate.empty(), grace_seconds)
        except TimeoutError:
            _logger.warning("requests still run after %g s of grace: cutting them off", grace_seconds)
            return
        await self._server.stop(_LAST_WORDS_SECONDS)

    async def stop(self) -> None:
        """Cancel what runs, and stop listening."""
        await self._server.stop(None)
