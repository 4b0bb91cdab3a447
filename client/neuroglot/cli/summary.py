"""Summary of a run's findings for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from neuroglot.analyses.accuracy.effects import Effect, Effects
from neuroglot.analyses.accuracy.predictions import Metric
from neuroglot.analyses.base.statistics import p_words
from neuroglot.pipeline.pipeline import Outcome
from neuroglot.report.headline import headline
from neuroglot.runs.run import PROBLEMS


def show_outcome(outcome: Outcome) -> None:
    """Print the effect of each type's loss, the finding in a sentence, what is missing, and where the report is."""
    console = Console()
    run, study = outcome.run, outcome.study
    settings = run.settings
    title = f"{study.groups:,} groups x {len(settings.languages)} languages, {settings.model}"
    if (found := study.find(Effects)) is not None:
        effects = found.against_control()
        console.print(_effects(title, effects, found.ablations.where(found.geometry)))
        console.print(headline(effects), highlight=False)
    else:
        console.print(f"{title}: {', '.join(study.folds)}", highlight=False)
    if missing := len(run.asked()) - study.groups:
        reason = next(iter(run.failures.values()), "")
        console.print(f"{missing:,} of {len(run.asked()):,} groups have no answer: {reason}", style="red", markup=False)
    if settings.problems:
        left_out = sum(settings.problems.values())
        console.print(
            f"{left_out:,} problems of the data are left out: {run.folder / PROBLEMS}", style="yellow", soft_wrap=True
        )
    console.print(f"Report: {outcome.report}", highlight=False, soft_wrap=True)


def _effects(title: str, effects: tuple[Effect, ...], where: str) -> Table:
    exact, log_probability = (
        [one for one in effects if one.metric is metric] for metric in (Metric.EXACT, Metric.LOG_PROBABILITY)
    )
    table = Table(
        title=title,
        title_justify="left",
        caption=f"random: as many neurons that are active in the row; p: corrected.{where}",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    table.add_column("deactivated", no_wrap=True)
    for column in ("active", "exact %", "random", "p", "log-prob.", "random", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("nothing", "", f"{exact[0].baseline:.1f}", "", "", f"{log_probability[0].baseline:.4f}")
    for one, other in zip(exact, log_probability, strict=True):
        table.add_row(
            one.type,
            f"{one.active_neurons:,.0f}",
            f"{one.without:.1f}",
            f"{one.reference:.1f}",
            _p(one),
            f"{other.without:.4f}",
            f"{other.reference:.4f}",
            _p(other),
        )
    return table


def _p(effect: Effect) -> str:
    return p_words(effect.p_holm).replace(" ", "").removeprefix("p").removeprefix("=")
