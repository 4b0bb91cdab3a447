"""`neuroglot verify --source`: compares a bundle with the checkpoint that it was exported from."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from neuroglot.definitions.bundle import open_bundle
from neuroglot_exporter.checkpoints import find_checkpoint
from neuroglot_exporter.errors import VerificationError
from neuroglot_exporter.packages import require_packages
from neuroglot_exporter.stages import StageDisplay, quiet_libraries
from neuroglot_exporter.verification.measurement import Verification, difference_message, probe_message


def verify_bundle(bundle: Path, source: str, revision: str | None, texts: Path | None, report: str | None) -> None:
    """Compare the graphs of a bundle with transformers, and print the measurements.

    Args:
        bundle: its folder.
        source: the checkpoint that it was made from, as `neuroglot export` takes it.
        revision: branch, tag or commit of a Hub id.
        texts: a file of texts to compare on, one a line; None for eight sentences.
        report: path to write the measurements to as JSON; `-` for standard output, None for no report.

    Raises:
        VerificationError: something differs by more than the tolerance.
    """
    require_packages(source, "verifying")
    quiet_libraries()
    lines = None if texts is None else _read(texts)
    console = Console(stderr=report == "-")
    with StageDisplay(Console(stderr=True)) as display:
        display.begin("hashing the bundle")
        manifest = open_bundle(bundle, full=True)
        display.begin("importing torch and transformers")
        # Heavy imports, after the arguments were checked: a wrong argument fails at once.
        from neuroglot_exporter.verification.source import other_source
        from neuroglot_exporter.verification.verify import TEXTS
        from neuroglot_exporter.verification.verify import verify as verify_bundle

        checkpoint = find_checkpoint(source, revision)
        measured = verify_bundle(bundle, checkpoint, lines or TEXTS, display.begin)
    note = other_source(manifest, checkpoint)
    if report is not None:
        content = {"bundle": bundle.name, "identity": manifest.identity, "source": checkpoint.source, "note": note}
        with click.open_file(report, "w", encoding="utf-8") as file:
            json.dump(content | measured.to_json() | {"excesses": measured.excesses}, file, indent=1)
            file.write("\n")
    console.print(_table(measured, manifest.model.dtype))
    if note:
        console.print(f"Note: {note}", highlight=False, markup=False, soft_wrap=True)
    if measured.excesses:
        raise VerificationError(difference_message(measured.excesses))
    if measured.probe_differences:
        raise VerificationError(probe_message(measured.probe_differences))


def _read(file: Path) -> list[str]:
    """The lines of a file that are not blank."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--texts {file} is not UTF-8: {error}") from None
    if not lines:
        raise click.UsageError(f"--texts {file} has no text: give one a line")
    return lines


def _table(verification: Verification, dtype: str) -> Table:
    positions = ", ".join(f"{count:,} of the {name}" for name, count in verification.positions.items())
    table = Table(
        title=f"{dtype} against transformers: {verification.texts:,} texts, positions: {positions}",
        title_justify="left",
        caption="flips: neurons that are active in one and not in the other; effect: of the intervention",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    table.add_column("compared", no_wrap=True)
    for column in ("difference", "allowed", "largest", "flips", "effect"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, one in verification.measurements.items():
        table.add_row(
            name,
            f"{one.difference:.1e}",
            f"{one.allowed(verification.tolerance):.1e}",
            f"{one.magnitude:.2g}",
            "" if one.type_flips is None else f"{one.type_flips:,}",
            "" if one.effect is None else f"{one.effect:.2g}",
            style="red" if name in verification.excesses else "",
        )
    return table
