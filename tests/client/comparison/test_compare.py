from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from neuroglot.analyses.base.bootstrap import weights
from neuroglot.cli import main
from neuroglot.comparison.answering import AccuracyAcrossRuns
from neuroglot.comparison.compared_runs import ComparedRun, compared, joined
from neuroglot.comparison.differences import DifferencesAcrossRuns, unpaired
from neuroglot.comparison.shares import SharesAcrossRuns
from neuroglot.comparison.types import TypesAcrossRuns
from neuroglot.errors import AnalysisError
from neuroglot.pipeline.pipeline import study_of
from neuroglot.pipeline.publish_comparison import open_runs
from neuroglot.results.results import GroupResult
from neuroglot.runs.run import Run
from neuroglot.runs.settings import Settings
from tests.client.pages import Reader
from tests.client.random_results import random_run

CHOSEN = ("accuracy", "types_by_layer")

Change = Callable[[Settings], Settings]


def opened(folder: Path, changes: Change | None = None, **options: object) -> Run:
    """A random run, with other settings."""
    run = random_run(folder, **{"count": 12, "analyses": CHOSEN, **options})  # type: ignore[arg-type]
    if changes:
        run.settings = changes(run.settings)
    return run


def named(*runs: Run) -> tuple[ComparedRun, ...]:
    return compared([(run, study_of(run)) for run in runs])


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[ComparedRun, ...]:
    """Of one task: a decoder of 3 layers, one of 5, and an encoder with its decoder."""
    folder = tmp_path_factory.mktemp("runs")
    return named(
        opened(folder / "a", lambda settings: replace(settings, model="small")),
        opened(folder / "b", lambda settings: replace(settings, model="large"), layers=5),
        opened(folder / "c", lambda settings: replace(settings, model="two"), encoder=(4, 57)),
    )


def with_parameters(**parameters: str | int) -> Change:
    return lambda settings: replace(settings, parameters=parameters)


def test_runs_are_named_by_what_differs(tmp_path: Path) -> None:
    folders = (tmp_path / str(place) for place in range(20))

    def names(*changes: Change | None) -> list[str]:
        return [one.name for one in named(*(opened(next(folders), change, count=3) for change in changes))]

    assert names(lambda one: replace(one, model="a", bundle_identity="1"), lambda one: replace(one, model="b")) == [
        "a",
        "b",
    ]
    few = (with_parameters(shots=2, shots_seed=0), with_parameters(shots=4, shots_seed=0))
    assert names(None, *few) == ["shots 0", "shots 2", "shots 4"]
    assert names(with_parameters(template_language="own"), with_parameters(template_language="en")) == [
        "template language own",
        "template language en",
    ]
    assert names(None, lambda one: replace(one, component="decoder", model="b")) == [
        "random, component all",
        "b, component decoder",
    ]
    assert names(lambda one: replace(one, source="hub/x"), None) == ["hub/x", "embedded:bloom"]
    same = names(None, None)
    assert same == [str(int(same[0])), str(int(same[0]) + 1)]  # nothing differs: the names of the folders


def test_joined_tables_tell_the_runs_apart(three: tuple[ComparedRun, ...]) -> None:
    table = joined([(one, one.study.folds["types_by_layer"].table()) for one in three])
    assert list(table.columns[:4]) == ["run", "model", "component", "layer"]
    assert table["run"].value_counts().to_dict() == {"small": 12, "large": 20, "two": 28}
    for one in three:
        own = one.study.folds["types_by_layer"].table()
        part = table[table["run"] == one.name].reset_index(drop=True)
        pd.testing.assert_frame_equal(part[own.columns], own, check_dtype=False)


def test_a_setting_does_not_take_the_place_of_a_column(tmp_path: Path) -> None:
    runs = named(opened(tmp_path / "a"), opened(tmp_path / "b", lambda one: replace(one, component="decoder")))
    table = joined([(one, one.study.folds["types_by_layer"].table()) for one in runs])
    assert list(table.columns[:3]) == ["run", "run_component", "component"]
    assert set(table["component"]) == {"decoder"}


