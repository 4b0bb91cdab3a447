"""Certificates for a loopback server and for clients, from an authority of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import trustme

from neuroglot_server.config.deployment import Certificates


class Authority(NamedTuple):
    """An authority and what it has signed."""

    ca: trustme.CA
    server: Certificates

    @property
    def root(self) -> bytes:
        return self.ca.cert_pem.bytes()

    def client(self, name: str | None) -> tuple[bytes, bytes]:
        """A client's key and certificate."""
        issued = self.ca.issue_cert("client@example.org", common_name=name)
        return issued.private_key_pem.bytes(), b"".join(part.bytes() for part in issued.cert_chain_pems)


def authority(folder: Path) -> Authority:
    """A new authority, with the files of a server on this machine; clients are asked for certificates of its own."""
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1", "localhost")
    files = Certificates(folder / "server.pem", folder / "server.key", folder / "ca.pem")
    files.certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    files.key.write_bytes(issued.private_key_pem.bytes())
    ca.cert_pem.write_to_path(folder / "ca.pem")
    return Authority(ca, files)
