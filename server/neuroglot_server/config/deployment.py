"""What a server is to serve, where, to whom and how: what a configuration comes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from neuroglot.errors import BundleError
from neuroglot_server.config.address import Address
from neuroglot_server.core import Settings
from neuroglot_server.core.limits import MESSAGE_BYTES


class LogFormat(StrEnum):
    """How a line of the log looks."""

    TEXT = "text"
    JSON = "json"


class Certificates(NamedTuple):
    """Files in PEM form for TLS.

    Attributes:
        certificate: of the server, and those between it and the authority.
        key: its private key, without a password.
        client_ca: authorities, of one of which every client must show a certificate; None where none is asked for.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class TransportLimits:
    """What the transport may take up, over all connections.

    Attributes:
        calls: most calls at once; over it, RESOURCE_EXHAUSTED. One machine may have half of them.
        request_bytes: longest request; over it, RESOURCE_EXHAUSTED.
        receive_bytes: most that requests take up that are on their way; so many calls wait for a request at once as
            there is room for their longest ones.
        request_seconds: how long a call may take to send its first request.
        transport_bytes: most of requests that were read and of results that wait to be written; over it, a stream goes
            on a group at a time.
        reader_seconds: how long a capture or a text waits for its reader before it loses its place.
        connections: most connections at once; more are closed as soon as they are opened.
        connection_seconds: how long a connection is open; calls on it go on after it, and new ones take another.
        idle_seconds: how long a connection stays open without a call.
    """

    calls: int = 512
    request_bytes: int = MESSAGE_BYTES
    receive_bytes: int = 512 * 2**20
    request_seconds: float = 10.0
    transport_bytes: int = 256 * 2**20
    reader_seconds: float = 300.0
    connections: int = 800
    connection_seconds: float = 3600.0
    idle_seconds: float = 900.0


@dataclass(frozen=True)
class Deployment:
    """A server, before it runs.

    Attributes:
        bundles: the folders, by the names of their models.
        address: where to listen; a path is that of a unix socket.
        settings: how models are run.
        settings_of: how those of these names are run instead.
        bundles_folder: where requests may load further bundles from; None where they may not.
        certificates: for TLS; None for none.
        tokens: the file of tenants and their tokens; None where no token is asked for.
        metrics_address: where Prometheus finds numbers; None for nowhere.
        tracing_endpoint: the collector that spans are sent to; empty for none.
        transport: what the transport may take up.
        load_seconds: how long a bundle may take to load.
        grace_seconds: how long requests that run may go on when the server is told to stop; by default not at all.
    """

    bundles: Mapping[str, Path]
    address: Address | Path
    settings: Settings = field(default_factory=Settings)
    settings_of: Mapping[str, Settings] = field(default_factory=dict)
    bundles_folder: Path | None = None
    certificates: Certificates | None = None
    tokens: Path | None = None
    metrics_address: Address | None = None
    tracing_endpoint: str = ""
    transport: TransportLimits = field(default_factory=TransportLimits)
    load_seconds: float = 600.0
    grace_seconds: float = 0.0

    @property
    def exposures(self) -> tuple[str, ...]:
        """What other machines can reach without being known: each in words, with what to do about it.

        Calls must be encrypted and show a token or a certificate; metrics are given to anyone who asks, in the clear.
        """
        exposed = []
        if calls := self._exposure_of_calls():
            exposed.append(
                f"{calls}: listen on 127.0.0.1, or give --tls-certificate, --tls-key and --tokens-file (or "
                "--tls-client-ca)"
            )
        if self.metrics_address is not None and not self.metrics_address.is_loopback:
            exposed.append(
                f"other machines can reach the metrics on {self.metrics_address}, which ask for no token and name "
                "tenants and models: give --metrics-address on 127.0.0.1"
            )
        return tuple(exposed)

    def _exposure_of_calls(self) -> str:
        """Who could call or listen to calls, in words; empty where nobody could that should not."""
        if isinstance(self.address, Path) or self.address.is_loopback:
            return ""
        if self.certificates is None:
            unencrypted = (
                "traffic is not encrypted" if self.tokens else "traffic is neither encrypted nor authenticated"
            )
            return f"other machines can reach {self.address}, and {unencrypted}"
        if self.tokens is None and self.certificates.client_ca is None:
            return f"other machines can reach {self.address}, and nobody asks who calls"
        return ""


def by_name(bundles: Iterable[Path]) -> dict[str, Path]:
    """Bundles under the names that their models are served by, which are those of their folders.

    Raises:
        BundleError: two have the same name.
    """
    named: dict[str, Path] = {}
    for folder in bundles:
        name = folder.resolve().name
        if name in named:
            raise BundleError(f"{named[name]} and {folder} would both be served as {name!r}: rename one of the folders")
        named[name] = folder
    return named
