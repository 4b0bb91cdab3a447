"""`neuroglot merge`: parts of a run, made on several machines, as one run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from neuroglot.runs.merging import missing_shards

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=_FOLDER)
@click.option("--out", type=_FOLDER, required=True, metavar="DIR", help="The folder for the whole run.")
def merge(folders: tuple[Path, ...], out: Path) -> None:
    """Put the parts of a run in each DIR together: tables, figures and the report of the whole.

    The parts are those of `neuroglot analyze --shard`, or any others of the same settings, complete or not. What is
    missing is said; `neuroglot analyze --resume` without --shard asks for it.
    """
    from neuroglot.cli.summary import show_outcome
    from neuroglot.pipeline.pipeline import merge as merged  # here: `--help` needs none of what this imports

    outcome = merged(folders, out, command=shlex.join(["neuroglot", *sys.argv[1:]]))
    show_outcome(outcome)
    if missing := missing_shards(folders):
        click.secho(f"Missing: part {', '.join(missing)}", fg="yellow")
