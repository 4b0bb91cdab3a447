"""`neuroglot analyze` as a user runs it, with a real model behind it: a random BLOOM, served in the process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

import neuroglot
from neuroglot.analyses.pipeline import run
from neuroglot.cli import main
from neuroglot.errors import AnalysisError
from neuroglot.groups import Group
from neuroglot.runs import GROUPS, Run
from neuroglot.tasks.capitals import groups
from neuroglot.tasks.registry import TASKS, Task, find_task

TABLES = ("accuracy", "active_by_language", "answers", "effects", "top_contributors", "types_by_layer")
FIGURES = ("accuracy", "active_by_language", "effects", "top_contributors", "types_by_layer")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "neuroglot", "analyze", *map(str, arguments)]


def analyze(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["analyze", *map(str, arguments)])


@pytest.fixture(scope="module")
def done(bloom_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole run of 30 groups, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    ended = analyze("capitals", "--model", bloom_bundle, "--limit", 30, "--draws", 2, "--out", out)
    assert ended.exit_code == 0, ended.output
    return out, ended.stdout


def test_everything_is_written_and_the_summary_ends_with_the_report(done: tuple[Path, str]) -> None:
    out, printed = done
    for name in TABLES:
        assert len(pd.read_csv(out / "tables" / f"{name}.csv")) == len(
            pd.read_parquet(out / "tables" / f"{name}.parquet")
        )
    for name in FIGURES:
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
        assert (out / "figures" / f"{name}.svg").stat().st_size > 5_000
    assert f"Report: {out / 'report.html'}" in printed
    assert "30 groups x 10 languages, random-bloom" in printed
    assert Run.open(out).settings.bundle_identity in (out / "report.html").read_text(encoding="utf-8")


def test_the_numbers_are_those_of_the_model(done: tuple[Path, str], bloom_bundle: Path) -> None:
    out, _ = done
    with neuroglot.connect(bloom_bundle) as client:
        alone = client.model().analyze(next(groups()), contribution=True)
    result = next(result for result in Run.open(out).results() if result.group_id == alone.group_id)
    assert (result.types.counts() == alone.types.counts()).all()
    table = pd.read_csv(out / "tables" / "types_by_layer.csv")
    counts = sum(result.types.counts() for result in Run.open(out).results()) / 30
    assert table["mean_neurons"].to_numpy() == pytest.approx(counts.ravel())
    accuracy = pd.read_csv(out / "tables" / "accuracy.csv")
    chosen = accuracy.groupby(["condition", "type"])["selected_active_neurons"].mean()
    for kind in ("all-shared", "partial-shared", "specific"):
        assert chosen["without", kind] == pytest.approx(chosen["control", kind])  # as many active ones


def test_a_finished_run_is_refused_and_resuming_it_asks_nothing(done: tuple[Path, str], bloom_bundle: Path) -> None:
    out, _ = done
    arguments = ("capitals", "--model", bloom_bundle, "--limit", 30, "--draws", 2, "--out", out)
    again = analyze(*arguments)
    assert again.exit_code == 1
    assert again.stderr.startswith(f"Error: {out} holds a run already (capitals with")
    before = (out / GROUPS).read_bytes()
    assert analyze(*arguments, "--resume").exit_code == 0
    assert (out / GROUPS).read_bytes() == before
    assert [session.groups for session in Run.open(out).sessions] == [30, 0]


def test_resuming_with_other_settings_is_refused_and_says_which(done: tuple[Path, str], bloom_bundle: Path) -> None:
    out, _ = done
    ended = analyze("capitals", "--model", bloom_bundle, "--limit", 29, "--seed", 3, "--out", out, "--resume")
    assert ended.exit_code == 1
    assert "groups is 29 and not 30" in ended.stderr
    assert "draws is 3 and not 2" in ended.stderr
    assert "seed is 3 and not 0" in ended.stderr


def test_ctrl_c_keeps_what_is_answered_and_resuming_gives_what_an_uninterrupted_run_gives(
    done: tuple[Path, str], bloom_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ("capitals", "--model", bloom_bundle, "--limit", 30, "--draws", 2, "--out", out)
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not ((out / GROUPS).exists() and (out / GROUPS).stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    kept = len(Run.open(out).done())
    assert 0 < kept < 30
    assert f"{kept} of 30 groups are kept in {out}: go on with the same command and --resume." in said
    assert "Traceback" not in said
    resumed = subprocess.run(command(*arguments, "--resume"), capture_output=True, text=True, timeout=60, check=True)
    assert f"Report: {out / 'report.html'}" in resumed.stdout
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"neuroglot analyze capitals --model {bloom_bundle} --limit 30" in page
    assert f"--out {out} --resume" in page
    assert [session.groups for session in Run.open(out).sessions] == [kept, 30 - kept]
    for name in TABLES:
        whole, pieced = (pd.read_parquet(folder / "tables" / f"{name}.parquet") for folder in (done[0], out))
        # What a row gives may depend in the last digits on the rows beside it in a batch.
        pd.testing.assert_frame_equal(whole, pieced, rtol=1e-4)


def unreachable() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("capitols", "--model", "BUNDLE"), "there is no task 'capitols': the tasks are capitals"),
        (
            ("capitals", "--model", "BUNDLE", "--languages", "en,xx,qq"),
            "task 'capitals' has no language 'xx', 'qq': it has en, de, es, fr, pt, ru, th, tr, vi, zh",
        ),
        (("capitals", "--model", "BUNDLE", "--languages", "en"), "one language, 'en', has no parallel prompts"),
        (("capitals", "--model", "/nowhere"), "--model /nowhere is no folder"),
        (("capitals", "--model", "FOLDER"), "is no bundle"),
        (("capitals", "--model", "any", "--server", unreachable()), "127.0.0.1"),
        (("capitals", "--model", "any", "--server", "nonsense"), "nonsense"),
        (
            ("capitals", "--model", "BUNDLE", "--component", "encoder"),
            "no component 'encoder' to deactivate neurons of",
        ),
        (("capitals", "--model", "BUNDLE", "--draws", "500"), "draws make 1503 variants of each group, and the server"),
        (("capitals", "--model", "BUNDLE", "--out", "FILE"), "is a file"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_is_one_line_that_says_what_is_wrong(
    arguments: Sequence[str], said: str, bloom_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    places = {"BUNDLE": str(bloom_bundle), "FOLDER": str(tmp_path), "FILE": str(tmp_path / "file")}
    ended = analyze(*(places.get(one, one) for one in ("--out", tmp_path / "out", *arguments)))
    assert ended.exit_code in (1, 2)
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()
    (error,) = (line for line in ended.stderr.splitlines() if line and not line.startswith(("Usage:", "Try ")))
    assert error.startswith("Error: ")


def awkward(languages: Sequence[str], limit: int | None) -> Iterator[Group]:
    """Three groups that any model can answer and one that is too long."""
    yield from groups(languages, limit=3)
    yield Group(dict.fromkeys(languages, "over and over " * 4000), dict.fromkeys(languages, "again"), "long/0")


def test_failed_groups_are_reported_and_asked_again(bloom_bundle: Path, tmp_path: Path) -> None:
    task = Task("awkward", "Awkward", "fact probing", "Made up.", ("en", "zh"), awkward)
    seen = []
    with neuroglot.connect(bloom_bundle) as client:
        outcome = run(client.model(), task, tmp_path / "run", on_progress=lambda *counts: seen.append(counts))
        assert outcome.study.groups == 3
        assert list(outcome.run.failures) == ["long/0"]
        assert sorted(seen)[-1] == (3, 1, 4)
        page = outcome.report.read_text(encoding="utf-8")
        assert "1 of 4 groups have no answer, 1 of them failed" in page
        assert "<h1>Awkward, random-bloom</h1>" in page
        again = run(client.model(), task, tmp_path / "run", resume=True)
    assert list(Run.open(tmp_path / "run").failures) == ["long/0"]
    assert [session.groups for session in again.run.sessions] == [3, 0]


def test_where_every_group_fails_the_reason_is_told(bloom_bundle: Path, tmp_path: Path) -> None:
    task = Task(
        "long", "Long", "fact probing", "Made up.", ("en", "zh"), lambda languages, _: list(awkward(languages, 0))[3:]
    )
    with (
        neuroglot.connect(bloom_bundle) as client,
        pytest.raises(AnalysisError, match=r"has no answer to analyse: every group failed, .*token"),
    ):
        run(client.model(), task, tmp_path / "run")


def test_a_task_chooses_its_languages_in_its_own_order() -> None:
    assert find_task("capitals").choose(["zh", "en"]) == ("en", "zh")
    assert find_task("capitals").choose([]) == TASKS["capitals"].languages


def test_without_the_extra_the_error_says_what_to_install() -> None:
    program = "import sys; sys.modules['pandas'] = None; import neuroglot.analyses"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "InstallationError: the analyses need pandas: pip install 'neuroglot[analysis]'" in ended.stderr


def test_the_client_and_a_runs_folder_need_no_extra() -> None:
    program = (
        "import json, sys, neuroglot, neuroglot.runs, neuroglot.tasks.registry, neuroglot.cli.analyze;"
        "print(json.dumps(sorted({'pandas', 'matplotlib', 'jinja2', 'scipy', 'pyarrow'} & set(sys.modules))))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(ended.stdout) == []
