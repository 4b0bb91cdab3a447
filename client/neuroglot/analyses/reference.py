"""The page that lists the analyses, made from their classes: `python -m neuroglot.analyses.reference`."""

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

Each is a fold over the answers about parallel groups; all that are asked for together are made in one pass, so that no
prompt is computed twice. `neuroglot analyze TASK` makes all that the task allows, `--analyses NAME,NAME` some of them.

    out/
    ├── run.json                   what was run, on what, by which commands, with which versions
    ├── examples.jsonl             the parallel groups
    ├── problems.txt               what was wrong with the data and is left out, where anything was
    ├── groups.binpb               every answer, as the server gave it
    ├── tables/NAME.csv, .parquet  a tidy table each; metadata.json beside them says what was run, and so does the
    │                              schema of each Parquet file, under the key `neuroglot`
    ├── figures/NAME.png, .svg, .pdf
    └── report.html                all of it on one page

`pandas.read_parquet("out/tables/types_by_layer.parquet")` needs nothing of neuroglot. In Python, a run is
`neuroglot.analyses.run(model, task)["NAME"]`, which has `table()`, `tables()` and `figure()`, and shows both in a
notebook. Intervals (columns `..._low`, `..._high`) are 95 %: of a bootstrap over clusters of examples, or Wilson's
where the text says so.

This page is made from the classes: `python -m neuroglot.analyses.reference > docs/analyses.md`.
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
    """The page, as Markdown."""
    context = Context(languages=LANGUAGES)
    return "\n".join([_HEAD, *(line for kind in ANALYSES.values() for line in _section(kind, context))])


def _section(kind: type[Fold], context: Context) -> Iterator[str]:
    yield f"## {kind.title}\n"
    paper = f"; the paper's {kind.paper}" if issubclass(kind, Analysis) else "; a table without a figure"
    yield f"`{kind.name}`{paper}.\n"
    yield f"{_prose(kind(context).definition())}\n"
    if asked := ", ".join(words for need, words in _NEEDS.items() if need in kind.needs):
        runs = len(kind.variants(context))
        yield f"Asks for {asked}{f', under {runs} interventions by default' if runs else ''}.\n"
    yield f"`tables/{kind.name}`: {_documented(kind.records)}\n"
    if kind.tables is not Fold.tables:
        yield f"{_documented(kind.tables)}\n"


def _documented(method: object) -> str:
    """What a docstring says, before its sections, as running text."""
    text = (inspect.getdoc(method) or "").split("\n\nRaises:")[0]
    return "\n\n".join(_prose(paragraph) for paragraph in text.split("\n\n"))


def _prose(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    click.echo(reference(), nl=False)
