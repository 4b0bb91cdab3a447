"""`neuroglot verify --probe`: a running server against what the export recorded."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import neuroglot as ng
from neuroglot.cli import main
from neuroglot.definitions.bundle import PROBE
from neuroglot.definitions.probe import from_json, to_json
from neuroglot_server.core import Settings
from neuroglot_server.lifecycle import LocalServer, start_in_thread
from tests.checkpoints import RandomModel
from tests.exporter.damage import damaged_copy


@pytest.fixture(scope="module")
def server(bloom_bundle: Path, random_model: Callable[[str], RandomModel]) -> Iterator[LocalServer]:
    with start_in_thread([bloom_bundle, random_model("mt0").bundle], Settings(threads=1)) as running:
        yield running


def verify_probe(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


@pytest.mark.parametrize("name", ["random-bloom", "random-mt0"])
def test_a_server_that_holds(server: LocalServer, name: str) -> None:
    result = verify_probe("--probe", server.target, "--model", name)
    assert result.exit_code == 0, result.output
    assert f"model {name}: bundle " in result.stdout
    assert "as the server tells" in result.stdout
    assert re.search(r"decoder: \d+ neurons over all rows, 0 active in one and not in the other", result.stdout)
    assert "log-probabilities: " in result.stdout


def test_with_the_bundle_here(server: LocalServer, bloom_bundle: Path) -> None:
    result = verify_probe(bloom_bundle, "--probe", server.target, "--model", "random-bloom")
    assert result.exit_code == 0, result.output
    assert f"recorded by transformers, in {bloom_bundle}" in result.stdout


def test_an_answer_that_differs(server: LocalServer, bloom_bundle: Path, tmp_path: Path) -> None:
    def damage(copy: Path) -> None:
        probe = from_json((copy / PROBE).read_text())
        probe.expected.variants[2].predictions[1].gold_log_probability += 0.1
        (copy / PROBE).write_text(to_json(probe))

    bundle = damaged_copy(bloom_bundle, tmp_path / "changed", damage)
    result = verify_probe(bundle, "--probe", server.target, "--model", "random-bloom")
    assert result.exit_code == 1
    assert "largest difference 1.0e-01 nats" in result.stdout
    last = result.stderr.splitlines()[-1]
    assert last.startswith(
        "Error: the answer is not what the export recorded: the log-probability of the answer of row 'de' under "
        "'add.decoder' is "
    )


def test_another_bundle_than_the_server_s(server: LocalServer, random_model: Callable[[str], RandomModel]) -> None:
    result = verify_probe(random_model("mt0").bundle, "--probe", server.target, "--model", "random-bloom")
    assert result.exit_code == 1
    assert "give the bundle that it serves" in result.stderr


def test_a_bundle_without_a_probe(bloom_bundle: Path, tmp_path: Path) -> None:
    bundle = damaged_copy(bloom_bundle, tmp_path / "old", lambda copy: (copy / PROBE).unlink())
    with start_in_thread([bundle], Settings(threads=1)) as running:
        result = verify_probe("--probe", running.target)
    assert result.exit_code == 1
    assert "the bundle of 'old' has no probe: export the model again" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --source CHECKPOINT, for a BUNDLE, or --probe HOST:PORT"),
        (("b", "--source", "s", "--probe", "h:1"), "give either --source CHECKPOINT"),
        (("--source", "s"), "give the BUNDLE"),
        (("--probe", "h:1", "--json", "-"), "--json goes with --source alone"),
        (("b", "--source", "s", "--model", "m"), "--model goes with --probe alone"),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple[str, ...], message: str) -> None:
    result = verify_probe(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_no_server() -> None:
    result = verify_probe("--probe", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "no answer from 127.0.0.1:1" in result.stderr


def test_it_needs_the_client_alone(server: LocalServer) -> None:
    """In a process that cannot import what the client does not need."""
    blocked = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers", "rich", "neuroglot_exporter")
    program = (
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        "sys.modules['neuroglot_server'] = None\n"
        "from neuroglot.cli import main\nmain()"
    )
    command = [sys.executable, "-c", program, "verify", "--probe", server.target, "--model", "random-bloom"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "log-probabilities" in done.stdout


def test_the_python_client(server: LocalServer) -> None:
    with ng.connect(server.target) as client:
        model = client.model("random-bloom")
        probe = model.probe()
        assert probe is not None
        compared = model.check_probe(probe)
        assert not compared.differences
        assert 0 <= compared.largest_difference <= compared.allowed_difference
