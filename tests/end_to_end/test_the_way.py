"""From an embedded checkpoint to a report, by the commands that a user types, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

import neuroglot as ng
from neuroglot.analyses.base.fold import Analysis
from neuroglot.definitions.bundle import open_bundle
from neuroglot.runs.run import Run
from neuroglot.tasks.capital_prompts import LANGUAGES
from neuroglot_exporter import embedded
from tests.exporter.reference import TOLERANCE, Transformers

GROUPS = 6
README = Path(__file__).parents[2] / "README.md"
CLIENTS = README.parent / "docs" / "clients.md"


class Ran(NamedTuple):
    """A command that ended."""

    status: int
    out: str
    err: str


def neuroglot(*arguments: str | Path, timeout: float = 110.0) -> Ran:
    command = [sys.executable, "-m", "neuroglot", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


class Demo(NamedTuple):
    """A demo that ran to its end."""

    folder: Path
    ran: Ran

    @property
    def bundle(self) -> Path:
        return self.folder / "bundles" / "bloom"

    @property
    def results(self) -> Path:
        return self.folder / "bloom-capitals"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    ran = neuroglot("demo", "--out", folder, "--limit", str(GROUPS))
    assert ran.status == 0, ran.err
    return Demo(folder, ran)


def test_the_demo_ends_with_the_path_of_the_report(demo: Demo) -> None:
    report = demo.folder / "bloom-capitals-inference" / "report.html"
    assert report.is_file()
    assert (demo.results / "report.html").is_file()
    assert "".join(demo.ran.out.split()).endswith("".join(str(report).split()))
    for command in ("export embedded:bloom", "serve", "analyze capitals"):
        assert f"$ neuroglot {command}" in demo.ran.out


def test_the_export_was_verified(demo: Demo) -> None:
    manifest = open_bundle(demo.bundle, full=True)
    assert manifest.source == "embedded:bloom"
    assert manifest.verification["measurements"]["logits"]["difference"] <= 1e-4
    assert manifest.verification["measurements"]["decoder.activations"]["difference"] <= 1e-4


def test_the_model_knows_its_capitals(demo: Demo) -> None:
    table = pd.read_csv(demo.results / "tables" / "accuracy.csv")
    baseline = table[table.variant == "baseline"]
    assert set(LANGUAGES) <= set(baseline.language)
    assert baseline.exact_percent.mean() >= 95


def test_every_table_and_figure_is_there(demo: Demo) -> None:
    for name in (name for name, fold in ng.analyses.ANALYSES.items() if issubclass(fold, Analysis)):
        csv = pd.read_csv(demo.results / "tables" / f"{name}.csv")
        parquet = pd.read_parquet(demo.results / "tables" / f"{name}.parquet")
        assert len(csv) == len(parquet) > 0
        assert (demo.results / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (demo.results / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "<svg" in (demo.results / "figures" / f"{name}.svg").read_text(encoding="utf-8")


def test_the_report_says_what_was_run(demo: Demo) -> None:
    page = (demo.results / "report.html").read_text(encoding="utf-8")
    identity = open_bundle(demo.bundle).identity
    for word in ("embedded:bloom", identity, Run.open(demo.results).settings.data_sha256, "neuroglot analyze capitals"):
        assert word in page
    assert not re.findall(r"(?:src|href)=[\"']https?://(?!arxiv\.org)", page), "it loads nothing from elsewhere"


def test_a_second_demo_reuses_the_bundle(demo: Demo) -> None:
    before = (demo.bundle / "manifest.json").stat().st_mtime_ns
    again = neuroglot("demo", "--out", demo.folder, "--limit", str(GROUPS))
    assert again.status == 0, again.err
    assert "is there already" in again.out
    assert (demo.bundle / "manifest.json").stat().st_mtime_ns == before


@pytest.fixture
def server(demo: Demo) -> Iterator[str]:
    """The address of a server of the demo's bundle, in a process of its own."""
    command = [sys.executable, "-m", "neuroglot", "serve", str(demo.bundle), "--address", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--log-level", "error"], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("listening on "):
                yield line.removeprefix("listening on ").strip()
                break
        process.send_signal(signal.SIGTERM)
        process.stdout.read()


def test_the_example_of_the_readme(server: str) -> None:
    example, _ = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert "127.0.0.1:50051" in example
    names: dict[str, Any] = {}
    exec(example.replace("127.0.0.1:50051", server), names)
    names["client"].close()
    result = names["result"]
    assert result.types.counts().sum(axis=1).tolist() == [512] * 4
    assert len(names["shared"]) == result.types.counts()[:, ng.ALL_SHARED].sum()
    assert result.predictions["baseline"]["es"].text == "París"  # as the comment beside it says
    assert result.predictions["without partial-shared"]["es"].selected_neurons > 0
    assert [one.group_id for one in names["answers"]] == ["France"]
    assert list(names["failures"]) == ["too long"]
    assert list(names["table"].columns[:3]) == ["group_id", "variant", "label"]


def test_the_example_of_the_readme_without_neuroglot(demo: Demo, tmp_path: Path) -> None:
    _, example = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert "build/demo/bundles/bloom" in example
    example = example.replace("build/demo/bundles/bloom", str(demo.bundle))
    tell = """
import sys
assert not [name for name in sys.modules if name.startswith(("neuroglot", "torch", "transformers"))]
np.savez("told.npz", ids=ids, logits=logits, activation=activation, mask=mask, masked=masked)
print(tokenizer.decode([logits.argmax()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", example + tell], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, " Paris\n", "")  # as the comment beside it says
    told = np.load(tmp_path / "told.npz")
    reference = Transformers(embedded.path("bloom"), "bloom")
    expected = reference.run(told["ids"][0])
    kept = torch.from_numpy(told["mask"])
    masked = reference.run(told["ids"][0], lambda layer, activation: activation * kept if layer == 2 else None)
    assert np.abs(told["activation"][0] - expected["activation"][2, -1:]).max() <= TOLERANCE
    assert np.abs(told["logits"][0] - expected["logits"][-1:]).max() <= TOLERANCE
    assert np.abs(told["masked"][0] - masked["logits"][-1:]).max() <= TOLERANCE
    assert np.abs(told["masked"] - told["logits"]).max() > 100 * TOLERANCE


def blocks(language: str) -> list[str]:
    """The commands or programs of the page about clients in other languages."""
    return re.findall(rf"```{language}\n(.*?)```", CLIENTS.read_text(encoding="utf-8"), re.DOTALL)


def shell(command: str, server: str, folder: Path, path: Path) -> str:
    """What a command of the page prints, with a folder in front of PATH."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace("127.0.0.1:50051", server)],
        cwd=folder,
        env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def messages(out: str) -> list[dict[str, Any]]:
    """The JSON documents of an output, one after the other."""
    found = []
    while out := out.strip():
        document, end = json.JSONDecoder().raw_decode(out)
        found.append(document)
        out = out[end:]
    return found


def test_buf_curl(server: str, tmp_path: Path) -> None:
    commands = [block for block in blocks("sh") if block.startswith("buf curl")]
    listed, answered, streamed = (shell(one, server, tmp_path, Path(sys.executable).parent) for one in commands)
    assert "neuroglot.v1.NeuroglotService/AnalyzeGroups" in listed.split()
    (answer,) = messages(answered)
    predictions = {one["name"]: one["predictions"] for one in answer["result"]["variants"]}
    assert [one["text"] for one in predictions["baseline"]] == ["Paris", "París"]
    assert predictions["without all-shared"][0]["selectedNeurons"] > 0
    outcomes = {one["groupId"]: one for one in messages(streamed)}
    assert outcomes["France"]["result"]["rows"][0]["label"] == "en"
    assert outcomes["nothing"]["error"]["violations"][0]["field"] == "group.rows"


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed")
def test_grpcurl(server: str, tmp_path: Path) -> None:
    (commands,) = (block for block in blocks("sh") if block.startswith("grpcurl"))
    described = shell(commands, server, tmp_path, tmp_path)
    assert "repeated .neuroglot.v1.Row rows = 2;" in described
    assert '"text": " Paris"' in described


@pytest.mark.skipif(shutil.which("npm") is None, reason="Node is not installed")
def test_node(server: str, tmp_path: Path) -> None:
    (install,) = re.findall(r"^    (npm install .*)$", CLIENTS.read_text(encoding="utf-8"), re.MULTILINE)
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0"]
    installed = subprocess.run([*install.split(), *options], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    if installed.returncode:
        pytest.skip(f"npm cannot install the packages: {installed.stderr[-200:]}")
    (tmp_path / "proto").symlink_to(README.parent / "proto")
    (program,) = blocks("js")
    (tmp_path / "types.mjs").write_text(program.replace("127.0.0.1:50051", server), encoding="utf-8")
    command, *shown = blocks("text")[0].splitlines()
    lines = shell(command.removeprefix("$ "), server, tmp_path, tmp_path).splitlines()
    with ng.connect(server) as client:
        france = {
            "en": "The capital of France is",
            "es": "La capital de Francia es",
            "de": "Die Hauptstadt von Frankreich ist",
        }
        counts = client.model().analyze(ng.Group(france)).types.counts().tolist()
    labels = [one.label for one in ng.NeuronType]
    assert lines[:4] == [
        f"decoder {layer}: " + ", ".join(f"{n} {label}" for n, label in zip(row, labels, strict=True))
        for layer, row in enumerate(counts)
    ]
    assert lines[4] == "baseline: Paris, París, Paris"
    assert {line.split(":")[0] for line in lines[5:]} == {"France", "nothing"}
    assert sorted(re.sub(r"\d+", "N", line) for line in lines) == sorted(re.sub(r"\d+", "N", line) for line in shown)


def test_models_are_listed(server: str) -> None:
    listed = neuroglot("models", server)
    assert listed.status == 0, listed.err
    assert "bloom" in listed.out
    assert "4 layers x 512 neurons" in listed.out


def test_ctrl_c_keeps_what_is_finished_and_resume_ends_with_the_same_tables(
    demo: Demo, server: str, tmp_path: Path
) -> None:
    some = ["--limit", "60", "--draws", "1", "--analyses", "accuracy,types-by-layer"]
    arguments = ["analyze", "capitals", "--server", server, "--model", "bloom", *some]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    command = [sys.executable, "-m", "neuroglot", *arguments, "--out", str(stopped)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not ((stopped / "run.json").exists() and len(Run.open(stopped).done()) >= 5):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = len(Run.open(stopped).done())
    assert 5 <= kept < 60
    assert f"{kept} of 60 groups are kept" in " ".join(said.split())
    assert "--resume" in said
    assert "Traceback" not in said

    refused = neuroglot(*arguments, "--out", stopped)
    assert refused.status == 1
    assert "holds a run already" in refused.err

    assert neuroglot(*arguments, "--out", stopped, "--resume").status == 0
    assert neuroglot(*arguments, "--out", whole).status == 0
    assert json.loads((stopped / "run.json").read_text())["sessions"][1]["groups"] == 60 - kept
    for table in sorted((whole / "tables").glob("*.csv")):
        # Counts are equal; log-probabilities are equal to rounding, for other rows shared their batches.
        pd.testing.assert_frame_equal(
            pd.read_csv(stopped / "tables" / table.name), pd.read_csv(table), check_exact=False, rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "embedded:nonsense", "NEW"], "no embedded model 'nonsense'"),
        (["export", "no/such/folder/here", "NEW"], "there is no folder"),
        (["serve", "NEW", "--address", "127.0.0.1:0"], "is no bundle: there is no such folder"),
        (["serve", "BUNDLE", "--address", "0.0.0.0:0"], "neither encrypted nor authenticated"),
        (["models", "127.0.0.1:9"], "no answer from 127.0.0.1:9"),
        (["analyze", "nonsense", "--model", "BUNDLE", "--out", "NEW"], "the tasks are capitals, capitals-inference"),
        (["analyze", "capitals", "--model", "BUNDLE", "--languages", "en,xx", "--out", "NEW"], "'xx'"),
        (["analyze", "capitals", "--model", "BUNDLE", "--languages", "en", "--out", "NEW"], "name two or more"),
        (["analyze", "capitals", "--model", "nowhere", "--out", "NEW"], "is no folder"),
        (["demo", "--family", "nonsense", "--out", "NEW"], "no embedded model 'nonsense'"),
    ],
)
def test_bad_input_is_one_line(demo: Demo, tmp_path: Path, arguments: list[str], said: str) -> None:
    places = {"NEW": str(tmp_path / "new"), "BUNDLE": str(demo.bundle)}
    ran = neuroglot(*(places.get(argument, argument) for argument in arguments))
    assert ran.status in (1, 2)
    assert said in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
    assert not (tmp_path / "new" / "manifest.json").exists()


@pytest.mark.parametrize("arguments", [["export", "embedded:bloom", "NEW"], ["demo", "--out", "NEW"]])
def test_a_missing_distribution_of_models_is_named(arguments: list[str], tmp_path: Path) -> None:
    without = "import sys; sys.modules['neuroglot_models'] = None; from neuroglot.cli import main; main()"
    command = [sys.executable, "-c", without, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the embedded models are not installed: pip install neuroglot-models")


def test_an_unknown_model_names_those_that_are_served(server: str, tmp_path: Path) -> None:
    ran = neuroglot("analyze", "capitals", "--server", server, "--model", "nonsense", "--out", tmp_path / "new")
    assert ran.status == 1
    assert "'nonsense'" in ran.err
    assert "bloom" in ran.err
