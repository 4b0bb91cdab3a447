"""Several runs on one page, and in one folder of tables and figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from neuroglot.analyses.figures.output import save_figure, save_tables, to_svg
from neuroglot.comparison.answering import AccuracyAcrossRuns
from neuroglot.comparison.compared_runs import ComparedRun, compared, joined_tables
from neuroglot.comparison.comparison import Comparison
from neuroglot.comparison.differences import DifferencesAcrossRuns, unpaired
from neuroglot.comparison.shares import SharesAcrossRuns
from neuroglot.comparison.types import TypesAcrossRuns
from neuroglot.errors import AnalysisError, RunError
from neuroglot.pipeline.pipeline import FIGURES, REPORT, TABLES, study_of
from neuroglot.report.page import page_of_runs
from neuroglot.runs.run import RUN, Run

COMPARISONS: Sequence[type[Comparison]] = (
    TypesAcrossRuns,
    SharesAcrossRuns,
    AccuracyAcrossRuns,
    DifferencesAcrossRuns,
)
"""Every comparison, in the order of a page."""

COMPARED = "compared.json"
"""File in the folder of `compare` that records what was compared."""


def compare(folders: Sequence[Path], out: Path, command: str) -> Path:
    """Write the tables of several runs joined, figures that overlay them, and a page with all of it.

    Args:
        folders: folders of the runs, two or more.
        out: a folder, created if missing; files of an earlier comparison in it are replaced.
        command: the command line to record.

    Returns:
        The path of the page.

    Raises:
        AnalysisError: fewer than two runs, one of them twice or without an answer, or no analysis in common.
        RunError: a folder holds no run, or `out` holds one.
    """
    if (out / RUN).exists():
        raise RunError(f"{out} holds a run, which a comparison would overwrite: give another folder")
    runs = open_runs(folders)
    comparisons = [kind(runs) for kind in COMPARISONS if kind.possible(runs)]
    metadata = {"command": command, "runs": [_record(one) for one in runs]}
    joined = joined_tables([(one, _tables(one)) for one in runs])
    save_tables({**joined, **{one.name: one.table() for one in comparisons}}, out / TABLES, metadata)
    overlays = {one.name: save_figure(one.figure(), out / FIGURES, one.name) for one in comparisons}
    (out / COMPARED).write_text(json.dumps(metadata, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = out / REPORT
    page.write_text(_page(runs, comparisons, overlays), encoding="utf-8")
    return page


def write_page(folders: Sequence[Path], page: Path) -> None:
    """Write the page of several runs side by side; raises as `compare`.

    Args:
        folders: folders of the runs, two or more.
        page: path of the file to write.
    """
    runs = open_runs(folders)
    comparisons = [kind(runs) for kind in COMPARISONS if kind.possible(runs)]
    overlays = {one.name: to_svg(one.figure(), one.name) for one in comparisons}
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_page(runs, comparisons, overlays), encoding="utf-8")


def open_runs(folders: Sequence[Path]) -> tuple[ComparedRun, ...]:
    """Open the runs in folders, with their studies; raises as `compare`."""
    opened = [Run.open(folder) for folder in folders]
    runs = compared([(run, study_of(run)) for run in opened])
    counts = Counter(name for one in runs for name in one.study.folds)
    if max(counts.values()) < 2:
        has = "; ".join(f"{one.run.folder} has {', '.join(one.study.folds)}" for one in runs)
        raise AnalysisError(f"these runs have no analysis in common, so nothing of them compares: {has}")
    return runs


def _tables(run: ComparedRun) -> Mapping[str, pd.DataFrame]:
    return {name: table for fold in run.study.folds.values() for name, table in fold.tables().items()}


def _page(runs: Sequence[ComparedRun], comparisons: Sequence[Comparison], overlays: Mapping[str, str]) -> str:
    figures = [{one.name: to_svg(one.figure(), one.name) for one in run.study.analyses()} for run in runs]
    first, *others = runs
    notes = [
        f"{one.name} stands beside {first.name} without differences: {reason}."
        for one in others
        if (reason := unpaired(first, one))
    ]
    return page_of_runs(runs, figures, comparisons, overlays, notes)


def _record(run: ComparedRun) -> dict[str, object]:
    return {"name": run.name, "folder": str(run.run.folder), **asdict(run.run.settings)}
