"""Options that choose a command's groups and analyses.

An option's parameter has the name of the field that it sets, so that the fields are filled by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any

import click

from neuroglot.cli.sections import option
from neuroglot.request.options import ScoreTarget
from neuroglot.request.selections import ControlKind
from neuroglot.runs.settings import MEAN, Options, ScoreReduction
from neuroglot.tasks.task import TaskOptions

Decorator = Callable[[Any], Any]


def _listed(item: Callable[[str], Any] = str, separator: str = ",") -> Callable[..., tuple[Any, ...] | None]:
    """Parser of a separated list; empty items are skipped.

    Args:
        item: makes an item of its text; raises ValueError for invalid text.
        separator: separator of the items.
    """

    def read(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[Any, ...] | None:
        if value is None:
            return None
        items = (one.strip() for one in value.split(separator))
        try:
            return tuple(item(one) for one in items if one)
        except ValueError as error:
            raise click.BadParameter(f"{value!r}: {error}") from None

    return read


def _number_or_mean(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | str | None:
    if value is None or value == MEAN:
        return value
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor {MEAN!r}") from None


def _underscored(word: str) -> str:
    """Replace the hyphens of a command line's word with underscores."""
    return word.replace("-", "_")


def _hyphened(words: Iterable[str]) -> list[str]:
    return [word.replace("_", "-") for word in words]


def _default(*values: object) -> str:
    """What the help says of a default, as it is typed. Options that are not given are left out of what is chosen."""
    return f"[default: {','.join(_hyphened(map(str, values)))}]"


def _enumerated(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else _underscored(value)


def _subset(text: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in text.split(","))


def _all_of(decorators: Iterable[Decorator]) -> Decorator:
    """The decorators one above the other, the first one on top."""
    return lambda command: reduce(lambda decorated, one: one(decorated), reversed(list(decorators)), command)


_DATA = "The data"
_ANALYSES = "The analyses"
_DEFAULT = Options()

chooses_groups = _all_of(
    (
        option(_DATA, "--data", type=click.Path(path_type=Path), metavar="PATH", help="The task's file or folder."),
        option(
            _DATA, "--languages", callback=_listed(), metavar="en,de,...", help="Rows of every group; by default all."
        ),
        option(_DATA, "--limit", type=click.IntRange(min=1), metavar="N", help="Ask only the first N groups."),
        option(
            _DATA,
            "--template-language",
            type=click.Choice(["en", "own"]),
            help="Language of the words around a text: English in every row, or the row's own.",
        ),
        option(_DATA, "--templates", callback=_listed(int), metavar="0,1,...", help="Which wordings to ask in."),
        option(
            _DATA, "--shots", type=click.IntRange(min=0), metavar="N", help="Solved examples in front of every prompt."
        ),
        option(_DATA, "--direction", metavar="en-all|all-en", help="From which language to which an edit goes."),
        option(
            _DATA, "--relations", callback=_listed(), metavar="P36,...", help="Which facts to ask for; by default all."
        ),
        option(_DATA, "--skip-bad-data", is_flag=True, help="Report what is wrong in the data, and leave it out."),
        option(
            _DATA,
            "--shard",
            default="",
            metavar="I/N",
            help="Ask only part I of N, on one of several machines; `neuroglot merge` puts the parts together.",
        ),
    )
)
"""Adds the options of tasks to a command."""

chooses_analyses = _all_of(
    (
        option(
            _ANALYSES,
            "--analyses",
            callback=_listed(_underscored),
            metavar="A,B,...",
            help="Which to make, all in one pass; by default all that the task allows.",
        ),
        option(
            _ANALYSES,
            "--draws",
            type=click.IntRange(min=1),
            metavar="N",
            help="Draws of each control.  " + _default(_DEFAULT.draws),
        ),
        option(
            _ANALYSES,
            "--controls",
            callback=_listed(_underscored),
            metavar="A,B,...",
            help=f"What a type is compared with: {', '.join(_hyphened(ControlKind))}.  {_default(*_DEFAULT.controls)}",
        ),
        option(
            _ANALYSES,
            "--seed",
            type=click.IntRange(0, 2**64 - 1),
            metavar="N",
            help="Of controls, tests, intervals and solved examples.  " + _default(_DEFAULT.seed),
        ),
        option(
            _ANALYSES,
            "--thresholds",
            callback=_listed(float),
            metavar="0,0.1,...",
            help="A neuron is active above them; all analyses but one use the first.  "
            + _default(*(f"{one:g}" for one in _DEFAULT.thresholds)),
        ),
        option(
            _ANALYSES,
            "--top",
            "top_fraction",
            type=float,
            metavar="SHARE",
            help="Share of a layer's neurons that are its top contributors.  " + _default(_DEFAULT.top_fraction),
        ),
        option(
            _ANALYSES,
            "--score-target",
            type=click.Choice(_hyphened(ScoreTarget)),
            callback=_enumerated,
            help="Of which tokens effective scores are taken.  " + _default(_DEFAULT.score_target),
        ),
        option(
            _ANALYSES,
            "--score-reduction",
            type=click.Choice(_hyphened(ScoreReduction)),
            callback=_enumerated,
            help="How their extremes are taken over layers.  " + _default(_DEFAULT.score_reduction),
        ),
        option(
            _ANALYSES,
            "--convert-to",
            callback=_number_or_mean,
            metavar="VALUE|mean",
            help="What converted neurons are set to; by default the next number above the threshold.",
        ),
        option(
            _ANALYSES,
            "--subsets",
            callback=_listed(_subset, ";"),
            metavar="'en,de;en,zh'",
            help="Sets of languages to type neurons among; by default all sets of 3, 5, 7, ...",
        ),
        option(
            _ANALYSES,
            "--cumulative-dead",
            is_flag=True,
            help="Draw neurons that are dead in all prompts, not in a prompt; the table has both.",
        ),
        option(_ANALYSES, "--component", metavar="NAME", help="Intervene in the encoder alone, or in the decoder."),
        option(
            _ANALYSES,
            "--replicates",
            type=click.IntRange(min=1),
            metavar="N",
            help="Of the bootstrap, for intervals.  " + _default(_DEFAULT.replicates),
        ),
    )
)
"""Adds the options of analyses to a command."""


def task_options(given: Mapping[str, Any]) -> TaskOptions:
    """What the options of `chooses_groups` say of the task; what was not given is left to it."""
    names = (field.name for field in fields(TaskOptions))
    return TaskOptions(**{name: given[name] for name in names if given[name] is not None})


def chosen(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `neuroglot.analyses.run` from the options of `chooses_analyses` that were given."""
    return {field.name: given[field.name] for field in fields(Options) if given[field.name] is not None}
