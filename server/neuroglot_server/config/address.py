"""Listen addresses: parsing `HOST:PORT`, and checking that an address is free."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass

from neuroglot.errors import NeuroglotError

_LARGEST_PORT = 65535


class AddressError(NeuroglotError):
    """An address that is malformed, not of this machine, or already in use."""


@dataclass(frozen=True)
class Address:
    """A host and a port.

    >>> str(Address.parse("[::1]:50051"))
    '[::1]:50051'

    Attributes:
        host: a name or an IP address.
        port: the port; 0 for any free port.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `HOST:PORT`, with an IPv6 address in brackets.

        Raises:
            AddressError: the text has another form, or the port is out of range.
        """
        host, _, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not host or (":" in host and not bracketed) or not (port.isascii() and port.isdigit()):
            raise AddressError(f"{text!r} is not an address: give HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051")
        if int(port) > _LARGEST_PORT:
            raise AddressError(f"{text!r} is not an address: ports go from 0 (any free port) to {_LARGEST_PORT}")
        return cls(host[1:-1] if bracketed else host, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address. Names other than `localhost` count as non-loopback."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def check_free(self) -> None:
        """Try to bind, because gRPC does not report why it cannot.

        Raises:
            AddressError: another program listens there, or the address is not of this machine.
        """
        try:
            candidates = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except socket.gaierror as error:
            raise AddressError(f"cannot listen on {self}: {self.host!r} has no address ({error.strerror})") from None
        failures = [
            failure for *kind, _, address in candidates if (failure := _bind_failure(kind, address)) is not None
        ]
        if any(failure.errno == errno.EADDRINUSE for failure in failures):
            raise AddressError(
                f"{self} is taken, another program listens there: give another port, or 0 for a free one"
            )
        if len(failures) == len(candidates):
            reason = failures[0].strerror
            raise AddressError(f"cannot listen on {self} ({reason}): give an address of this machine")


def _bind_failure(kind: list[int], address: tuple[object, ...]) -> OSError | None:
    """Return why a socket cannot be bound to an address; None if it can."""
    try:
        with socket.socket(*kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None
