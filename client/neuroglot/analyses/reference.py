"""Generate docs/analyses.md from the classes of the analyses: `python -m neuroglot.analyses.reference`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from neuroglot.analyses.base.context import Context, Need
from neuroglot.analyses.base.fold import Analysis, Fold
from neuroglot.analyses.registry import ANALYSES
from neuroglot.tasks.capital_prompts import LANGUAGES

_HEAD = """\
# The analyses

Each analysis is a fold over the results of parallel groups. All requested analyses are computed in one pass, so that no
prompt is run twice. `neuroglot analyze TASK` runs all that the task allows, `--analyses NAME,NAME` a selection.

    out/
    ├── run.json                   model, task, options, commands and versions
    ├── examples.jsonl             the parallel groups
    ├── problems.txt               data errors and the entries left out because of them, if any
    ├── groups.binpb               every result, as the server returned it
    ├── tables/NAME.csv, .parquet  one tidy table each; metadata.json beside them describes the run, as does the schema
    │                              of each Parquet file, under the key `neuroglot`
    ├── figures/NAME.png, .svg, .pdf
    └── report.html                all of it on one page

`pandas.read_parquet("out/tables/types_by_layer.parquet")` reads a table without neuroglot. In Python,
`neuroglot.analyses.run(model, task)["NAME"]` is one analysis of a run, with `table()`, `tables()` and `figure()`; a
notebook displays tables and figure. Intervals (columns `..._low`, `..._high`) are 95 % intervals: bootstrap over
clusters of examples, or Wilson's where stated.

This page is generated from the classes: `python -m neuroglot.analyses.reference > docs/analyses.md`.
"""

_NEEDS = {
    Need.THRESHOLDS: "types at all thresholds",
    Need.TYPE_MAP: "the type of every neuron",
    Need.ACTIVE: "active bitmaps",
    Need.CONTRIBUTION: "contributions",
    Need.EFFECTIVE_SCORE: "effective scores",
    Need.DEAD: "neurons dead at every token",
    Need.ANSWERS: "predictions",
}


def reference() -> str:
    """Return the page as Markdown."""
    context = Context(languages=LANGUAGES)
    return "\n".join([_HEAD, *(line for kind in ANALYSES.values() for line in _section(kind, context))])


def _section(kind: type[Fold], context: Context) -> Iterator[str]:
    yield f"## {kind.title}\n"
    paper = f"; the paper's {kind.paper}" if issubclass(kind, Analysis) else "; a table without a figure"
    yield f"`{kind.name}`{paper}.\n"
    yield f"{_prose(kind(context).definition())}\n"
    if requested := ", ".join(words for need, words in _NEEDS.items() if need in kind.needs):
        runs = len(kind.variants(context))
        yield f"Requests {requested}{f', under {runs} interventions by default' if runs else ''}.\n"
    yield f"`tables/{kind.name}`: {_documented(kind.records)}\n"
    if kind.tables is not Fold.tables:
        yield f"{_documented(kind.tables)}\n"


def _documented(method: object) -> str:
    """Return the text of a docstring before its sections, as running text."""
    text = (inspect.getdoc(method) or "").split("\n\nRaises:")[0]
    return "\n\n".join(_prose(paragraph) for paragraph in text.split("\n\n"))


def _prose(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    click.echo(reference(), nl=False)
