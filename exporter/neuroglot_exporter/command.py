"""`neuroglot export`: a checkpoint in, a bundle out."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from types import TracebackType

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from neuroglot_exporter.exporting import export as export_checkpoint


@click.command()
@click.argument("source")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
def export(source: str, bundle: Path, revision: str | None) -> None:
    """Export the checkpoint SOURCE into the new folder BUNDLE.

    SOURCE is a Hub id (bigscience/bloomz-560m), the folder of a checkpoint, a GGUF file, or the name of an embedded
    model (embedded:bloom). The bundle is compared with transformers before it is put in its place.
    """
    for library in ("huggingface_hub", "optimum", "torch", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with StageDisplay(Console(stderr=True)) as display:
        manifest = export_checkpoint(source, bundle, revision=revision, progress=display.begin)
    measured = manifest.verification["measurements"]
    size = sum(entry.size for entry in manifest.files.values()) + (bundle / "manifest.json").stat().st_size
    click.echo(f"{bundle}: {size / 1e6:,.1f} MB, identity {manifest.identity[:12]}")
    click.echo(
        f"Against transformers, largest difference: activations {measured['activations']['difference']:.1e}, "
        f"logits {measured['logits']['difference']:.1e}; "
        f"{manifest.verification['type_flips']} of {manifest.verification['neurons']:,} neurons change type."
    )


class StageDisplay:
    """Shows the stage that runs with a spinner and its time, and a line for each that is done."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._console = console
        self._stage: str | None = None
        self._began = 0.0

    def __enter__(self) -> StageDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish_stage()
        self._progress.stop()

    def begin(self, stage: str) -> None:
        """Show a stage as running, and the one before it as done."""
        self._finish_stage()
        self._progress.start()
        self._stage, self._began = stage, time.monotonic()
        self._progress.add_task(stage, total=None)

    def _finish_stage(self) -> None:
        if self._stage is None:
            return
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._console.print(f"{self._stage} [dim]{time.monotonic() - self._began:.1f} s[/dim]")
        self._stage = None
