"""`neuroglot report`: tables, figures and the report of a run, from the answers that it has."""

from __future__ import annotations

from pathlib import Path

import click

from neuroglot.runs import Run


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write tables, figures and the report of the run in FOLDER anew, complete or not, without a server."""
    from neuroglot.analyses.pipeline import publish  # here: `--help` needs none of what this imports
    from neuroglot.cli.summary import show_outcome

    show_outcome(publish(Run.open(folder)))
