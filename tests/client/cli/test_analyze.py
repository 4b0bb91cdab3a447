"""`neuroglot analyze` as a user runs it, with a real model behind it: a random BLOOM, served in the process."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

import neuroglot
from neuroglot.analyses.base.context import Context
from neuroglot.cli import main
from neuroglot.errors import AnalysisError
from neuroglot.pipeline.pipeline import run
from neuroglot.request.groups import Group
from neuroglot.request.options import ScoreTarget
from neuroglot.request.selections import ControlKind
from neuroglot.runs.run import GROUPS, Run
from neuroglot.tasks.capital_prompts import LANGUAGES, groups
from neuroglot.tasks.registry import TASKS, find_task
from neuroglot.tasks.task import Task

TABLES = ("accuracy", "accuracy_by_language", "answers", "types_by_layer")
FIGURES = ("accuracy", "types_by_layer")
# Some of the analyses, for to draw them all takes seconds.
SOME = ("--draws", 2, "--analyses", "types-by-layer,accuracy,answers", "--thresholds", "0")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "neuroglot", "analyze", *map(str, arguments)]


def analyze(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["analyze", *map(str, arguments)])


@pytest.fixture(scope="module")
def done(bloom_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole run of 30 groups, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    ended = analyze("capitals", "--model", bloom_bundle, "--limit", 30, *SOME, "--out", out)
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
        assert (out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert {one.stem for one in (out / "tables").glob("*.csv")} == set(TABLES)
    assert {one.stem for one in (out / "figures").iterdir()} == set(FIGURES)
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
    arguments = ("capitals", "--model", bloom_bundle, "--limit", 30, *SOME, "--out", out)
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
    arguments = ("capitals", "--model", bloom_bundle, "--limit", 30, *SOME, "--out", out)
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not ((out / GROUPS).exists() and Run.open(out).done()) and time.monotonic() < deadline:
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


def test_a_full_disk_is_one_line_and_resuming_asks_for_the_rest(
    done: tuple[Path, str], bloom_bundle: Path, tmp_path: Path
) -> None:
    """A limit of the size of files stands in for the disk: it ends in the middle of the third record."""
    out = tmp_path / "run"
    whole, _ = done
    a_record = (whole / GROUPS).stat().st_size // 30
    arguments = ("capitals", "--model", bloom_bundle, "--limit", 5, *SOME, "--out", out)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(2.5 * a_record), limits[1]))
    try:
        ended = analyze(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.exit_code == 1
    said = f"Error: cannot write {out}: File too large. Make room and resume the run: the answers that came are kept\n"
    assert ended.stderr.endswith(said)  # behind the progress bar
    assert "Traceback" not in ended.stderr
    kept = Run.open(out)
    assert len(kept.done()) == kept.sessions[-1].groups == 2
    resumed = analyze(*arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert [one.groups for one in Run.open(out).sessions] == [2, 3]
    assert Counter(result.group_id for result in Run.open(out).results()) == Counter(
        one.id for one in Run.open(out).asked()
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("capitals", "--out", "{file}/run"), "cannot write {file}/run: Not a directory: give a folder that can be"),
        (("capitals", "--out", "/proc/run"), "cannot write /proc/run: No such file or directory: give a folder that"),
        (("capitals", "--out", "{file}", "--resume"), "{file} is a file: give a folder for the run"),
        (("xnli", "--data", "/proc/self/mem", "--out", "{out}"), "/proc/self/mem cannot be read: Input/output error"),
        (("mzsre", "--data", "{unreadable}", "--out", "{out}"), "cannot be read: Input/output error"),
        (("jsonl", "--data", "{folder}", "--out", "{out}"), "{folder} cannot be read: Is a directory"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    bloom_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    """Permissions would not do: root has them all."""
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "mzsre_test_duplicate_enzh.json").symlink_to("/proc/self/mem")
    places = {name: tmp_path / name for name in ("file", "folder", "out")} | {"unreadable": tmp_path}
    filled = [argument.format(**places) for argument in arguments]
    ended = analyze(*filled, "--model", bloom_bundle, "--limit", 1)
    assert ended.exit_code == 1
    (line,) = ended.stderr.splitlines()
    assert said.format(**places) in line


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
        (("capitals", "--model", "BUNDLE", "--draws", "500"), "draws make 1509 variants of each group, and the server"),
        (("capitals", "--model", "BUNDLE", "--out", "FILE"), "is a file"),
        (("capitals", "--model", "BUNDLE", "--analyses", "typs"), "unknown analysis 'typs'; expected one of"),
        (
            ("capitals", "--model", "BUNDLE", "--controls", "none"),
            "unknown kind of control 'none': expected one of random",
        ),
        (("capitals", "--model", "BUNDLE", "--subsets", "en,xx"), "invalid subset of languages (en, xx)"),
        (("capitals", "--model", "BUNDLE", "--thresholds", "0,x"), "could not convert string to float: 'x'"),
        (("capitals", "--model", "BUNDLE", "--thresholds", "0,0"), "the thresholds are 0, 0: give one or more"),
        (("capitals", "--model", "BUNDLE", "--convert-to", "most"), "'most' is neither a number nor 'mean'"),
        (("capitals", "--model", "BUNDLE", "--shard", "3/2"), "'3/2' is no part of a run"),
        (("capitals", "--model", "BUNDLE", "--shard", "5/9", "--limit", "3"), "part 5/9 has no group"),
        (("capitals", "--model", "BUNDLE", "--relations", "P36"), "has no option relations"),
        (("xnli", "--model", "BUNDLE"), "task 'xnli' needs files"),
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
        outcome = run(
            client.model(),
            task,
            tmp_path / "run",
            on_progress=lambda *counts: seen.append(counts),
            analyses=["answers"],
        )
        assert outcome.study.groups == 3
        assert list(outcome.run.failures) == ["long/0"]
        assert sorted(seen)[-1] == (3, 1, 4)
        page = outcome.report.read_text(encoding="utf-8")
        assert "1 of 4 groups have no answer, 1 of them failed" in page
        assert "<h1>Awkward, random-bloom</h1>" in page
        again = run(client.model(), task, tmp_path / "run", resume=True, analyses=["answers"])
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


def test_problems_of_the_data_are_refused_with_file_and_line_or_left_out_and_told(
    bloom_bundle: Path, tmp_path: Path
) -> None:
    data = tmp_path / "mine.jsonl"
    lines = [
        json.dumps({"id": f"g{number}", "prompts": {"en": f"a {number}", "de": f"b {number}"}}) for number in (1, 2)
    ]
    data.write_text("\n".join([*lines, '{"id": "g3", "prompts": {"en": "alone"}}', "{broken"]), encoding="utf-8")
    arguments = ("jsonl", "--model", bloom_bundle, "--data", data, "--analyses", "types_by_layer", "--out")
    refused = analyze(*arguments, tmp_path / "refused")
    assert refused.exit_code == 1
    assert f"{data}:3: " in refused.stderr
    assert f"{data}:4: " in refused.stderr
    assert not (tmp_path / "refused").exists()
    done = analyze(*arguments, tmp_path / "done", "--skip-bad-data", "--thresholds", "0")
    assert done.exit_code == 0, done.output
    assert f"Left out: 2 problems: 1 missing language, 1 broken line; all of them will be in {tmp_path}" in done.stderr
    assert f"  {data}:3: " in done.stderr
    assert "2 problems of the data are left out" in done.stdout
    run = Run.open(tmp_path / "done")
    assert run.settings.problems == {"missing language": 1, "broken line": 1}
    assert [line.split(": ")[0] for line in run.problems()] == [f"{data}:3", f"{data}:4"]
    assert run.settings.groups == 2


def test_the_options_of_a_task_and_of_its_analyses_are_those_of_the_run(bloom_bundle: Path, tmp_path: Path) -> None:
    ended = analyze(
        *("capitals-edit", "--model", bloom_bundle, "--limit", 4, "--languages", "de,zh,es", "--out", tmp_path / "run"),
        *("--direction", "all-en", "--shots", 1, "--seed", 7, "--draws", 1, "--controls", "random-mass,random"),
        *("--thresholds", "0.1,0", "--top", 0.1, "--score-target", "all-gold-tokens", "--convert-to", "mean"),
        *("--subsets", "de,zh;es,de", "--replicates", 50, "--analyses", "answers,accuracy", "--cumulative-dead"),
    )
    assert ended.exit_code == 0, ended.output
    run = Run.open(tmp_path / "run")
    settings = run.settings
    assert settings.parameters == {"direction": "all-en", "shots": 1, "shots_seed": 7}
    assert settings.analyses == ("accuracy", "answers")  # in the order of a report
    assert settings.controls == (ControlKind.RANDOM_MASS, ControlKind.RANDOM)
    context = Context.of(run)
    assert context.languages == ("de", "es", "zh")
    assert (context.ablations.draws, context.ablations.seed, context.ablations.kinds) == (1, 7, settings.controls)
    assert context.conversions.mean_of_active
    assert (context.options.thresholds, context.options.top_fraction) == ((0.1, 0.0), 0.1)
    assert context.options.score_target is ScoreTarget.ALL_GOLD_TOKENS
    assert context.subsets == (("de", "zh"), ("de", "es"))
    assert (context.options.replicates, context.options.cumulative_dead) == (50, True)
    assert len(context.clusters) == 4
    assert set(settings.variants) == set(context.ablations.variants())


def test_help_has_its_options_under_headings() -> None:
    said = analyze("--help").stdout
    headings = ("The model:", "The data:", "The analyses:", "The run:", "Other:", "Tasks:")
    assert [line for line in said.splitlines() if line in headings] == list(headings)
    assert all(f"  {name} " in said for name in TASKS)


def test_a_task_chooses_its_languages_in_its_own_order() -> None:
    assert find_task("capitals").choose(["zh", "en"]) == ("en", "zh")
    assert find_task("capitals").choose([]) == LANGUAGES


def test_without_the_extra_the_error_says_what_to_install() -> None:
    program = "import sys; sys.modules['pandas'] = None; import neuroglot.analyses"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "InstallationError: the analyses need pandas: pip install 'neuroglot[analysis]'" in ended.stderr


def test_the_client_and_a_runs_folder_need_no_extra() -> None:
    program = (
        "import json, sys, neuroglot, neuroglot.runs.run, neuroglot.tasks.registry, neuroglot.cli.analyze;"
        "print(json.dumps(sorted({'pandas', 'matplotlib', 'jinja2', 'scipy', 'pyarrow'} & set(sys.modules))))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(ended.stdout) == []
