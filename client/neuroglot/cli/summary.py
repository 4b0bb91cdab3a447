"""What a run found, on a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from neuroglot.analyses.effects import Effect, Metric, p_words
from neuroglot.analyses.pipeline import Outcome
from neuroglot.report.findings import headline


def show_outcome(outcome: Outcome) -> None:
    """Print the effect of each type's loss, the finding in a sentence, and where the report is."""
    console = Console()
    settings, study = outcome.run.settings, outcome.study
    effects = study.effects.effects()
    exact, log_probability = ([one for one in effects if one.metric is metric] for metric in Metric)
    table = Table(
        title=f"{study.groups:,} groups x {len(settings.languages)} languages, {settings.model}",
        title_justify="left",
        caption="random: as many neurons that are active in the row; p: corrected."
        + study.effects.ablations.where(study.effects.geometry),
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
            f"{one.control:.1f}",
            _p(one),
            f"{other.without:.4f}",
            f"{other.control:.4f}",
            _p(other),
        )
    console.print(table)
    console.print(headline(effects), highlight=False)
    if missing := settings.groups - study.groups:
        reason = next(iter(outcome.run.failures.values()), "")
        console.print(f"{missing:,} of {settings.groups:,} groups have no answer: {reason}", style="red", markup=False)
    console.print(f"Report: {outcome.report}", highlight=False, soft_wrap=True)


def _p(effect: Effect) -> str:
    return p_words(effect.p_holm).replace(" ", "").removeprefix("p").removeprefix("=")
