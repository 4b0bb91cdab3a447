"""Who calls: by a bearer token, by the certificate of the connection, or nobody in particular."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

import grpc

from neuroglot_server.config.tenants import Tenant, Tenants
from neuroglot_server.core import RequestError
from neuroglot_server.transport.tls import common_name

REQUEST_ID_KEY = "x-request-id"
"""Metadata in which a caller may name a request, and in the end of every call its name."""

_PROCESS = secrets.token_hex(4)
"""Begins the ids of this process: random bytes for each would be a call of the system for each."""
_calls = count()

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

_EVERYBODY = Tenant(may_manage_models=True)
"""Whoever reaches a server that does not ask: it listens where its operator trusts whoever can."""


class Unauthenticated(RequestError):
    """The server asks for a token, and there was none that it knows."""


class PermissionDenied(RequestError):
    """The tenant may not do this."""


class Access:
    """Finds the tenant of a call."""

    def __init__(self, tenants: Tenants | None = None, *, client_certificates: bool = False) -> None:
        """Ask for what there is to ask for; by default for nothing.

        Args:
            tenants: those who have tokens, and what each tenant may do.
            client_certificates: whether every connection comes with a certificate: its common name is a tenant's.
        """
        self._tenants = tenants
        self._client_certificates = client_certificates

    def tenant(self, metadata: Mapping[str, str | bytes], certificate: Mapping[str, Iterable[bytes]]) -> Tenant:
        """Whose call it is. A token counts before a certificate.

        Args:
            metadata: the call's.
            certificate: what gRPC says of the connection (`auth_context`).

        Raises:
            Unauthenticated: there is no token, or one that is not known.
        """
        token = _bearer(metadata)
        if self._tenants is not None and token:
            tenant = self._tenants.of_token(token)
            if tenant is None:
                raise Unauthenticated("the token is not known here: ask those who run the server for one")
            return tenant
        if self._client_certificates:
            name = _name_in(certificate)
            return self._tenants.named(name) if self._tenants is not None else Tenant(name)
        if self._tenants is not None:
            raise Unauthenticated("this server asks for a token: send it as metadata, `authorization: Bearer TOKEN`")
        return _EVERYBODY


def request_id(metadata: Mapping[str, str | bytes]) -> str:
    """The id that the caller gave its request, if it is fit to be written into a log, or else a new one."""
    given = metadata.get(REQUEST_ID_KEY, "")
    return given if isinstance(given, str) and _SANE_REQUEST_ID.fullmatch(given) else f"{_PROCESS}{next(_calls):08x}"


def metadata_of(context: grpc.aio.ServicerContext[Any, Any]) -> dict[str, str | bytes]:
    """The metadata of a call; of several values of one key the last."""
    return dict(context.invocation_metadata() or ())


def _bearer(metadata: Mapping[str, str | bytes]) -> str:
    """The token that a call shows; empty for none."""
    scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _name_in(connection: Mapping[str, Iterable[bytes]]) -> str:
    """The common name of the client's certificate.

    Raises:
        Unauthenticated: it has none that can be a tenant's name.
    """
    name = common_name(b"".join(connection.get("x509_pem_cert", ())))
    if not name:
        raise Unauthenticated(
            "the client's certificate does not say whose it is: expected exactly one common name, of printable "
            "characters; make one that has it"
        )
    return name
