from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exporter.hub import COMMIT, serve_hub

UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def hub(bloom_checkpoint: Path) -> Iterator[str]:
    with serve_hub(bloom_checkpoint, "someone/random-bloom", "v1") as endpoint:
        yield endpoint


def run(endpoint: str, cache: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment; the Hub's address is read once, at the start of a process."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache)}
    program, *arguments = map(str, command)
    path = Path(sys.executable).parent / program
    return subprocess.run([path, *arguments], env=environment, capture_output=True, text=True, timeout=60)


FETCH = """
import json, sys
from neuroglot_exporter.checkpoints import find_checkpoint
checkpoint = find_checkpoint(sys.argv[1], sys.argv[2])
print(json.dumps([checkpoint.source, checkpoint.commit, str(checkpoint.fetch())]))
"""


@pytest.fixture(scope="module")
def cache(hub: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache into which the checkpoint was downloaded."""
    folder = tmp_path_factory.mktemp("cache")
    done = run(hub, folder, "python", "-c", FETCH, "someone/random-bloom", "v1")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("endpoint", "revision"), [("", "v1"), ("", COMMIT), (UNREACHABLE, COMMIT)])
def test_a_revision_is_a_commit_and_its_files(
    hub: str, cache: Path, bloom_checkpoint: Path, endpoint: str, revision: str
) -> None:
    done = run(endpoint or hub, cache, "python", "-c", FETCH, "someone/random-bloom", revision)
    assert done.returncode == 0, done.stderr
    source, commit, folder = json.loads(done.stdout)
    assert (source, commit) == ("someone/random-bloom", COMMIT)
    assert {file.name for file in Path(folder).iterdir()} == {file.name for file in bloom_checkpoint.iterdir()}
    for file in bloom_checkpoint.iterdir():
        assert (Path(folder) / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("someone/other",), "Error: someone/other is no folder here, and no checkpoint on the Hugging Face Hub: "),
        (
            ("someone/random-bloom", "--revision", "v2"),
            "Error: someone/random-bloom at revision v2 is no folder here, and no checkpoint on the Hugging Face Hub: ",
        ),
    ],
)
def test_what_the_hub_does_not_have(hub: str, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    source, *options = arguments
    done = run(hub, tmp_path / "cache", "neuroglot", "export", source, tmp_path / "bundle", *options)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "bundle").exists()


def test_an_unreachable_hub(tmp_path: Path) -> None:
    done = run(UNREACHABLE, tmp_path / "cache", "neuroglot", "export", "someone/random-bloom", tmp_path / "bundle")
    assert done.returncode == 1
    assert done.stderr == (
        "Error: someone/random-bloom is no folder here and not in the Hub's cache, "
        "and the Hugging Face Hub cannot be reached\n"
    )
