"""`neuroglot compare`: the tables of several runs joined, and figures that overlay them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=_FOLDER)
@click.option("--out", type=_FOLDER, required=True, metavar="DIR", help="The folder for tables, figures and the page.")
def compare(folders: tuple[Path, ...], out: Path) -> None:
    """Put the runs in two or more DIRs side by side: another model, task, number of examples, ...

    Tables get a column `run`, and one for each setting in which the runs differ. Runs that were asked about the same
    examples in the same languages are compared with the first one, with paired intervals.
    """
    from neuroglot.pipeline.publish_comparison import compare as compared  # here: `--help` needs none of this

    page = compared(folders, out, shlex.join(["neuroglot", *sys.argv[1:]]))
    click.echo(f"Report: {page}")
