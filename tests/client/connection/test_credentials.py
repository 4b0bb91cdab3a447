"""Certificates and tokens: what is shown to whom, and what is refused before anything is sent."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import trustme

import neuroglot as ng
from neuroglot.connection.credentials import Credentials


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEM files: `roots`, and the client's `certificate` and `key`."""
    folder = tmp_path_factory.mktemp("certificates")
    mine = authority.issue_cert(common_name="me")
    contents = {
        "roots": authority.cert_pem.bytes(),
        "certificate": mine.cert_chain_pems[0].bytes(),
        "key": mine.private_key_pem.bytes(),
    }
    paths = {name: folder / f"{name}.pem" for name in contents}
    for name, path in paths.items():
        path.write_bytes(contents[name])
    return paths


@pytest.fixture
def shown(serve, scripted, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch):
    """Starts servers, and tells what each call showed them: its metadata, and the names in its certificate."""
    for variable in ("NEUROGLOT_TOKEN", "NEUROGLOT_ROOT_CERTIFICATES"):
        monkeypatch.delenv(variable, raising=False)
    calls: list[tuple[dict[str, str], list[bytes]]] = []

    class Notes(scripted):
        def list_models(self, request, context):
            calls.append(
                (dict(context.invocation_metadata()), list(context.auth_context().get("x509_common_name", [])))
            )
            return super().list_models(request, context)

    def start(tls: bool = True, ask_for_certificate: bool = False) -> str:
        certificate = authority.issue_cert("localhost")
        pair = (certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())
        roots = authority.cert_pem.bytes() if ask_for_certificate else None
        credentials = grpc.ssl_server_credentials([pair], roots, ask_for_certificate) if tls else None
        return serve(Notes(), "localhost:0", credentials)

    start.calls = calls
    return start


def test_a_server_that_is_known_by_its_certificate(shown, files) -> None:
    address = shown()
    with ng.connect(address, root_certificates=files["roots"]) as client:
        assert client.model().name == "small"
        assert repr(client) == f"<Client of {address}>"
    with ng.connect(f"https://{address}", root_certificates=str(files["roots"])) as client:
        assert client.models()


