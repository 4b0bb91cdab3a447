"""`neuroglot analyze`: a task, a model, and a folder with tables, figures and a report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

import neuroglot
from neuroglot.cli.progress import GroupProgress
from neuroglot.cli.reaching import Shown, reaches_a_server
from neuroglot.runs import RUN, Run
from neuroglot.tasks.registry import TASKS, find_task

_INTERRUPTED = 130  # what shells report of a command that Ctrl-C ended


@click.command(epilog=f"Tasks: {', '.join(f'{task.name} ({task.kind})' for task in TASKS.values())}.")
@click.argument("task", metavar="TASK")
@click.option("--model", required=True, help="The model's name on the server; without --server, the path of a bundle.")
@click.option("--server", metavar="HOST:PORT", help="The server. Without it, the bundle is served in this process.")
@click.option("--languages", metavar="en,de,...", default="", help="Rows of every group; all of the task's by default.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Ask only the first N groups of the task.")
@click.option("--draws", type=click.IntRange(min=1), default=3, show_default=True, help="Draws of each random control.")
@click.option(
    "--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Of the controls and the tests."
)
@click.option("--component", metavar="NAME", help="Ablate the encoder alone, or the decoder; both by default.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder for everything.")
@click.option("--resume", is_flag=True, help="Go on with the run that is in the folder.")
@reaches_a_server
def analyze(
    task: str,
    model: str,
    server: str | None,
    languages: str,
    limit: int | None,
    draws: int,
    seed: int,
    component: str | None,
    out: Path,
    resume: bool,
    shown: Shown,
) -> None:
    """Ask a model about every group of TASK, and write tables, figures and a report.

    Answers are kept as they come: after Ctrl-C, the same command with --resume goes on. A server that is restarted
    meanwhile is waited for.
    """
    from neuroglot.analyses.pipeline import run  # here: `--help` needs none of what this imports
    from neuroglot.cli.summary import show_outcome

    chosen = find_task(task)
    wanted = chosen.choose([one.strip() for one in languages.split(",") if one.strip()])
    if server is None and not Path(model).is_dir():
        raise click.UsageError(f"--model {model} is no folder: give a bundle's path, or the server that has the model")
    with (
        GroupProgress() as progress,
        neuroglot.connect(server or Path(model), on_retry=progress.waits, **shown) as client,
    ):
        try:
            outcome = run(
                client.model(model if server else None),
                chosen,
                out,
                languages=wanted,
                limit=limit,
                draws=draws,
                seed=seed,
                component=component,
                resume=resume,
                command=shlex.join(["neuroglot", *sys.argv[1:]]),
                on_progress=progress.update,
            )
        except KeyboardInterrupt:
            progress.stop()
            click.echo(_stopped(out), err=True)
            sys.exit(_INTERRUPTED)
    show_outcome(outcome)


def _stopped(out: Path) -> str:
    if not (out / RUN).exists():
        return "Stopped before the first question."
    kept = Run.open(out)
    return (
        f"Stopped. {len(kept.done()):,} of {kept.settings.groups:,} groups are kept in {out}: go on with the same "
        "command and --resume."
    )
