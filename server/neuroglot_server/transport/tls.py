"""TLS: the server's certificate, read again when its files change; and the name in a client's certificate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple, TypeVar, cast

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from neuroglot.errors import NeuroglotError
from neuroglot_server.config.deployment import Certificates
from neuroglot_server.config.file_changes import FileChanges

_logger = logging.getLogger(__name__)

_WARN_BEFORE_EXPIRY = timedelta(days=14)
_MOST_PARSED_CERTIFICATES = 1024

_Parsed = TypeVar("_Parsed")


class CertificateError(NeuroglotError):
    """Files for TLS that cannot be read, or do not belong together."""


class _Contents(NamedTuple):
    """The files' contents in PEM form, checked.

    Attributes:
        certificate: the server's, and those between it and the authority.
        key: its private key.
        client_ca: authorities that clients' certificates are checked against; None where none is asked for.
        expires: when the first certificate of the chain expires.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime

    @property
    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


class ServerTls:
    """The credentials of a server's port, which follow the files: new connections use what the files hold now.

    While new files are broken, connections go on with the last sound ones, and the log says why.

    Attributes:
        credentials: what a port is opened with. Hold this object for as long as the port is open.
    """

    def __init__(self, files: Certificates, expires_at: Callable[[datetime], None] | None = None) -> None:
        """Read the files.

        Args:
            files: in PEM form.
            expires_at: is told when the certificate expires, now and whenever it is replaced, on any thread.

        Raises:
            CertificateError: a file cannot be read, or the key is another certificate's.
        """
        self._files = files
        self._expires_at = expires_at
        self._changes = FileChanges(file for file in files if file is not None)
        self._lock = Lock()  # handshakes ask from threads of gRPC
        contents = _read(files)
        self._note_expiry(contents)
        self.credentials = grpc.dynamic_ssl_server_credentials(
            contents.configuration,
            cast("Callable[[], grpc.ServerCertificateConfiguration]", self._replacement),  # None is not in gRPC's stubs
            require_client_authentication=files.client_ca is not None,
        )

    def _replacement(self) -> grpc.ServerCertificateConfiguration | None:
        """What the next handshakes use; None for what they used before."""
        with self._lock:
            if not self._changes.found():
                return None
            try:
                contents = _read(self._files)
            except CertificateError as error:
                _logger.error("%s: the server keeps its previous certificate", error)
                return None
            _logger.info("read %s again", self._files.certificate)
            self._note_expiry(contents)
            return contents.configuration

    def _note_expiry(self, contents: _Contents) -> None:
        left = contents.expires - datetime.now(UTC)
        if left <= timedelta():
            _logger.warning(
                "the certificate in %s expired on %s: clients refuse it; replace the file",
                self._files.certificate,
                f"{contents.expires:%Y-%m-%d %H:%M} UTC",
            )
        elif left < _WARN_BEFORE_EXPIRY:
            _logger.warning(
                "the certificate in %s expires on %s, in %.1f days: replace the file, without a restart",
                self._files.certificate,
                f"{contents.expires:%Y-%m-%d %H:%M} UTC",
                left / timedelta(days=1),
            )
        if self._expires_at is not None:
            self._expires_at(contents.expires)


def _read(files: Certificates) -> _Contents:
    """Read the files and check that they belong together.

    Raises:
        CertificateError: a file cannot be read, or the key is another certificate's.
    """
    try:
        certificate, key = files.certificate.read_bytes(), files.key.read_bytes()
        client_ca = None if files.client_ca is None else files.client_ca.read_bytes()
    except OSError as error:
        raise CertificateError(f"cannot read {error.filename}: {error.strerror}") from None
    chain = _parsed(files.certificate, "a certificate", x509.load_pem_x509_certificates, certificate)
    if client_ca is not None:
        _parsed(files.client_ca, "a certificate", x509.load_pem_x509_certificates, client_ca)
    private = _parsed(files.key, "a private key without a password", partial(load_pem_private_key, password=None), key)
    if private.public_key() != chain[0].public_key():
        raise CertificateError(
            f"{files.key} is not the key of the first certificate in {files.certificate}: give the files of one server"
        )
    return _Contents(certificate, key, client_ca, min(one.not_valid_after_utc for one in chain))


def _parsed(file: Path | None, expected: str, parse: Callable[[bytes], _Parsed], content: bytes) -> _Parsed:
    """What a file holds.

    Raises:
        CertificateError: something else than expected; the parser's reasons are its ValueError, its TypeError for a
            key with a password, and UnsupportedAlgorithm.
    """
    try:
        return parse(content)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = " ".join(str(error).split())
        raise CertificateError(f"{file} does not hold {expected} in PEM form: {reason}") from None


@lru_cache(_MOST_PARSED_CERTIFICATES)
def common_name(certificate: bytes) -> str:
    """The common name of a client's certificate; empty where it has none, several, or one with unprintable characters.

    The name is read from the certificate itself: gRPC's own property ends at the first NUL, so that the certificate of
    "alice<NUL>.example.org" would pass for alice's.

    Args:
        certificate: in PEM form, as gRPC has it in `auth_context` under `x509_pem_cert`.
    """
    try:
        subject = x509.load_pem_x509_certificate(certificate).subject
        names = [attribute.value for attribute in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except ValueError:
        return ""
    if len(names) != 1 or not isinstance(names[0], str) or not names[0].isprintable():
        return ""
    return names[0]