def test_layers_keep_their_index_and_get_a_depth(three: tuple[ComparedRun, ...]) -> None:
    table = TypesAcrossRuns(three).table()
    large = table[(table["run"] == "large") & (table["type"] == "specific")]
    assert large["layer"].tolist() == [0, 1, 2, 3, 4]
    assert large["relative_depth"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    comparison = TypesAcrossRuns(three)
    assert "relative depth" in comparison.caption()
    assert (
        "aligned by index" in TypesAcrossRuns(named(three[0].run, opened(three[0].run.folder.parent / "d"))).caption()
    )
    assert [len(axes.get_lines()) for axes in comparison.figure().axes] == [4, 4, 4, 4]  # two: encoder and decoder


def test_shares_over_layers_are_the_mean_of_the_layers(three: tuple[ComparedRun, ...]) -> None:
    by_layer = TypesAcrossRuns(three).table().groupby(["run", "component", "type"])["share_percent"].mean()
    table = SharesAcrossRuns(three).table().set_index(["run", "component", "type"])
    pd.testing.assert_series_equal(table["share_percent"].sort_index(), by_layer.sort_index())
    assert (table["share_low"] <= table["share_percent"]).all()
    assert (table["share_percent"] <= table["share_high"]).all()


def test_runs_that_differ_in_a_number_stand_along_it(tmp_path: Path) -> None:
    runs = named(*(opened(tmp_path / str(shots), with_parameters(shots=shots), count=3) for shots in (4, 0, 6)))
    (axes,) = SharesAcrossRuns(runs).figure().axes
    assert axes.get_xlabel() == "in-context examples"
    assert sorted(axes.get_xticks()) == [0, 4, 6]


def test_accuracy_is_that_of_each_run(three: tuple[ComparedRun, ...]) -> None:
    table = AccuracyAcrossRuns(three).table()
    for one in three:
        own = one.study.folds["accuracy"].table().query("variant == 'baseline'").set_index("language")
        part = table[(table["run"] == one.name) & (table["language"] != "all")].set_index("language")
        np.testing.assert_allclose(part["exact_percent"], own.loc[part.index, "exact_percent"])
        whole = table[(table["run"] == one.name) & (table["language"] == "all")]
        assert whole["exact_percent"].item() == pytest.approx(own["exact_percent"].mean())


def test_differences_are_paired_by_cluster(three: tuple[ComparedRun, ...]) -> None:
    first, other, _ = three
    table = DifferencesAcrossRuns(three).table().query("run == 'large'").set_index(["measure", "type", "language"])
    assert set(table["against"]) == {"small"}

    def by_cluster(run: Run, value: Callable[[GroupResult], float]) -> dict[str, list[float]]:
        clusters = {group.id: group.cluster for group in run.examples()}
        found: dict[str, list[float]] = {}
        for result in run.results():
            found.setdefault(clusters[result.group_id], []).append(value(result))
        return found

    def specific(result: GroupResult) -> float:
        return 100 * float((result.types.counts()[:, 1] / 41).mean())

    def exact(result: GroupResult) -> float:
        return 100 * float(np.mean([row.exact for row in result.predictions["baseline"].values()]))

    for key, value in ((("share_percent", "specific", ""), specific), (("exact_percent", "", "all"), exact)):
        one, two = (by_cluster(run.run, value) for run in (first, other))
        names = tuple(sorted(one))
        drawn = weights(0, names, 100)
        sizes = drawn @ np.array([len(one[name]) for name in names])
        change = drawn @ np.array([sum(two[name]) - sum(one[name]) for name in names])
        replicated = change[sizes > 0] / sizes[sizes > 0]
        found = table.loc[key]
        assert found["difference"] == pytest.approx(sum(map(sum, two.values())) / 12 - sum(map(sum, one.values())) / 12)
        assert [found["low"], found["high"]] == pytest.approx(np.percentile(replicated, [2.5, 97.5]).tolist())


def test_runs_about_other_examples_stand_side_by_side_only(three: tuple[ComparedRun, ...], tmp_path: Path) -> None:
    fewer = opened(tmp_path / "fewer", lambda one: replace(one, model="x"), answered=9)
    task = opened(tmp_path / "task", lambda one: replace(one, task="xnli"))
    seed = opened(tmp_path / "seed", lambda one: replace(one, seed=7))
    first, *others = named(three[0].run, fewer, task, seed)
    reasons = [unpaired(first, one) for one in others]
    assert "different examples" in reasons[0]
    assert "its task is xnli instead of" in reasons[1]
    assert "a different seed" in reasons[2]
    assert not DifferencesAcrossRuns.possible([first, *others])
    assert TypesAcrossRuns.possible([first, *others])
    with pytest.raises(AnalysisError, match=r"needs two or more runs with the analysis .*; got 1"):
        DifferencesAcrossRuns([first, *others])


def test_what_does_not_compare_is_refused(tmp_path: Path) -> None:
    one = opened(tmp_path / "one", count=3)
    with pytest.raises(AnalysisError, match="cannot compare 1 run"):
        open_runs([one.folder])
    with pytest.raises(AnalysisError, match="is given twice"):
        open_runs([one.folder, tmp_path / "one" / ".." / "one"])
    other = opened(tmp_path / "other", count=3, analyses=("answers",))
    with pytest.raises(AnalysisError, match=r"no analysis in common.*other has answers"):
        open_runs([one.folder, other.folder])


def test_the_command_writes_tables_figures_and_a_page(three: tuple[ComparedRun, ...], tmp_path: Path) -> None:
    folders = [str(one.run.folder) for one in three[:2]]
    ended = CliRunner().invoke(main, ["compare", *folders, "--out", str(tmp_path / "out")])
    assert ended.exit_code == 0, ended.output
    page = tmp_path / "out" / "report.html"
    assert ended.stdout == f"Report: {page}\n"
    tables = {path.stem for path in (tmp_path / "out" / "tables").glob("*.csv")}
    overlays = {"types_across_runs", "shares_across_runs", "accuracy_across_runs", "differences_across_runs"}
    assert tables == {"accuracy", "accuracy_by_language", "types_by_layer"} | overlays
    for name in overlays:
        for suffix in ("png", "svg", "pdf"):
            assert (tmp_path / "out" / "figures" / f"{name}.{suffix}").stat().st_size > 1000
        csv = pd.read_csv(tmp_path / "out" / "tables" / f"{name}.csv", keep_default_na=False)
        assert csv.columns[0] == "run"
    said = json.loads(pq.read_schema(tmp_path / "out" / "tables" / "accuracy.parquet").metadata[b"neuroglot"])
    assert [run["folder"] for run in said["runs"]] == folders
    assert "What changes from the first run" in Reader(page.read_text(encoding="utf-8")).headings
    again = CliRunner().invoke(main, ["compare", *folders, "--out", folders[0]])
    assert again.exit_code == 1
    assert "holds a run, which a comparison would overwrite" in again.output
