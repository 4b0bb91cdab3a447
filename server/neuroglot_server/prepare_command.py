"""`neuroglot prepare`: what servers of a bundle on this machine can share."""

from __future__ import annotations

from pathlib import Path

import click

from neuroglot.bundle import open_bundle
from neuroglot_server.packed import save


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def prepare(bundle: Path) -> None:
    """Save the packed weights of BUNDLE, so that its servers on this machine share them in memory.

    Takes twice the size of the weights, in $NEUROGLOT_CACHE or else $XDG_CACHE_HOME/neuroglot or ~/.cache/neuroglot.
    Answers stay the same, bit for bit. What is kept there may be removed while no server runs.
    """
    for component in open_bundle(bundle).model.components:
        click.echo(f"{component.name}: {save(bundle / component.graph)}")
