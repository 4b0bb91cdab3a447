"""`neuroglot export`: a checkpoint in, a bundle out."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from neuroglot_exporter.exporting import DTYPES
from neuroglot_exporter.exporting import export as export_checkpoint
from neuroglot_exporter.stages import StageDisplay, quiet_libraries


@click.command()
@click.argument("source")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=DTYPES[0],
    show_default=True,
    help="Data type of weights and activations; float16 is for GPUs.",
)
def export(source: str, bundle: Path, revision: str | None, dtype: str) -> None:
    """Export the checkpoint SOURCE into the new folder BUNDLE.

    SOURCE is a Hub id (bigscience/bloomz-560m), the folder of a checkpoint, a GGUF file, or the name of an embedded
    model (embedded:bloom). The bundle is verified against transformers before it is moved into place.
    """
    quiet_libraries()
    with StageDisplay(Console(stderr=True)) as display:
        manifest = export_checkpoint(source, bundle, revision=revision, dtype=dtype, progress=display.begin)
    size = sum(entry.size for entry in manifest.files.values()) + (bundle / "manifest.json").stat().st_size
    click.echo(f"{bundle}: {size / 1e6:,.1f} MB, identity {manifest.identity[:12]}")
    measured = manifest.verification["measurements"]
    largest = ", ".join(
        f"{name} {measured[name]['difference']:.1e}"
        for name in (*(f"{component.name}.activations" for component in manifest.model.components), "logits")
    )
    typed = [measurement for measurement in measured.values() if measurement["type_flips"] is not None]
    click.echo(
        f"Against transformers, largest difference: {largest}; {sum(entry['type_flips'] for entry in typed):,} of "
        f"{sum(entry['values'] for entry in typed):,} neurons change type."
    )
