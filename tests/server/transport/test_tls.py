"""TLS: expiry and reload of the server's certificate, and names in client certificates."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from neuroglot.v1 import service_pb2, service_pb2_grpc
from neuroglot_server.config.address import Address
from neuroglot_server.config.deployment import Certificates, Deployment
from neuroglot_server.telemetry.metrics import Metrics
from neuroglot_server.transport.auth import Access, Unauthenticated
from neuroglot_server.transport.tls import CertificateError, ServerTls, common_name
from tests.server.certificates import Authority, authority
from tests.server.deployed import deployed


@pytest.fixture
def issued(tmp_path: Path) -> Authority:
    return authority(tmp_path)


def issue(authority: Authority, **options: object) -> None:
    """Replace the server's files with a new certificate and its key."""
    new = authority.ca.issue_cert("127.0.0.1", "localhost", **options)
    authority.server.certificate.write_bytes(b"".join(part.bytes() for part in new.cert_chain_pems))
    authority.server.key.write_bytes(new.private_key_pem.bytes())


def expiring(authority: Authority, left: timedelta) -> Certificates:
    """The server's files, with a certificate that expires after the given time."""
    issue(authority, not_after=datetime.now(UTC) + left)
    return authority.server._replace(client_ca=None)


def served_certificate(target: str) -> str:
    """The certificate that a new connection receives, as PEM."""
    host, port = target.split(":")
    return ssl.get_server_certificate((host, int(port)), timeout=5)


def leaf(files: Certificates) -> str:
    return files.certificate.read_text().partition("-----END CERTIFICATE-----")[0]


@pytest.mark.parametrize(
    ("left", "warning"),
    [
        (timedelta(days=13, hours=22), "expires on .*, in 13.9 days: replace the file"),
        (timedelta(seconds=-60), "expired on .*: clients refuse it"),
        (timedelta(days=15), ""),
    ],
)
def test_imminent_expiry_is_logged_and_its_time_is_a_metric(
    issued: Authority, left: timedelta, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    name = "neuroglot_certificate_expiry_timestamp_seconds"
    assert metrics.registry.get_sample_value(name) is None, "without TLS nothing expires"
    with caplog.at_level(logging.WARNING):
        ServerTls(expiring(issued, left), metrics.certificate_expires)
    expected = (datetime.now(UTC) + left).timestamp()
    assert metrics.registry.get_sample_value(name) == pytest.approx(expected, abs=60)
    assert len(caplog.records) == bool(warning)
    assert re.search(warning, caplog.text)


def test_new_files_are_reloaded_and_invalid_ones_are_ignored(
    bloom_bundle: Path, issued: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    files = issued.server._replace(client_ca=None)

    async def served_is(target: str, pem: str) -> None:
        """Wait until new connections receive this certificate; each handshake checks the files."""
        async with asyncio.timeout(10):
            while not (await asyncio.to_thread(served_certificate, target)).startswith(pem):
                await asyncio.sleep(0.1)

    async def conversation() -> None:
        deployment = Deployment({"b": bloom_bundle}, Address("127.0.0.1", 0), certificates=files)
        async with deployed(deployment) as target:
            first = leaf(files)
            await served_is(target, first)
            issue(issued, not_after=datetime.now(UTC) + timedelta(days=3))
            second = leaf(files)
            assert first != second
            await served_is(target, second)
            files.key.write_text("no key")
            while "does not hold a private key" not in caplog.text:
                await served_is(target, second)
            issue(issued)
            await served_is(target, leaf(files))

    with caplog.at_level(logging.INFO):
        asyncio.run(conversation())
    assert "expires on" in caplog.text
    assert caplog.text.count("the server keeps its previous certificate") == 1


@pytest.mark.parametrize("name", ["alice\0.example.org", "alice\n", "a\u202eb", "\x1b[2J"])
def test_a_name_with_unprintable_characters_is_refused(issued: Authority, name: str) -> None:
    with pytest.raises(Unauthenticated, match="expected exactly one common name, of printable characters"):
        Access(client_certificates=True).tenant({}, {"x509_pem_cert": [issued.client(name)[1]]})


def test_a_name_does_not_end_at_a_nul(bloom_bundle: Path, issued: Authority) -> None:
    """Over a real connection: gRPC's own property of the name ends at the NUL."""

    async def conversation() -> None:
        deployment = Deployment({"b": bloom_bundle}, Address("127.0.0.1", 0), certificates=issued.server)
        async with deployed(deployment) as target:
            for name, code in (
                ("alice\0.example.org", grpc.StatusCode.UNAUTHENTICATED),
                ("alice", grpc.StatusCode.OK),
            ):
                shown = grpc.ssl_channel_credentials(issued.root, *issued.client(name))
                options = [("grpc.use_local_subchannel_pool", 1)]
                async with grpc.aio.secure_channel(target, shown, options) as channel:
                    stub = service_pb2_grpc.NeuroglotServiceStub(channel)
                    assert await stub.ListModels(service_pb2.ListModelsRequest(), timeout=10).code() is code

    asyncio.run(conversation())


def test_certificates_without_exactly_one_name_have_no_name(issued: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in ("alice", "bob")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + timedelta(days=1))
    signed = builder.sign(key, hashes.SHA256())
    assert common_name(signed.public_bytes(serialization.Encoding.PEM)) == ""
    assert common_name(issued.client(None)[1]) == ""
    assert common_name(b"no certificate") == ""


@pytest.mark.parametrize("wrong", ["no certificate", "another key", "a password", "no authority", "not there"])
def test_invalid_tls_files_are_reported(tmp_path: Path, issued: Authority, wrong: str) -> None:
    files = issued.server
    match wrong:
        case "no certificate":
            files.certificate.write_text("hello")
            message = r"server.pem does not hold a certificate in PEM form"
        case "another key":
            files.key.write_bytes(issued.client("alice")[0])
            message = "server.key is not the key of the first certificate in .*server.pem"
        case "a password":
            key = ec.generate_private_key(ec.SECP256R1())
            locked = serialization.BestAvailableEncryption(b"secret")
            files.key.write_bytes(
                key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
            )
            message = "server.key does not hold a private key without a password in PEM form"
        case "no authority":
            files.client_ca.write_text("")
            message = "ca.pem does not hold a certificate"
        case _:
            files.key.unlink()
            message = "cannot read .*server.key: No such file"
    with pytest.raises(CertificateError, match=message):
        ServerTls(files)
