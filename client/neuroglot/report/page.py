"""The page of a run: figures, tables and what was run, in one file without references to others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

import jinja2
import pandas as pd
from markupsafe import Markup
from pandas.api.types import is_numeric_dtype

from neuroglot.analyses.ablations import ABLATED
from neuroglot.analyses.accuracy import Accuracy
from neuroglot.analyses.fold import Analysis
from neuroglot.analyses.study import Study
from neuroglot.report.findings import findings
from neuroglot.results import BASELINE
from neuroglot.runs import Run, Session


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        shown: as it is read.
        value: as it is sorted and downloaded, with all its digits.
        number: whether it is one.
    """

    shown: str
    value: str
    number: bool


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        name: stem of the file that it can be downloaded as.
        columns: names of the columns, and whether each holds numbers.
        rows: the cells.
    """

    name: str
    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(cls, name: str, frame: pd.DataFrame) -> Table:
        """A tidy table, a cell each."""
        rows = tuple(tuple(map(_cell, row)) for row in frame.itertuples(index=False, name=None))
        columns = tuple((str(column), is_numeric_dtype(frame[column])) for column in frame.columns)
        return cls(name, columns, rows)


@dataclass(frozen=True)
class Section:
    """A figure of the page, with its caption and the table behind it."""

    title: str
    definition: str
    caption: str
    svg: Markup
    table: Table


@dataclass(frozen=True)
class ExampleRow:
    """One language of the example that the page shows."""

    language: str
    prompt: str
    answer: str
    baseline: str
    without: str


def page(run: Run, study: Study, figures: Mapping[str, str]) -> str:
    """The page, as HTML.

    Args:
        run: what was run.
        study: its analyses, with at least one result.
        figures: the figure of each analysis as SVG, by the analysis' name.
    """
    settings = run.settings
    hardest = min(study.effects.effects()[: len(ABLATED)], key=lambda effect: effect.without)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neuroglot.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = _prose
    return environment.get_template("page.html.j2").render(
        settings=settings,
        run=run,
        study=study,
        findings=findings(study, run),
        summary=accuracy_by_language(study.accuracy),
        sections=[_section(analysis, figures[analysis.name]) for analysis in study.analyses()],
        answers_definition=study.answers.definition(),
        answers=Table.of(study.answers.name, study.answers.table()),
        example=_example(run, f"w/o {hardest.type}"),
        example_variant=f"w/o {hardest.type}",
        facts=_facts(run, study),
        version=version("neuroglot"),
    )


def accuracy_by_language(accuracy: Accuracy) -> Table:
    """The form of the paper's Table 2: exact match in percent, a line a condition, a column a language."""
    ablations = accuracy.ablations
    lines = {BASELINE: accuracy.exact_percent(BASELINE)}
    for kind in ABLATED:
        lines[f"w/o {kind.label}"] = accuracy.exact_percent(ablations.without(kind))
        controls = [accuracy.exact_percent(name) for name in ablations.controls(kind)]
        lines[f"control of {kind.label}"] = sum(controls[1:], controls[0]) / len(controls)
    rows = tuple(
        (Cell(name, name, number=False), *(Cell(f"{one:.1f}", repr(float(one)), number=True) for one in percents))
        for name, percents in lines.items()
    )
    columns = (("exact match (%)", False), *((language, True) for language in ("all", *accuracy.languages)))
    return Table("accuracy_by_language", columns, rows)


def inline_svg(svg: str, name: str, label: str) -> Markup:
    """An SVG that can stand among others in a page: no prolog, its own ids, as wide as there is room, with a label."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = body.replace("url(#", f"url(#{name}-")
    opening, rest = body.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    return Markup(f'{opening} role="img" aria-label="{Markup.escape(label)}">{rest}')  # noqa: S704 - our own SVG


def _section(analysis: Analysis, svg: str) -> Section:
    caption = analysis.caption()
    return Section(
        title=analysis.title,
        definition=analysis.definition(),
        caption=caption,
        svg=inline_svg(svg, analysis.name, f"{analysis.title}. {caption}"),
        table=Table.of(analysis.name, analysis.table()),
    )


def _cell(value: object) -> Cell:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return Cell("", "", number=False)
    if isinstance(value, float):
        shown = f"{value:.3g}" if 0 < abs(value) < 0.01 else f"{value:,.2f}"
        return Cell(shown, repr(value), number=True)
    if isinstance(value, int):
        return Cell(f"{value:,}", str(value), number=True)
    return Cell(str(value), str(value), number=False)


def _example(run: Run, variant: str) -> list[ExampleRow]:
    """The first of the run's groups that is answered: what was asked, and what the model said."""
    done = run.done()
    group = next(group for group in run.examples() if group.id in done)
    predictions = next(result for result in run.results() if result.group_id == group.id).predictions
    return [
        ExampleRow(
            language=language,
            prompt=group.prompts[language],
            answer=group.answers[language][0],
            baseline=predictions[BASELINE][language].text,
            without=predictions[variant][language].text,
        )
        for language in run.settings.languages
    ]


def _facts(run: Run, study: Study) -> list[tuple[str, str]]:
    """What was run: terms, and what there is to say of each."""
    settings = run.settings
    geometry = ", ".join(
        f"{name} of {layers} layers x {neurons:,} neurons" for name, (layers, neurons) in study.types.geometry.items()
    )
    revision = f" at {settings.source_revision}" if settings.source_revision else ""
    near, activations = study.types.near_threshold()
    servers = sorted({result.provenance.server_version for result in run.results()})
    versions = ", ".join(f"{name} {number}" for name, number in run.sessions[-1].versions.items())
    failed = f", {len(run.failures):,} failed" if run.failures else ""
    return [
        ("Model", f"{settings.model}: family {settings.family}, {geometry}, {settings.dtype}"),
        ("Source", f"{settings.source}{revision}"),
        ("Bundle", settings.bundle_identity),
        ("Data", settings.task_data),
        ("Data hash", settings.data_sha256),
        (
            "Groups",
            f"{study.groups:,} of {settings.groups:,} answered{failed}; {len(settings.languages)} languages each",
        ),
        ("Settings", _settings(run)),
        (
            "Near the threshold",
            f"{near:,} of {activations:,} activations lie within 0.00001 of it (of 0: above it)",
        ),
        ("Versions", f"server {', '.join(servers)}; client {versions}"),
        *(("Command" if not place else "Resumed", _session(one)) for place, one in enumerate(run.sessions)),
    ]


def _prose(text: str) -> str:
    """Text in which no line breaks before a percent sign or within a p-value."""
    return re.sub(r" (?=%)|(?<=\bp) (?=[<=])|(?<=\bp [<=]) ", "\N{NO-BREAK SPACE}", text)


def _settings(run: Run) -> str:
    settings = run.settings
    alone = f", ablations in the {settings.component} alone" if settings.component else ""
    return (
        f"threshold {settings.threshold:g}, top {100 * settings.top_fraction:g} % of contribution, "
        f"{settings.draws} draws of each control, seed {settings.seed}{alone}"
    )


def _session(session: Session) -> str:
    took = f"{session.groups:,} groups in {session.seconds:,.0f} s" if session.finished else "ended by a kill"
    return f"{session.command} ({session.started.replace('T', ' ').replace('+00:00', ' UTC')}, {took})"
