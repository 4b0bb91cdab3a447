"""How often runs answer right, language by language."""

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

_SPREAD = 0.6  # of a line's height, shared by the marks of its runs
_ALL = "all"


class AccuracyAcrossRuns(Comparison):
    """Exact match with all neurons, in each language and in all of them."""

    name = "accuracy_across_runs"
    title = "Accuracy by language, runs compared"
    paper = ""
    needs = Accuracy.name

    def records(self, run: ComparedRun) -> Iterator[dict[str, object]]:
        """One row a language, and one for all of them.

        Columns language, exact_percent, exact_low, exact_high (Wilson's 95 % interval of a language; of all together
        the bootstrap's over clusters), groups.
        """
        sums, languages = accuracy_of(run).sums, accuracy_of(run).languages
        low, high = percent_interval(sums, BASELINE)
        for place, (language, exact) in enumerate(zip((_ALL, *languages), percent(sums, BASELINE), strict=True)):
            yield {
                "language": language,
                "exact_percent": exact,
                "exact_low": low[place],
                "exact_high": high[place],
                "groups": len(sums),
            }

    def definition(self) -> str:
        """Says of what."""
        return (
            "Exact: every token of the gold answer is the model's first choice, given those before it. With all "
            "neurons; what it is without some, the table of each run says."
        )

    def caption(self) -> str:
        """Says the sizes and the intervals."""
        return (
            f"Exact match with all neurons, by language. {self.sizes()}. Lines: Wilson's 95 % interval, which takes "
            "prompts as independent; of all languages together, the bootstrap's over clusters. Mind where the axis "
            "starts."
        )

    def draw(self) -> Figure:
        """A line a language, a mark a run."""
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
    """The accuracy of a run that has it."""
    fold = run.study.find(Accuracy)
    assert fold is not None
    return fold
