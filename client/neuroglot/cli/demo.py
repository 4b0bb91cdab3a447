"""`neuroglot demo`: the whole way on an embedded model, by the commands that a user would type."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from neuroglot.definitions.bundle import MANIFEST, read_manifest
from neuroglot.errors import BundleError, NeuroglotError
from neuroglot.runs.run import RUN

TASKS = {"capitals": 240, "capitals-inference": 120}
"""The tasks to analyse and their maximum numbers of groups: one of recalled facts, one of inference.

Enough groups for narrow intervals, few enough for a demo of a minute and a half on two cores.
"""

_LISTENING = "listening on "


@click.command()
@click.option("--family", default="bloom", show_default=True, help="Which embedded model.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="neuroglot-demo",
    show_default=True,
    help="The folder for the bundle and the results. Results of an earlier demo there are replaced.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Ask only the first N groups of each task.")
@click.option("--analyses", metavar="A,B,...", help="Which analyses to make; all by default.")
def demo(family: str, out: Path, limit: int | None, analyses: str | None) -> None:
    """Export an embedded model, serve it on loopback, analyse it, and write a report.

    Shows the commands that it runs: they are the way to do the same with a model of your own.
    """
    bundle = out / "bundles" / family
    if _is_current(bundle, family):
        click.echo(f"{bundle} is there already, and is of the embedded model as it is now.")
    else:
        _remove(bundle, MANIFEST)
        _run("export", f"embedded:{family}", str(bundle))
    with _served(bundle) as address:
        for task, max_groups in TASKS.items():
            results = out / f"{family}-{task}"
            _remove(results, RUN)
            groups = str(min(limit or max_groups, max_groups))
            options = ["--server", address, "--model", family, "--limit", groups, "--out", str(results)]
            _run("analyze", task, *options, *(["--analyses", analyses] if analyses else []))


def _is_current(bundle: Path, family: str) -> bool:
    """Whether the bundle is an export of the embedded model as it is stored now."""
    from neuroglot_exporter import embedded

    try:
        manifest = read_manifest(bundle)
    except BundleError:
        return False
    try:
        return manifest.source_revision == embedded.revision(family)
    except LookupError:
        return False  # the export says which models there are


def _remove(folder: Path, proof: str) -> None:
    """Remove the folder of an earlier demo, recognised by its marker file; leave any other folder alone."""
    if (folder / proof).is_file():
        shutil.rmtree(folder)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "neuroglot", *arguments]


def _show(*arguments: str) -> None:
    click.secho(f"\n$ neuroglot {' '.join(arguments)}", bold=True)


def _run(*arguments: str) -> None:
    """Run one of our commands, in front of the user; it says itself what went wrong."""
    _show(*arguments)
    status = subprocess.run(_command(*arguments), check=False).returncode
    if status:
        sys.exit(status)


@contextmanager
def _served(bundle: Path) -> Iterator[str]:
    """Serve a bundle on a free port of 127.0.0.1 by a process of its own; gives the address, ends the process."""
    # On a model this small, threads only wait for each other.
    arguments = ("serve", str(bundle), "--address", "127.0.0.1:0", "--threads", "1", "--log-level", "warning")
    _show(*arguments)
    # A group of its own: Ctrl-C is for the analysis, which says what it kept; the server is ended after it.
    with subprocess.Popen(_command(*arguments), stdout=subprocess.PIPE, text=True, start_new_session=True) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                click.echo(line, nl=False)
                if line.startswith(_LISTENING):
                    yield line.removeprefix(_LISTENING).strip()
                    return
            raise NeuroglotError("the server ended before it listened: see above")
        finally:
            server.send_signal(signal.SIGTERM)
