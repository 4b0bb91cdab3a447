"""The page of a run, or of several: findings, figures, tables and what was run, in one file without references."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import jinja2
import pandas as pd

from neuroglot.analyses.accuracy.effects import Effects
from neuroglot.analyses.base.ablations import ABLATED
from neuroglot.analyses.study import Study
from neuroglot.comparison.compared_runs import ComparedRun
from neuroglot.comparison.comparison import Comparison
from neuroglot.report.example import Example
from neuroglot.report.facts import facts
from neuroglot.report.findings import Findings, findings
from neuroglot.report.sections import (
    Section,
    Tables,
    sections_of_comparisons,
    sections_of_run,
    sections_of_runs,
    tables_of,
)
from neuroglot.report.tables import SHOWN_ROWS
from neuroglot.request.neurons import NeuronType
from neuroglot.runs.run import Run


@dataclass(frozen=True)
class Told:
    """What a page tells of one run beside its analyses.

    Attributes:
        name: short; empty where there is no other run.
        findings: what was found.
        facts: what was run.
        example: one of its groups; None where several runs share a page.
    """

    name: str
    findings: Findings
    facts: Sequence[tuple[str, str]]
    example: Example | None = None


def page(run: Run, study: Study, figures: Mapping[str, str]) -> str:
    """The page of one run, as HTML.

    Args:
        run: what was run.
        study: its analyses, with at least one result.
        figures: the figure of each analysis as SVG, by the analysis' name.
    """
    settings, tables = run.settings, tables_of(study)
    return _render(
        kicker=settings.task_kind,
        title=f"{settings.task_title}, {settings.model}",
        byline=f"{_extent(study)}, {run.sessions[-1].started[:10]}",
        told=[Told("", findings(run, study, _flat(tables)), facts(run, study), Example.of(run, _costliest(study)))],
        sections=sections_of_run(study, tables, figures),
        beside="tables as CSV and Parquet, figures as PNG, SVG and PDF, every answer in groups.binpb",
    )


def page_of_runs(
    runs: Sequence[ComparedRun],
    figures: Sequence[Mapping[str, str]],
    comparisons: Sequence[Comparison],
    overlays: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    """The page of several runs side by side, as HTML.

    Args:
        runs: two or more.
        figures: of each run the figure of each analysis as SVG, by the analysis' name.
        comparisons: what is shown of all runs at once.
        overlays: the figure of each comparison as SVG, by the comparison's name.
        notes: what does not compare, and why.
    """
    titles = dict.fromkeys(one.run.settings.task_title for one in runs)
    extents = dict.fromkeys(_extent(one.study) for one in runs)
    tables = [tables_of(one.study) for one in runs]
    return _render(
        kicker=", ".join(dict.fromkeys(one.run.settings.task_kind for one in runs)),
        title=f"{', '.join(titles)}: {len(runs)} runs side by side",
        byline=f"{'; '.join(extents)}. The runs: {'; '.join(one.name for one in runs)}",
        told=[
            Told(one.name, findings(one.run, one.study, _flat(its)), facts(one.run, one.study))
            for one, its in zip(runs, tables, strict=True)
        ],
        sections=[*sections_of_comparisons(comparisons, overlays), *sections_of_runs(runs, tables, figures)],
        beside="the folder of each run has its tables, its figures and every answer",
        notes=notes,
    )


def _flat(tables: Tables) -> dict[str, pd.DataFrame]:
    return {name: table for of_one in tables.values() for name, table in of_one.items()}


def _extent(study: Study) -> str:
    languages = study.context.languages
    return f"{study.groups:,} parallel groups in {len(languages)} languages ({' '.join(languages)})"


def _costliest(study: Study) -> str:
    """The variant with the largest loss of exact matches; empty if no variant was run."""
    effects = study.find(Effects)
    if effects is None:
        return ""
    hardest = min(effects.against_control()[: len(ABLATED)], key=lambda effect: effect.without)
    return effects.ablations.without(NeuronType.from_label(hardest.type))


def _render(
    *,
    kicker: str,
    title: str,
    byline: str,
    told: Sequence[Told],
    sections: Sequence[Section],
    beside: str,
    notes: Sequence[str] = (),
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neuroglot.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = _prose
    return environment.get_template("page.html.j2").render(
        kicker=kicker,
        title=title,
        byline=byline,
        told=told,
        sections=sections,
        beside=beside,
        notes=notes,
        shown_rows=SHOWN_ROWS,
        version=version("neuroglot"),
    )


def _prose(text: str) -> str:
    """Text in which no line breaks before a percent sign or within a p-value."""
    return re.sub(r" (?=%)|(?<=\bp) (?=[<=])|(?<=\bp [<=]) ", "\N{NO-BREAK SPACE}", text)
