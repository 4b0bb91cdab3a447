"""`neuroglot analyze`: a task, a model, and a folder with tables, figures and a report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

import neuroglot
from neuroglot.cli.choosing import chooses_analyses, chooses_groups, chosen, task_options
from neuroglot.cli.progress import GroupProgress
from neuroglot.cli.reaching import Shown, reaches_a_server
from neuroglot.cli.sections import Command, option
from neuroglot.runs.run import PROBLEMS, RUN, Run
from neuroglot.tasks.problems import Problems
from neuroglot.tasks.registry import TASKS, find_task

_INTERRUPTED = 130  # what shells report of a command that Ctrl-C ended
_SHOWN = 3  # problems of the data, one by one
_MODEL = "The model"
_RUN = "The run"


class _Analyze(Command):
    """Lists the tasks below the options."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A line a task."""
        with formatter.section("Tasks"):
            formatter.write_dl([(kind.name, f"{kind.kind}: {kind.summary}") for kind in TASKS.values()])


@click.command(cls=_Analyze)
@click.argument("task", metavar="TASK")
@option(_MODEL, "--model", required=True, help="Its name on the server; without --server, the path of a bundle.")
@option(_MODEL, "--server", metavar="HOST:PORT", help="The server; without, the bundle is served in this process.")
@chooses_groups
@chooses_analyses
@option(_RUN, "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder for everything.")
@option(_RUN, "--resume", is_flag=True, help="Go on with the run that is in the folder.")
@reaches_a_server
def analyze(
    task: str,
    model: str,
    server: str | None,
    out: Path,
    limit: int | None,
    shard: str,
    resume: bool,
    shown: Shown,
    **given: Any,
) -> None:
    """Ask a model about every group of TASK, once, and write tables, figures and a report.

    Answers are kept as they come: after Ctrl-C, the same command with --resume continues. A server that is restarted
    meanwhile is waited for.
    """
    from neuroglot.cli.summary import show_outcome
    from neuroglot.pipeline.pipeline import run  # here: `--help` needs none of what this imports

    options = task_options(given)
    found = find_task(task, options)
    languages = found.choose(options.languages)
    if server is None and not Path(model).is_dir():
        raise click.UsageError(f"--model {model} is no folder: give a bundle's path, or the server that has the model")
    _show_problems(found.problems, out)
    with (
        GroupProgress() as progress,
        neuroglot.connect(server or Path(model), on_retry=progress.waits, **shown) as client,
    ):
        try:
            outcome = run(
                client.model(model if server else None),
                found,
                out,
                languages=languages,
                limit=limit,
                shard=shard,
                resume=resume,
                command=shlex.join(["neuroglot", *sys.argv[1:]]),
                on_progress=progress.update,
                **chosen(given),
            )
        except KeyboardInterrupt:
            progress.stop()
            click.echo(_stopped(out), err=True)
            sys.exit(_INTERRUPTED)
    show_outcome(outcome)


def _show_problems(problems: Problems, out: Path) -> None:
    """Say what is left out, for it is nothing to be silent about."""
    if problems:
        click.echo(f"Left out: {problems.summary()}; all of them will be in {out / PROBLEMS}", err=True)
        for problem in problems.found[:_SHOWN]:
            click.echo(f"  {problem}", err=True)


def _stopped(out: Path) -> str:
    if not (out / RUN).exists():
        return "Stopped before the first question."
    kept = Run.open(out)
    return (
        f"Stopped. {len(kept.done()):,} of {len(kept.asked()):,} groups are kept in {out}: go on with the same "
        "command and --resume."
    )
