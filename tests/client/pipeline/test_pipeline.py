"""`neuroglot.analyses.run` as a user of Python calls it, on a random BLOOM, and what it leaves for others to read."""

from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

import neuroglot as ng
from neuroglot.analyses.base.fold import Analysis
from neuroglot.analyses.reference import reference
from neuroglot.analyses.registry import choose
from neuroglot.errors import AnalysisError, NeuroglotError
from neuroglot.runs.run import Run
from neuroglot.runs.settings import Options
from neuroglot.tasks.task import Task

LANGUAGES = ("en", "<i>x", "zh")
ROOT = Path(__file__).parents[3]


def groups(languages: Sequence[str], limit: int | None) -> Iterator[ng.Group]:
    """A task of one's own: eight clusters of a group each, in languages of which one looks like HTML."""
    for number in range(limit or 8):
        prompts = {language: f"{language} the {number} of France is" for language in languages}
        yield ng.Group(prompts, dict.fromkeys(languages, "Paris"), f"g{number}")


def task(make: object = groups) -> Task:
    return Task("mine", "Mine & <yours>", "fact probing", "Made up.", LANGUAGES, make)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(bloom_bundle: Path) -> Iterator[ng.Model]:
    with ng.connect(bloom_bundle) as client:
        yield client.model()


@pytest.fixture(scope="module")
def whole(model: ng.Model, tmp_path_factory: pytest.TempPathFactory) -> ng.analyses.Outcome:
    """Every analysis of a task of one's own."""
    return ng.analyses.run(model, task(), tmp_path_factory.mktemp("runs") / "whole", draws=1, replicates=50)


def test_all_analyses_are_made_in_one_pass(whole: ng.analyses.Outcome) -> None:
    assert tuple(whole.study.folds) == tuple(ng.analyses.ANALYSES) == whole.run.settings.analyses
    assert [len(list(whole.run.results())), whole.run.sessions[0].groups] == [8, 8]
    with pytest.raises(AnalysisError, match="has no analysis 'types': it has effects, "):
        whole["types"]


