"""Diagnosis of failed connections: whether the server speaks TLS, and whether its certificate is trusted.

gRPC reports only "Socket closed" or a routine of its TLS library. So after a failure this module opens a connection of
its own, and sends nothing but the HTTP/2 preface.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack

from neuroglot.connection.credentials import Credentials

_SECONDS = 2.0
"""Timeout of each socket operation, in seconds."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"  # and empty settings: RFC 9113, section 3.4
_FRAME_HEADER_BYTES = 9
_SETTINGS = 4
"""The type of the first frame that a server sends, in the fourth byte of its header."""


def tls_problem(address: str, credentials: Credentials | None) -> str:
    """Explain why a client and the server at an address cannot agree on TLS, and what to do.

    Args:
        address: `host:port`.
        credentials: the client's TLS credentials; None if it does not use TLS.

    Returns:
        One line; empty if the two agree, or if no server answers.
    """
    host, _, port = address.rpartition(":")
    where = host.removeprefix("[").removesuffix("]"), int(port)
    try:
        if credentials is None:
            return _without_tls(address, where)
        return _with_tls(address, where, credentials)
    except OSError:
        return ""


def _without_tls(address: str, where: tuple[str, int]) -> str:
    try:
        with _handshake(where, _context(None)):
            pass
    except ssl.SSLError:
        return ""
    return (
        f"the server at {address} speaks TLS, and this client was not told to: connect to https://{address}, with its "
        "root certificates (root_certificates=, --root-certificates) unless a public authority signed its certificate"
    )


def _with_tls(address: str, where: tuple[str, int], credentials: Credentials) -> str:
    try:
        with _handshake(where, _context(credentials)) as connection:
            return _refusal(address, connection, credentials)
    except ssl.SSLCertVerificationError as error:
        return (
            f"the certificate of the server at {address} is not trusted: {error.verify_message}. Give the certificates "
            "of the authority that signed it (root_certificates=, --root-certificates), and the name that it is for"
        )
    except ssl.SSLError:
        if not _speaks_http2_in_the_clear(where):
            return ""
    return (
        f"the server at {address} does not speak TLS, and this client was told to: connect to {address} without "
        "https:// and without certificates, or start the server with --tls-certificate and --tls-key"
    )


def _refusal(address: str, connection: ssl.SSLSocket, credentials: Credentials) -> str:
    """Explain why a server closes the connection after the handshake, where TLS 1.3 rejects client certificates."""
    try:
        connection.sendall(_PREFACE)
        if connection.recv(1):
            return ""
    except (ssl.SSLError, ConnectionError):  # an alert, or closed without one
        pass
    if credentials.certificate is None:
        return (
            f"the server at {address} closes connections that show no certificate of the client: give one and its key "
            "(certificate= and key=, --certificate and --key)"
        )
    return (
        f"the server at {address} asks for a certificate of the client and did not accept the one given: give one that "
        "has not expired, of an authority in the server's --tls-client-ca"
    )


def _context(credentials: Credentials | None) -> ssl.SSLContext:
    """Make a context like gRPC's: TLS 1.2 or later, HTTP/2. Without credentials any certificate is accepted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if credentials is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif credentials.root_certificates is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(cadata=credentials.root_certificates.decode("ascii", "ignore"))
    return context


def _handshake(where: tuple[str, int], context: ssl.SSLContext) -> ssl.SSLSocket:
    """Open a TLS connection.

    Raises:
        SSLError: the server speaks no TLS, or its certificate is not trusted.
        OSError: no connection, or no answer in time.
    """
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(where, _SECONDS))
        secured = context.wrap_socket(connection, server_hostname=where[0])
        stack.pop_all()  # `secured` now owns the socket
    return secured


def _speaks_http2_in_the_clear(where: tuple[str, int]) -> bool:
    with socket.create_connection(where, _SECONDS) as connection:
        connection.sendall(_PREFACE)
        header = connection.recv(_FRAME_HEADER_BYTES)
    return len(header) == _FRAME_HEADER_BYTES and header[3] == _SETTINGS
