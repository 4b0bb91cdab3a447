"""Accuracy of several runs by language."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from neuroglot.analyses.accuracy.accuracy import Accuracy
from neuroglot.analyses.accuracy.predictions import percent, percent_interval
from neuroglot.analyses.base.languages import in_order
from neuroglot.analyses.figures.style import COLUMN_INCHES
from neuroglot.comparison.compared_runs import ComparedRun
from neuroglot.comparison.comparison import Comparison
from neuroglot.comparison.series import look_key, looks_of, numbers_of
from neuroglot.results.results import BASELINE

_SPREAD = 0.6  # of a row's height, shared by the marks of its runs
_ALL = "all"


class AccuracyAcrossRuns(Comparison):
    """Exact match with all neurons, by language and over all languages."""

    name = "accuracy_across_runs"
    title = "Accuracy by language, runs compared"
    paper = ""
    needs = Accuracy.name

    def records(self, run: ComparedRun) -> Iterator[dict[str, object]]:
        """One row a language, and one for all languages pooled.

        Columns language, exact_percent, exact_low, exact_high (95 % interval: Wilson's for a language, bootstrap over
        clusters for all), groups.
        """
        sums, languages = accuracy_of(run).sums, accuracy_of(run).languages
        low, high = percent_interval(sums, BASELINE)
        for index, (language, exact) in enumerate(zip((_ALL, *languages), percent(sums, BASELINE), strict=True)):
            yield {
                "language": language,
                "exact_percent": exact,
                "exact_low": low[index],
                "exact_high": high[index],
                "groups": len(sums),
            }

    def definition(self) -> str:
        """Define exact match."""
        return (
            "Exact match: every token of the gold answer has the largest logit, given the tokens before it. No neurons "
            "are deactivated; for ablations see the tables of the single runs."
        )

    def caption(self) -> str:
        """Caption with the sizes and the intervals."""
        return (
            f"Exact match with all neurons, by language. {self.sizes()}. Lines: 95 % intervals; Wilson's for "
            "a language, which assumes independent prompts; bootstrap over clusters for all languages. The axis may "
            "not start at 0."
        )

    def draw(self) -> Figure:
        """Draw one row a language, one mark a run."""
        languages = (_ALL, *in_order({language for one in self.runs for language in accuracy_of(one).languages}))
        height = 0.1 * len(self.runs) + 0.1
        figure = Figure(figsize=(COLUMN_INCHES, 0.8 + height * len(languages)), layout="constrained")
        axes = figure.subplots()
        looks = looks_of([one.name for one in self.runs], ordered=numbers_of(self.runs) is not None)
        steps = np.linspace(-_SPREAD / 2, _SPREAD / 2, len(self.runs))
        for one, look, step in zip(self.runs, looks, steps, strict=True):
            records = list(self.records(one))
            heights = [languages.index(str(record["language"])) + step for record in records]
            exact, low, high = (
                np.array([record[name] for record in records], dtype=np.float64)
                for name in ("exact_percent", "exact_low", "exact_high")
            )
            axes.hlines(heights, low, high, color=look.colour, linewidth=1)
            axes.plot(exact, heights, "o", color=look.colour, markersize=3.4, label=look.label)
        axes.set_yticks(range(len(languages)), languages)
        axes.set_ylim(len(languages) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        for line in range(len(languages) - 1):
            axes.axhline(line + 0.5, color="#eeeeee", linewidth=0.5, zorder=0)
        axes.margins(x=0.04)
        axes.set_xlabel("exact match (%)")
        look_key(figure, [look._replace(dash="-") for look in looks])
        return figure


def accuracy_of(run: ComparedRun) -> Accuracy:
    """Return the accuracy analysis of a run that includes it."""
    fold = run.study.find(Accuracy)
    assert fold is not None
    return fold
