"""Credentials of a client: TLS certificates and bearer tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from neuroglot.errors import InvalidTargetError

TOKEN = "NEUROGLOT_TOKEN"  # noqa: S105 - the name of a variable, not a token
ROOT_CERTIFICATES = "NEUROGLOT_ROOT_CERTIFICATES"


@dataclass(frozen=True)
class Credentials:
    """TLS certificates and a bearer token.

    Attributes:
        root_certificates: root certificates that the server's certificate is verified against, PEM; None for gRPC's
            own.
        certificate: the client's certificate, PEM, for servers that require one; None for none.
        key: private key of `certificate`, PEM; None without a certificate.
        token: bearer token that identifies the caller; empty for none.
        token_from: source of the token, for messages.
    """

    root_certificates: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)
    token_from: str = ""

    @classmethod
    def read(
        cls,
        root_certificates: str | Path | None,
        certificate: str | Path | None,
        key: str | Path | None,
        token: str | None,
        environment: Mapping[str, str] = os.environ,
    ) -> Self:
        """Read files, and the environment for what was not given: NEUROGLOT_ROOT_CERTIFICATES and NEUROGLOT_TOKEN.

        Raises:
            InvalidTargetError: a file cannot be read, a certificate is given without its key or a key without its
                certificate, or the token has characters other than printable ASCII.
        """
        if (certificate is None) != (key is None):
            given, lacking = ("certificate", "key") if key is None else ("key", "certificate")
            raise InvalidTargetError(f"a {given} was given without its {lacking}: give both, or neither")
        roots = root_certificates if root_certificates is not None else environment.get(ROOT_CERTIFICATES) or None
        shown, token_from = (token, "token=") if token is not None else (environment.get(TOKEN, ""), TOKEN)
        if not all("!" <= character <= "~" for character in shown):
            raise InvalidTargetError(
                f"the token of {token_from} has spaces, line ends or letters beyond ASCII in it: give the token alone"
            )
        return cls(
            root_certificates=None if roots is None else _read("root certificates", roots),
            certificate=None if certificate is None else _read("certificate", certificate),
            key=None if key is None else _read("key", key),
            token=shown,
            token_from=token_from,
        )

    @property
    def asks_for_tls(self) -> bool:
        """Whether the credentials include certificates, which are used with TLS only."""
        return self.root_certificates is not None or self.certificate is not None


def _read(what: str, path: str | Path) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InvalidTargetError(f"the {what} in {path} cannot be read: {error.strerror}") from None
    if b"-----BEGIN " not in content:
        raise InvalidTargetError(f"{path} holds no {what}: give a PEM file, which has '-----BEGIN ' in it")
    return content
