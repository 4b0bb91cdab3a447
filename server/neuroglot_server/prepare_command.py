"""`neuroglot prepare`: saves prepacked weights, which the servers of a bundle on this machine share."""

from __future__ import annotations

from pathlib import Path

import click

from neuroglot.definitions.bundle import open_bundle
from neuroglot_server.engine.prepacking import save


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def prepare(bundle: Path) -> None:
    """Save the prepacked weights of BUNDLE, so that its servers on this machine share them in memory.

    Useful only if several servers of one bundle run on one machine: startup is no faster, and batches of long prompts
    have fewer rows, because a pass holds the keys and values of all layers at once.

    Takes twice the size of the weights on disk, in $NEUROGLOT_CACHE, $XDG_CACHE_HOME/neuroglot or ~/.cache/neuroglot.
    Results are identical, bit for bit. The saved files may be removed while no server runs.
    """
    for component in open_bundle(bundle).model.components:
        click.echo(f"{component.name}: {save(bundle / component.graph)}")
