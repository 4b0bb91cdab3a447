"""The sections of a page, one per analysis, of one run or of several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from neuroglot.analyses.base.fold import Analysis, Fold
from neuroglot.analyses.figures.svg import inline_svg
from neuroglot.analyses.registry import ANALYSES
from neuroglot.analyses.study import Study
from neuroglot.comparison.compared_runs import ComparedRun, joined_tables
from neuroglot.comparison.comparison import Comparison
from neuroglot.report.tables import OPEN_ROWS, Table

Tables = Mapping[str, Mapping[str, pd.DataFrame]]
"""The tables of a run by name, by the name of the analysis."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        svg: the figure.
        caption: what it shows.
        run: the name of its run; empty on a page of one run.
    """

    svg: Markup
    caption: str
    run: str = ""


@dataclass(frozen=True)
class Section:
    """An analysis on the page.

    Attributes:
        name: name of the analysis; unique in the page.
        title: what it shows.
        definition: what is counted.
        pictures: its figures, one per run; empty if the analysis is a table only.
        tables: its tables.
    """

    name: str
    title: str
    definition: str
    pictures: tuple[Picture, ...]
    tables: tuple[Table, ...]


def tables_of(study: Study) -> Tables:
    """All tables of a study, computed once for all sections and sentences."""
    return {name: fold.tables() for name, fold in study.folds.items()}


def sections_of_run(study: Study, tables: Tables, figures: Mapping[str, str]) -> list[Section]:
    """The analyses of one run.

    Args:
        study: with at least one result.
        tables: its tables.
        figures: its figures as SVG, by the name of the analysis.
    """
    return [
        Section(
            name=name,
            title=fold.title,
            definition=fold.definition(),
            pictures=(_picture(fold, figures[name], name),) if isinstance(fold, Analysis) else (),
            tables=tuple(_tables(tables[name], fold)),
        )
        for name, fold in study.folds.items()
    ]


def sections_of_runs(
    runs: Sequence[ComparedRun], tables: Sequence[Tables], figures: Sequence[Mapping[str, str]]
) -> list[Section]:
    """The analyses of several runs, in the order of the registry: figures side by side, tables joined.

    Args:
        runs: what is compared.
        tables: of each run.
        figures: of each run its figures as SVG, by the name of the analysis.
    """
    sections = []
    for name in ANALYSES:
        having = [index for index, run in enumerate(runs) if name in run.study.folds]
        if not having:
            continue
        folds = {index: runs[index].study.folds[name] for index in having}
        first = folds[having[0]]
        sections.append(
            Section(
                name=name,
                title=first.title,
                definition=first.definition(),
                pictures=tuple(
                    _picture(fold, figures[index][name], f"{name}-{index}", runs[index].name, first.definition())
                    for index, fold in folds.items()
                    if isinstance(fold, Analysis)
                ),
                tables=tuple(_tables(joined_tables([(runs[index], tables[index][name]) for index in having]), first)),
            )
        )
    return sections


def sections_of_comparisons(comparisons: Sequence[Comparison], figures: Mapping[str, str]) -> list[Section]:
    """The figures that overlay runs.

    Args:
        comparisons: what is shown.
        figures: as SVG, by the name of the comparison.
    """
    return [
        Section(
            name=one.name,
            title=one.title,
            definition=one.definition(),
            pictures=(
                Picture(inline_svg(figures[one.name], one.name, f"{one.title}. {one.caption()}"), one.caption()),
            ),
            tables=(Table.of(one.name, one.table()),),
        )
        for one in comparisons
    ]


def _picture(analysis: Analysis, svg: str, name: str, run: str = "", shown: str = "") -> Picture:
    """A figure with its caption, after the analysis's own definition if that differs from the one already `shown`."""
    caption = analysis.caption()
    definition = analysis.definition() if shown else ""
    text = caption if definition == shown else f"{definition} {caption}"
    return Picture(inline_svg(svg, name, f"{analysis.title}. {caption}"), text, run)


def _tables(tables: Mapping[str, pd.DataFrame], fold: Fold) -> list[Table]:
    """Secondary tables first: short ones are expanded, as is a table without a figure."""
    may_be_open = [name for name in tables if name != fold.name or not isinstance(fold, Analysis)]
    return [
        Table.of(name, tables[name], is_open=name in may_be_open and len(tables[name]) <= OPEN_ROWS)
        for name in sorted(tables, key=lambda name: name == fold.name)
    ]