def refusal(target: str, **options: object) -> str:
    """What a connection that does not come about is told, in one line."""
    with pytest.raises(ng.UnavailableError) as caught:
        ng.connect(target, timeout=5, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_server_that_is_not_known_is_not_spoken_to(shown) -> None:
    said = refusal(f"https://{shown()}")
    assert "is not trusted: " in said
    assert "certificate in certificate chain" in said or "local issuer" in said
    assert shown.calls == []


def test_a_client_without_tls_is_told_that_the_server_speaks_it(shown) -> None:
    address = shown()
    assert f"the server at {address} speaks TLS, and this client was not told to" in refusal(address)
    assert f"connect to https://{address}" in refusal(address)
    assert "speaks TLS" in refusal(shown(ask_for_certificate=True))
    assert shown.calls == []


def test_a_client_with_tls_is_told_that_the_server_does_not_speak_it(shown, files) -> None:
    address = shown(tls=False)
    for options in ({}, {"root_certificates": files["roots"]}):
        assert f"the server at {address} does not speak TLS" in refusal(f"https://{address}", **options)
    assert shown.calls == []


def test_why_a_certificate_is_not_trusted(serve, scripted, authority: trustme.CA, files) -> None:
    def server(*names: str, **validity: object) -> str:
        issued = authority.issue_cert(*names, **validity)
        pair = (issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())
        return serve(scripted(), "localhost:0", grpc.ssl_server_credentials([pair]))

    roots = {"root_certificates": files["roots"]}
    assert "Hostname mismatch, certificate is not valid for 'localhost'" in refusal(server("elsewhere.org"), **roots)
    past = datetime.now(UTC) - timedelta(days=1)
    expired = server("localhost", not_before=past - timedelta(days=9), not_after=past)
    assert "is not trusted: certificate has expired" in refusal(expired, **roots)


def test_a_server_that_asks_for_a_certificate_and_gets_none_or_another(shown, files, tmp_path: Path) -> None:
    address = shown(ask_for_certificate=True)
    roots = {"root_certificates": files["roots"]}
    assert "closes connections that show no certificate of the client: give one and its key" in refusal(
        address, **roots
    )
    stranger = trustme.CA().issue_cert(common_name="me")
    stranger.cert_chain_pems[0].write_to_path(tmp_path / "me.pem")
    stranger.private_key_pem.write_to_path(tmp_path / "me.key")
    said = refusal(address, **roots, certificate=tmp_path / "me.pem", key=tmp_path / "me.key")
    assert "did not accept the one given" in said


def test_a_server_that_is_not_there_is_no_question_of_tls(files) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"localhost:{free.getsockname()[1]}"
    for target in (address, f"https://{address}"):
        assert "is a server running there?" in refusal(target)


def test_a_client_that_shows_a_certificate(shown, files) -> None:
    address = shown(ask_for_certificate=True)
    with ng.connect(
        address, root_certificates=files["roots"], certificate=files["certificate"], key=files["key"]
    ) as client:
        client.models()
    assert shown.calls[-1][1] == [b"me"]


def test_a_token_goes_with_every_call(shown, files) -> None:
    with ng.connect(shown(), root_certificates=files["roots"], token="s3cret") as client:
        client.models()
    assert [metadata["authorization"] for metadata, _ in shown.calls] == ["Bearer s3cret"] * 2


def test_a_token_may_go_in_the_clear_on_this_machine(shown) -> None:
    with ng.connect(shown(tls=False), token="s3cret"):
        assert shown.calls[-1][0]["authorization"] == "Bearer s3cret"
    with ng.connect(shown(tls=False)):
        assert "authorization" not in shown.calls[-1][0]


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_a_token_does_not_cross_the_network_in_the_clear(shown, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    arguments = {"token": "s3cret"} if given == "argument" else {}
    if given == "environment":
        monkeypatch.setenv("NEUROGLOT_TOKEN", "s3cret")
    source = "token=" if given == "argument" else "NEUROGLOT_TOKEN"
    said = f"the token of {source} would go to gpu-7:50051 in the clear.*connect to https://gpu-7:50051, give"
    with pytest.raises(ng.InvalidTargetError, match=said) as raised:
        ng.connect("gpu-7:50051", **arguments)
    assert "s3cret" not in str(raised.value)


def test_the_environment_says_what_is_not_given(shown, files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROGLOT_TOKEN", "theirs")
    monkeypatch.setenv("NEUROGLOT_ROOT_CERTIFICATES", str(files["roots"]))
    address = shown()
    with ng.connect(address):
        assert shown.calls[-1][0]["authorization"] == "Bearer theirs"
    with ng.connect(address, token="mine"):
        assert shown.calls[-1][0]["authorization"] == "Bearer mine"
    with ng.connect(address, token=""):
        assert "authorization" not in shown.calls[-1][0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"root_certificates": "/nowhere/ca.pem"}, "the root certificates in /nowhere/ca.pem cannot be read: No such"),
        ({"certificate": "CERTIFICATE"}, "a certificate was given without its key: give both, or neither"),
        ({"key": "KEY"}, "a key was given without its certificate"),
        ({"root_certificates": __file__ + "c"}, "cannot be read"),
        ({"token": "with a space"}, "the token of token= has spaces, line ends or letters beyond ASCII"),
        ({"token": "line\n"}, "has spaces, line ends"),
    ],
)
def test_what_makes_no_sense_is_refused(files, arguments: dict[str, str], said: str) -> None:
    places = {"CERTIFICATE": files["certificate"], "KEY": files["key"]}
    with pytest.raises(ng.InvalidTargetError, match=said):
        ng.connect("localhost:1", **{name: places.get(one, one) for name, one in arguments.items()})


def test_a_file_that_is_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("roots")
    with pytest.raises(ng.InvalidTargetError, match=r"ca\.pem holds no root certificates: give a PEM file"):
        ng.connect("localhost:1", root_certificates=tmp_path / "ca.pem")


def test_secrets_are_not_shown() -> None:
    assert "s3cret" not in repr(Credentials(key=b"s3cret", token="s3cret"))
