"""The caller of a request: tenant, priority and quota."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class Priority(IntEnum):
    """Priority of a request. A higher priority does not starve the lower ones."""

    BULK = 0
    """Groups of a stream: throughput matters, not the latency of a single group."""
    INTERACTIVE = 1
    """A unary request, whose latency matters."""


@dataclass(frozen=True)
class Quota:
    """Limits of a tenant; None where only the server's own limits apply.

    Attributes:
        queue_tokens: maximum tokens in flight.
        tokens_per_minute: maximum tokens charged per minute, on average.
        calls: maximum concurrent calls; enforced by the transport.
    """

    queue_tokens: int | None = None
    tokens_per_minute: int | None = None
    calls: int | None = None


@dataclass(frozen=True)
class Caller:
    """The caller of a request.

    Attributes:
        tenant: name of the tenant; empty for all callers if the server requires no tokens. Tenants are scheduled
            fairly, and do not see each other's cached prompts.
        priority: priority of the request.
        quota: limits of the tenant.
        request_id: id of the request in logs and traces.
        waits: whether the request waits for admission however much its tenant has in flight: true for a group of a
            stream, whose sender is under backpressure meanwhile. Other requests are refused once their tenant has
            used up its share.
        request_bytes: serialized size of a unary request, which is held until it is answered; 0 for a group of a
            stream, whose size the transport bounds.
    """

    tenant: str = ""
    priority: Priority = Priority.INTERACTIVE
    quota: Quota = field(default_factory=Quota)
    request_id: str = ""
    request_bytes: int = 0
    waits: bool = False


ANYONE = Caller()
