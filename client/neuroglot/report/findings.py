"""Findings of a run as sentences generated from its numbers, beside the paper's findings, and the cautions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from neuroglot.analyses.accuracy.effects import Effects
from neuroglot.analyses.accuracy.predictions import Metric
from neuroglot.analyses.study import Study
from neuroglot.report.cautions import cautions
from neuroglot.report.headline import headline
from neuroglot.report.sentences import OF_FACT_PROBING, SENTENCES
from neuroglot.report.words import points
from neuroglot.runs.run import Run

_ABLATED_IN_THE_PAPER = ("natural language inference", "knowledge editing")


@dataclass(frozen=True)
class Findings:
    """The words of a report.

    Attributes:
        headline: the main finding, in one or two sentences; empty if no type was deactivated.
        comparisons: other findings by topic, each beside the paper's.
        cautions: caveats on the findings.
    """

    headline: str
    comparisons: tuple[tuple[str, str], ...]
    cautions: tuple[str, ...]


def findings(run: Run, study: Study, tables: Mapping[str, pd.DataFrame]) -> Findings:
    """Describe a study in sentences.

    Args:
        run: the run.
        study: its analyses, with at least one result.
        tables: tables of the analyses, by name.
    """
    effects = study.find(Effects)
    return Findings(
        headline=headline(effects.against_control()) if isinstance(effects, Effects) else "",
        comparisons=tuple(_comparisons(run, study, tables)),
        cautions=tuple(cautions(run, study, tables)),
    )


def _comparisons(run: Run, study: Study, tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, str]]:
    kind = run.settings.task_kind
    if effects := study.find(Effects):
        yield "Ablations", _ablations(effects, kind)
    for name, (topic, sentence) in SENTENCES.items():
        if name in tables and (finding := sentence(tables[name])):
            theirs = OF_FACT_PROBING.get(name, "") if kind == "fact probing" else ""
            yield topic, f"{finding} {theirs}".rstrip()


def _ablations(analysis: Effects, kind: str) -> str:
    effects = [effect for effect in analysis.against_control() if effect.metric is Metric.EXACT]
    lowest = min(effects, key=lambda effect: effect.without)
    losses = [f"{effect.type} {points(effect.without - effect.baseline)}" for effect in effects]
    ablated = "" if kind in _ABLATED_IN_THE_PAPER else f"no ablation of {kind} and "
    return (
        f"Against all neurons, exact match falls furthest without the {lowest.type} ones ({', '.join(losses)})."
        f"{analysis.ablations.where(analysis.geometry)} In the paper accuracy falls furthest without the all-shared "
        f"neurons, on natural language inference and knowledge editing (Tables 2, 5 and 6); it has {ablated}no random "
        "control."
    )
