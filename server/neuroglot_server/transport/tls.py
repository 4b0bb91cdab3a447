"""TLS: the server's certificate, reloaded when its files change; and the common name in a client's certificate."""

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
_MAX_PARSED_CERTIFICATES = 1024

_Parsed = TypeVar("_Parsed")


class CertificateError(NeuroglotError):
    """TLS files cannot be read, or do not belong together."""


class _Contents(NamedTuple):
    """Validated contents of the TLS files, as PEM.

    Attributes:
        certificate: the server's certificate chain, without the root.
        key: its private key.
        client_ca: authorities that client certificates are verified against; None where clients need none.
        expires: the earliest expiry in the chain.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime

    @property
    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


class ServerTls:
    """Credentials of a server's port that follow the files: new connections use the files' present contents.

    While the files are invalid, new connections use the last valid contents, and the log has the reason.

    Attributes:
        credentials: gRPC credentials for the port. Keep this object for as long as the port is open.
    """

    def __init__(self, files: Certificates, expires_at: Callable[[datetime], None] | None = None) -> None:
        """Read the files.

        Args:
            files: PEM files.
            expires_at: called with the certificate's expiry, now and at each reload, on any thread.

        Raises:
            CertificateError: a file cannot be read, or the key does not match the certificate.
        """
        self._files = files
        self._expires_at = expires_at
        self._changes = FileChanges(file for file in files if file is not None)
        self._lock = Lock()  # gRPC calls `_replacement` from its own threads, at handshakes
        contents = _read(files)
        self._note_expiry(contents)
        self.credentials = grpc.dynamic_ssl_server_credentials(
            contents.configuration,
            cast("Callable[[], grpc.ServerCertificateConfiguration]", self._replacement),  # None is not in gRPC's stubs
            require_client_authentication=files.client_ca is not None,
        )

    def _replacement(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the configuration for the next handshakes; None to keep the present one."""
        with self._lock:
            if not self._changes.found():
                return None
            try:
                contents = _read(self._files)
            except CertificateError as error:
                _logger.error("%s: the server keeps its previous certificate", error)
                return None
            _logger.info("reloaded %s", self._files.certificate)
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
        CertificateError: a file cannot be read, or the key does not match the certificate.
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
    return _Contents(certificate, key, client_ca, min(link.not_valid_after_utc for link in chain))


def _parsed(file: Path | None, expected: str, parse: Callable[[bytes], _Parsed], content: bytes) -> _Parsed:
    """Parse the content of a file.

    Raises:
        CertificateError: the file does not hold what is expected; parsers raise ValueError, TypeError for a key with a
            password, or UnsupportedAlgorithm.
    """
    try:
        return parse(content)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = " ".join(str(error).split())
        raise CertificateError(f"{file} does not hold {expected} in PEM form: {reason}") from None


@lru_cache(_MAX_PARSED_CERTIFICATES)
def common_name(certificate: bytes) -> str:
    """Return the common name of a client's certificate; empty for none, several, or unprintable characters.

    The name is read from the certificate itself: gRPC's own property ends at the first NUL, so a certificate for
    "alice<NUL>.example.org" would pass as alice's.

    Args:
        certificate: PEM, as in gRPC's `auth_context` under `x509_pem_cert`.
    """
    try:
        subject = x509.load_pem_x509_certificate(certificate).subject
        names = [attribute.value for attribute in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except ValueError:
        return ""
    if len(names) != 1 or not isinstance(names[0], str) or not names[0].isprintable():
        return ""
    return names[0]
