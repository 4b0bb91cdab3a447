"""The deployment of a server: its bundles, address, settings, limits, certificates and tenants."""

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
    """Format of log lines."""

    TEXT = "text"
    JSON = "json"


class Certificates(NamedTuple):
    """Files in PEM form for TLS.

    Attributes:
        certificate: of the server, followed by its intermediate certificates.
        key: private key of the certificate, without a password.
        client_ca: certificate authorities for mutual TLS: clients must present a certificate that one of them issued.
            None for TLS without client certificates.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class TransportLimits:
    """Limits of the transport, over all connections.

    Attributes:
        calls: maximum concurrent calls; RESOURCE_EXHAUSTED above. One client machine may have half of them.
        request_bytes: maximum size of a request message; RESOURCE_EXHAUSTED above.
        receive_bytes: memory budget for requests being received. `receive_bytes / request_bytes` calls may wait for a
            request at once.
        request_seconds: timeout for a call to send its first request.
        transport_bytes: memory for received requests and unsent results; above it, a stream is processed one group at
            a time.
        reader_seconds: timeout for a client that stops reading the results of CaptureActivations or Generate, after
            which its capacity is released.
        connections: maximum concurrent connections; further ones are closed as soon as they are opened.
        connection_seconds: maximum age of a connection; running calls continue on it, new ones open another.
        idle_seconds: idle time after which a connection without calls is closed.
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
    """Everything that defines a server.

    Attributes:
        bundles: folders of the bundles, by model name.
        address: address to listen on; a path is a unix socket.
        settings: default settings of the models.
        settings_of: settings of individual models, by name, which replace the default.
        bundles_folder: folder from which LoadModel may load bundles; None disables LoadModel.
        certificates: files for TLS; None for plain text.
        tokens: file of tenants and the hashes of their tokens; None if no token is required.
        metrics_address: HTTP address of `/metrics` and `/healthz`; None for no HTTP server.
        tracing_endpoint: OTLP endpoint of the collector that spans are sent to; empty for no tracing.
        transport: limits of the transport.
        load_seconds: timeout for loading a bundle.
        grace_seconds: how long running requests may continue when the server is stopped; 0 cancels them at once.
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
        """Endpoints that other machines can reach without TLS or authentication, each as a message with the fix.

        Calls must be encrypted and authenticated by a token or a client certificate. Metrics have neither.
        """
        exposed = []
        if calls := self._exposure_of_calls():
            exposed.append(
                f"{calls}: listen on 127.0.0.1, or give --tls-certificate, --tls-key and --tokens-file (or "
                "--tls-client-ca)"
            )
        if self.metrics_address is not None and not self.metrics_address.is_loopback:
            exposed.append(
                f"other machines can reach the metrics on {self.metrics_address}, which need no token and name "
                "tenants and models: give --metrics-address on 127.0.0.1"
            )
        return tuple(exposed)

    def _exposure_of_calls(self) -> str:
        """Describe the missing encryption or authentication of gRPC calls; empty if nothing is missing."""
        if isinstance(self.address, Path) or self.address.is_loopback:
            return ""
        if self.certificates is None:
            unencrypted = (
                "traffic is not encrypted" if self.tokens else "traffic is neither encrypted nor authenticated"
            )
            return f"other machines can reach {self.address}, and {unencrypted}"
        if self.tokens is None and self.certificates.client_ca is None:
            return f"other machines can reach {self.address}, and calls are not authenticated"
        return ""


def by_name(bundles: Iterable[Path]) -> dict[str, Path]:
    """Name bundles after their folders, as their models are served.

    Raises:
        BundleError: two folders have the same name.
    """
    named: dict[str, Path] = {}
    for folder in bundles:
        name = folder.resolve().name
        if name in named:
            raise BundleError(f"{named[name]} and {folder} would both be served as {name!r}: rename one of the folders")
        named[name] = folder
    return named
