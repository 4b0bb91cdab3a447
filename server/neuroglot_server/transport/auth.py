"""Identifies the tenant of a call: by bearer token, by client certificate, or anonymous."""

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
"""Metadata key of the request id: optional in a request, always present in the trailing metadata of a call."""

_PROCESS = secrets.token_hex(4)
"""Prefix of the ids made by this process: random bytes for each id would cost a system call each."""
_calls = count()

_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

_ANONYMOUS = Tenant(may_manage_models=True)
"""The tenant of every call to a server without authentication: its operator trusts all who can reach its address."""


class Unauthenticated(RequestError):
    """The server requires authentication, and the call has no valid token or certificate."""


class PermissionDenied(RequestError):
    """The tenant lacks the permission for this method."""


class Access:
    """Finds the tenant of a call."""

    def __init__(self, tenants: Tenants | None = None, *, client_certificates: bool = False) -> None:
        """Choose how calls are authenticated; by default they are not.

        Args:
            tenants: tenants with their tokens and permissions; None for no tokens.
            client_certificates: whether every connection has a client certificate, whose common name is the tenant's.
        """
        self._tenants = tenants
        self._client_certificates = client_certificates

    def tenant(self, metadata: Mapping[str, str | bytes], certificate: Mapping[str, Iterable[bytes]]) -> Tenant:
        """Return the tenant of a call. A token takes precedence over a certificate.

        Args:
            metadata: the call's metadata.
            certificate: gRPC's `auth_context` of the connection.

        Raises:
            Unauthenticated: the token is missing or unknown, or the certificate has no usable name.
        """
        token = _bearer(metadata)
        if self._tenants is not None and token:
            tenant = self._tenants.of_token(token)
            if tenant is None:
                raise Unauthenticated("unknown token: ask the server's operator for one")
            return tenant
        if self._client_certificates:
            name = _name_in(certificate)
            return self._tenants.named(name) if self._tenants is not None else Tenant(name)
        if self._tenants is not None:
            raise Unauthenticated("this server requires a token: send it as metadata, `authorization: Bearer TOKEN`")
        return _ANONYMOUS


def request_id(metadata: Mapping[str, str | bytes]) -> str:
    """Return the caller's request id if it is safe to log, or else a new one."""
    given = metadata.get(REQUEST_ID_KEY, "")
    return given if isinstance(given, str) and _VALID_REQUEST_ID.fullmatch(given) else f"{_PROCESS}{next(_calls):08x}"


def metadata_of(context: grpc.aio.ServicerContext[Any, Any]) -> dict[str, str | bytes]:
    """Return the metadata of a call; of several values of one key, the last."""
    return dict(context.invocation_metadata() or ())


def _bearer(metadata: Mapping[str, str | bytes]) -> str:
    """Return the bearer token of a call; empty for none."""
    scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _name_in(connection: Mapping[str, Iterable[bytes]]) -> str:
    """Return the common name of the client's certificate.

    Raises:
        Unauthenticated: it has none that is usable as a tenant's name.
    """
    name = common_name(b"".join(connection.get("x509_pem_cert", ())))
    if not name:
        raise Unauthenticated(
            "the client's certificate has no usable name: expected exactly one common name, of printable characters; "
            "issue a certificate that has one"
        )
    return name
