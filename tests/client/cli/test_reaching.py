"""Commands reach servers that ask who calls, and say when a server is away."""

from __future__ import annotations

import io
from pathlib import Path

import grpc
import pytest
import trustme
from click.testing import CliRunner
from rich.console import Console

import neuroglot as ng
from neuroglot.cli import main
from neuroglot.cli.progress import GroupProgress


@pytest.fixture
def guarded(serve, scripted, tmp_path: Path) -> tuple[str, Path, list[str]]:
    """A server that speaks TLS: its address, the file with its root certificates, and the tokens that it was shown."""
    tokens: list[str] = []

    class Notes(scripted):
        def list_models(self, request, context):
            tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
            return super().list_models(request, context)

    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    pair = (certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return serve(Notes(), "localhost:0", grpc.ssl_server_credentials([pair])), tmp_path / "ca.pem", tokens


def test_models_of_a_server_that_asks_for_a_token(guarded, tmp_path: Path) -> None:
    address, roots, tokens = guarded
    (tmp_path / "token").write_text("s3cret\n")
    arguments = ["models", address, "--root-certificates", str(roots), "--token-file", str(tmp_path / "token")]
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 0, ended.output
    assert "small" in ended.stdout
    assert set(tokens) == {"Bearer s3cret"}


def test_the_environment_will_do(guarded) -> None:
    address, roots, tokens = guarded
    environment = {"NEUROGLOT_ROOT_CERTIFICATES": str(roots), "NEUROGLOT_TOKEN": "s3cret"}
    ended = CliRunner().invoke(main, ["models", address], env=environment)
    assert ended.exit_code == 0, ended.output
    assert set(tokens) == {"Bearer s3cret"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--token-file", "/nowhere"], "File '/nowhere' does not exist"),
        (["--certificate", __file__], "a certificate was given without its key"),
    ],
)
@pytest.mark.parametrize("command", [["models", "h:1"], ["analyze", "capitals", "--model", "m", "--server", "h:1"]])
def test_bad_input_is_one_line(command: list[str], arguments: list[str], said: str, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")] if command[0] == "analyze" else []
    ended = CliRunner().invoke(main, [*command, *out, *arguments])
    assert ended.exit_code in (1, 2)
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def shown(progress: GroupProgress) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(progress.bar)
    return console.file.getvalue()


def test_progress_says_that_it_reconnects_until_the_next_answer() -> None:
    away, full = ng.UnavailableError("UNAVAILABLE", "gone"), ng.OverloadedError("RESOURCE_EXHAUSTED", "full")
    with GroupProgress(Console(file=io.StringIO())) as progress:
        progress.update(1, 0, 9)
        assert "reconnecting" not in shown(progress)
        progress.waits(away, 2.0)
        assert "no server, reconnecting" in shown(progress)
        progress.waits(full, 2.0)
        assert "the server is full, waiting" in shown(progress)
        progress.update(2, 0, 9)
        assert "2/9" in shown(progress)
        assert "waiting" not in shown(progress)


def test_trouble_before_the_first_answer_is_told_as_well() -> None:
    console = Console(file=io.StringIO(), width=200)
    with GroupProgress(console) as progress:
        progress.waits(ng.UnavailableError("UNAVAILABLE", "gone [for good]"), 2.0)
    assert console.file.getvalue() == "no server, reconnecting (gone [for good])\n"
