"""`neuroglot report`: tables, figures and the report of a run from the answers that it has; or of several runs."""

from __future__ import annotations

from pathlib import Path

import click

from neuroglot.runs.run import Run

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=_PATH)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    default="report.html",
    show_default=True,
    help="The page of several runs. The report of one run is written into its folder.",
)
@click.pass_context
def report(context: click.Context, folders: tuple[Path, ...], out: Path) -> None:
    """Rewrite tables, figures and the report of the run in DIR, complete or not, without a server.

    With several DIRs, write one page with these runs side by side, and nothing else.
    """
    if len(folders) == 1:
        if context.get_parameter_source("out") is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError("--out is of the page of several runs: that of one run is written into its folder")
        from neuroglot.cli.summary import show_outcome
        from neuroglot.pipeline.pipeline import publish  # here: `--help` needs none of what this imports

        show_outcome(publish(Run.open(folders[0])))
    else:
        from neuroglot.pipeline.publish_comparison import write_page

        write_page(folders, out)
        click.echo(f"Report: {out}")
