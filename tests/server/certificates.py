"""Certificates for a loopback server and its clients, issued by a test authority."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import trustme

from neuroglot_server.config.deployment import Certificates


class Authority(NamedTuple):
    """A certificate authority and the server certificate that it issued."""

    ca: trustme.CA
    server: Certificates

    @property
    def root(self) -> bytes:
        return self.ca.cert_pem.bytes()

    def client(self, name: str | None) -> tuple[bytes, bytes]:
        """Issue a client's key and certificate."""
        issued = self.ca.issue_cert("client@example.org", common_name=name)
        return issued.private_key_pem.bytes(), b"".join(part.bytes() for part in issued.cert_chain_pems)


def authority(folder: Path) -> Authority:
    """Create an authority and a loopback server's TLS files, which require client certificates of that authority."""
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1", "localhost")
    files = Certificates(folder / "server.pem", folder / "server.key", folder / "ca.pem")
    files.certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    files.key.write_bytes(issued.private_key_pem.bytes())
    ca.cert_pem.write_to_path(folder / "ca.pem")
    return Authority(ca, files)
