"""Parts of a run as one: through the files that several machines would leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from neuroglot.cli import main
from neuroglot.errors import RunError
from neuroglot.pipeline.pipeline import study_of
from neuroglot.runs.merging import merge, missing_shards
from neuroglot.runs.run import RUN, Run, of_shard
from neuroglot.tasks.capital_prompts import LANGUAGES
from tests.client.random_results import random_run

GROUPS = 3 * (len(LANGUAGES) + 2)  # in clusters of three: some more than a mismatched group needs


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return random_run(tmp_path_factory.mktemp("runs") / "whole", GROUPS, layers=2, neurons=17)


def part(whole: Run, folder: Path, names: set[str], **changed: object) -> Path:
    """A run of the same settings, but for those changed, with the answers of these groups."""
    made = Run.create(folder, replace(whole.settings, **changed), whole.examples())
    with made.session("part", {}) as recorder:
        for result in whole.results():
            if result.group_id in names:
                recorder.keep(result)
    return folder


def shards(whole: Run, folder: Path, parts: int, only: Sequence[int] = ()) -> list[Path]:
    names = {f"{one}/{parts}" for one in only or range(1, parts + 1)}
    return [
        part(whole, folder / one.replace("/", "-"), {group.id for group in of_shard(whole.examples(), one)}, shard=one)
        for one in sorted(names)
    ]


def assert_same_tables(merged: Run, whole: Run) -> None:
    ours, theirs = study_of(merged), study_of(whole)
    assert list(ours.folds) == list(theirs.folds)
    for name, fold in theirs.folds.items():
        for table, expected in fold.tables().items():
            pd.testing.assert_frame_equal(ours.folds[name].tables()[table], expected, rtol=1e-9, atol=1e-9)


def test_shards_keep_clusters_whole_and_are_every_group_once(whole: Run) -> None:
    parts = [of_shard(whole.examples(), f"{number}/4") for number in range(1, 5)]
    assert sorted(group.id for one in parts for group in one) == sorted(group.id for group in whole.examples())
    clusters = [{group.cluster for group in one} for one in parts]
    assert sum(map(len, clusters)) == len(set.union(*clusters))
    assert max(map(len, clusters)) - min(map(len, clusters)) <= 1


def test_shards_in_any_order_give_the_tables_of_the_whole(whole: Run, tmp_path: Path) -> None:
    first, second, third = shards(whole, tmp_path, 3)
    merged = merge([third, first, second], tmp_path / "merged", "merge", {"neuroglot": "0.1.0"})
    assert Run.open(merged.folder).settings == whole.settings
    assert [session.command for session in merged.sessions] == ["part", "part", "part", "merge"]
    table = study_of(merged).folds["types_by_layer"].table()
    assert table["mismatched_groups"].min() > 0  # of rows that came from different shards
    assert_same_tables(merged, whole)


def test_any_parts_of_a_run_are_put_together(whole: Run, tmp_path: Path) -> None:
    names = sorted(group.id for group in whole.examples())
    pieces = [set(names[:5]), set(names[5:6]), set(names[6:])]
    parts = [part(whole, tmp_path / str(place), piece) for place, piece in enumerate(pieces)]
    assert missing_shards(parts) == ()
    assert_same_tables(merge(parts, tmp_path / "merged", "merge", {}), whole)


def test_what_is_missing_is_named_and_can_be_asked_for(whole: Run, tmp_path: Path) -> None:
    parts = shards(whole, tmp_path, 4, only=(1, 3))
    assert missing_shards(parts) == ("2/4", "4/4")
    merged = merge(parts, tmp_path / "merged", "merge", {})
    merged.require(whole.settings)  # as resuming the whole does
    missing = {group.id for one in ("2/4", "4/4") for group in of_shard(whole.examples(), one)}
    assert {group.id for group in merged.asked()} - merged.done() == missing


def test_failures_that_no_part_has_answered_stay(whole: Run, tmp_path: Path) -> None:
    first, second = sorted(group.id for group in whole.examples())[:2]
    failed = part(whole, tmp_path / "failed", set())
    with Run.open(failed).session("again", {}) as recorder:
        recorder.fail(first, "too long")
        recorder.fail(second, "too late")
    answered = part(whole, tmp_path / "answered", {second})
    assert merge([failed, answered], tmp_path / "merged", "merge", {}).failures == {first: "too long"}


def test_other_runs_and_overlaps_are_refused_and_leave_nothing(whole: Run, tmp_path: Path) -> None:
    names = sorted(group.id for group in whole.examples())
    first = part(whole, tmp_path / "first", set(names[:4]))
    other = part(whole, tmp_path / "other", set(names[4:]), seed=9, thresholds=(0.0,))
    overlapping = part(whole, tmp_path / "overlapping", set(names[3:]))
    out = tmp_path / "out"
    with pytest.raises(RunError, match=r"other is another run than .*first: seed is 9 and not 0; thresholds is"):
        merge([first, other], out, "merge", {})
    with pytest.raises(RunError, match=f"first and .*overlapping both have an answer to group '{names[3]}'"):
        merge([first, overlapping], out, "merge", {})
    with pytest.raises(RunError, match="both have an answer"):
        merge([first, first], out, "merge", {})
    with pytest.raises(RunError, match="holds no run"):
        merge([first, tmp_path / "nowhere"], out, "merge", {})
    assert not out.exists()
    with pytest.raises(RunError, match="holds a run already"):
        merge([first], overlapping, "merge", {})


def test_the_command_writes_tables_and_says_what_is_missing(tmp_path: Path) -> None:
    whole = random_run(tmp_path / "whole", 12, layers=1, neurons=9, analyses=("answers",))
    parts = shards(whole, tmp_path, 3, only=(1, 2))
    ended = CliRunner().invoke(main, ["merge", *map(str, parts), "--out", str(tmp_path / "out")])
    assert ended.exit_code == 0, ended.output
    assert "Missing: part 3/3" in ended.stdout
    assert "3 of 12 groups have no answer" in ended.stdout
    assert (tmp_path / "out" / "tables" / "answers.csv").exists()
    assert (tmp_path / "out" / "report.html").exists()
    refused = CliRunner().invoke(main, ["merge", *map(str, parts), "--out", str(parts[0])])
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: ")
    assert RUN in str(list(parts[0].iterdir()))
