"""The sections of a page: an analysis each, of one run or of several side by side."""

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
        run: the name of the run that it is of; empty where there is no other.
    """

    svg: Markup
    caption: str
    run: str = ""


@dataclass(frozen=True)
class Section:
    """An analysis as it stands on the page.

    Attributes:
        name: of the analysis; unique in the page.
        title: what it shows.
        definition: what is counted.
        pictures: its figures, one a run; none where the analysis is a table only.
        tables: those behind them.
    """

    name: str
    title: str
    definition: str
    pictures: tuple[Picture, ...]
    tables: tuple[Table, ...]


def tables_of(study: Study) -> Tables:
    """All tables of a study, made once for all that is said of them."""
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
        having = [place for place, one in enumerate(runs) if name in one.study.folds]
        if not having:
            continue
        folds = {place: runs[place].study.folds[name] for place in having}
        first = folds[having[0]]
        sections.append(
            Section(
                name=name,
                title=first.title,
                definition=first.definition(),
                pictures=tuple(
                    _picture(fold, figures[place][name], f"{name}-{place}", runs[place].name, first.definition())
                    for place, fold in folds.items()
                    if isinstance(fold, Analysis)
                ),
                tables=tuple(_tables(joined_tables([(runs[place], tables[place][name]) for place in having]), first)),
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


def _picture(analysis: Analysis, svg: str, name: str, run: str = "", said: str = "") -> Picture:
    """A figure; one of several runs has its own definition in front of the caption where another was `said` already."""
    caption = analysis.caption()
    definition = analysis.definition() if said else ""
    text = caption if definition == said else f"{definition} {caption}"
    return Picture(inline_svg(svg, name, f"{analysis.title}. {caption}"), text, run)


def _tables(tables: Mapping[str, pd.DataFrame], fold: Fold) -> list[Table]:
    """Other forms of a table first: where they are short they stand open, as a table without a figure does."""
    may_be_open = [name for name in tables if name != fold.name or not isinstance(fold, Analysis)]
    return [
        Table.of(name, tables[name], is_open=name in may_be_open and len(tables[name]) <= OPEN_ROWS)
        for name in sorted(tables, key=lambda name: name == fold.name)
    ]