def test_every_table_and_figure_is_a_file(whole: ng.analyses.Outcome) -> None:
    folder = whole.run.folder
    names = {name for fold in whole.study.folds.values() for name in fold.tables()}
    assert {one.name for one in (folder / "tables").iterdir()} == {
        "metadata.json",
        *(f"{name}.{ending}" for name in names for ending in ("csv", "parquet")),
    }
    drawn = {fold.name for fold in whole.study.analyses()}
    assert {one.name for one in (folder / "figures").iterdir()} == {
        f"{name}.{ending}" for name in drawn for ending in ("pdf", "png", "svg")
    }
    assert whole.report.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_pandas_alone_reads_the_folder_and_what_was_run(whole: ng.analyses.Outcome) -> None:
    program = """
import json, pathlib, sys
sys.modules["neuroglot"] = None
import pandas as pd
import pyarrow.parquet as pq
folder = pathlib.Path(sys.argv[1])
beside = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
for name, told in beside["tables"].items():
    parquet, csv = pd.read_parquet(folder / f"{name}.parquet"), pd.read_csv(folder / f"{name}.csv")
    assert list(parquet.columns) == list(csv.columns) == told["columns"], name
    assert len(parquet) == len(csv) == told["rows"] > 0, name
    pd.testing.assert_frame_equal(
        parquet.select_dtypes("number").astype(float), csv[parquet.select_dtypes("number").columns].astype(float)
    )
    assert json.loads(pq.read_schema(folder / f"{name}.parquet").metadata[b"neuroglot"]) == beside["neuroglot"]
print(json.dumps(beside["neuroglot"]))
"""
    command = [sys.executable, "-c", program, str(whole.run.folder / "tables")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    told, run = json.loads(ended.stdout), json.loads((whole.run.folder / "run.json").read_text(encoding="utf-8"))
    assert told == run["settings"] | {"sessions": run["sessions"]}
    assert len(told["bundle_identity"]) == len(told["data_sha256"]) == 64
    assert told["sessions"][0]["command"] == "neuroglot.analyses.run"
    assert {"neuroglot", "python", "numpy", "scipy", "pandas"} <= set(told["sessions"][0]["versions"])


def test_a_notebook_shows_figure_and_table_of_each_and_markup_stays_text(whole: ng.analyses.Outcome) -> None:
    html = whole._repr_html_()
    folds = whole.study.folds.values()
    assert html.count("<svg") == sum(isinstance(fold, Analysis) for fold in folds)
    assert html.count("<table") == sum(len(fold.tables()) for fold in folds)
    assert "<script" not in html
    assert "Mine &amp; &lt;yours&gt;" in html
    answers = whole["answers"]._repr_html_()
    assert answers in html
    assert "<td>&lt;i&gt;x</td>" in answers
    assert "<i>" not in html


def test_an_outcome_says_what_it_is_and_is_pickled(whole: ng.analyses.Outcome) -> None:
    assert repr(whole).startswith("<Outcome of mine with ")
    assert f": 8 groups x 3 languages; {', '.join(ng.analyses.ANALYSES)}; {whole.report}>" in repr(whole)
    assert repr(whole["accuracy"]) == f"<Accuracy: 8 groups in {', '.join(whole['accuracy'].languages)}>"
    again = pickle.loads(pickle.dumps(whole))
    pd.testing.assert_frame_equal(again["types_by_layer"].table(), whole["types_by_layer"].table())


def test_the_keywords_of_a_run_are_the_options_of_its_analyses() -> None:
    parameters = inspect.signature(ng.analyses.run).parameters
    for one in fields(Options):
        assert parameters[one.name].default == one.default
        assert f" {one.name}: " in ng.analyses.run.__doc__


def test_without_a_folder_it_is_kept_among_temporary_files(
    model: ng.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outcome = ng.analyses.run(model, task(), languages=["zh", "en"], limit=2, analyses=["answers"])
    assert outcome.run.folder.parent == tmp_path
    assert Run.open(outcome.run.folder).settings.languages == ("en", "zh")
    assert outcome["answers"].table()["language"].tolist() == ["en", "zh"]


def test_shards_of_a_real_run_merge_into_the_whole(model: ng.Model, tmp_path: Path) -> None:
    names = ["answers"]  # it draws no figure
    parts = [
        ng.analyses.run(model, task(), tmp_path / shard[0], analyses=names, shard=shard).run.folder
        for shard in ("1/2", "2/2")
    ]
    merged = ng.analyses.merge(parts, tmp_path / "merged")
    whole = ng.analyses.run(model, task(), tmp_path / "whole", analyses=names)
    assert merged.study.groups == 8
    for name in names:
        pd.testing.assert_frame_equal(merged[name].table(), whole[name].table(), rtol=1e-4)


def test_a_task_without_answers_has_the_analyses_of_types(model: ng.Model, tmp_path: Path) -> None:
    def unanswered(languages: Sequence[str], limit: int | None) -> Iterator[ng.Group]:
        for group in groups(languages, limit):
            yield ng.Group(group.prompts, id=group.id)

    assert {"types_by_layer", "top_contributors", "dead"} <= set(choose((), answers=False))
    assert not {"accuracy", "effects", "conversions", "effective_scores", "answers"} & set(choose((), answers=False))
    study = ng.analyses.run(model, task(unanswered), tmp_path / "run", limit=3, analyses=["dead"]).study
    assert (study.groups, list(study.folds)) == (3, ["dead"])
    with pytest.raises(
        AnalysisError, match="analysis 'accuracy' needs gold answers and the groups of this task have none"
    ):
        ng.analyses.run(model, task(unanswered), tmp_path / "refused", analyses=["accuracy"])
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda *_: iter(()), "has no groups in these languages"),
        (lambda languages, _: [*groups(languages, 2), *groups(languages, 1)], "2 groups with the id 'g0'"),
        (lambda languages, _: [ng.Group(dict.fromkeys(languages, "a"))], "a group without an id"),
    ],
)
def test_a_task_whose_answers_could_not_be_kept_is_refused(
    made: object, said: str, model: ng.Model, tmp_path: Path
) -> None:
    with pytest.raises(NeuroglotError, match=said):
        ng.analyses.run(model, task(made), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_page_of_the_analyses_is_made_from_their_classes() -> None:
    assert (ROOT / "docs" / "analyses.md").read_text(encoding="utf-8") == reference(), (
        "regenerate it: python -m neuroglot.analyses.reference > docs/analyses.md"
    )
