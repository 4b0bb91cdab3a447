"""Who asks, and how urgently."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class Priority(IntEnum):
    """Which requests come first; a higher one does not starve the lower ones."""

    BULK = 0
    """Groups of a stream: many, and nobody waits for a single one."""
    INTERACTIVE = 1
    """A request by itself: somebody waits for it."""


@dataclass(frozen=True)
class Quota:
    """What a tenant may take up; None where nothing but the server's own limits bounds it.

    Attributes:
        queue_tokens: most tokens that it may have in flight at once.
        tokens_per_minute: most tokens that it is charged, on average over a minute.
        calls: most calls that it may have at once; the transport holds to it.
    """

    queue_tokens: int | None = None
    tokens_per_minute: int | None = None
    calls: int | None = None


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        tenant: for whom; the empty name is everybody's where the server asks for no tokens. Work is shared out fairly
            between tenants, and what is cached for one is not seen by another.
        priority: how urgently.
        quota: what the tenant may take up.
        request_id: the name of the request in logs and traces.
        waits: whether a request waits for its admission, however much its tenant has in flight: a group of a stream,
            whose sender is held back meanwhile. Others are refused where their tenant has its share.
        request_bytes: how long a request by itself was as it came; it is held until it is answered. Those of a stream
            are bounded by the transport.
    """

    tenant: str = ""
    priority: Priority = Priority.INTERACTIVE
    quota: Quota = field(default_factory=Quota)
    request_id: str = ""
    request_bytes: int = 0
    waits: bool = False


ANYONE = Caller()
