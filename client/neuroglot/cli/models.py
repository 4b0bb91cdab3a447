"""`neuroglot models`: what a server serves."""

from __future__ import annotations

import click

import neuroglot
from neuroglot.cli.reaching import Shown, reaches_a_server


@click.command()
@click.argument("server", metavar="HOST:PORT")
@reaches_a_server
def models(server: str, shown: Shown) -> None:
    """List the models of the server at HOST:PORT: geometry, limits and identity."""
    with neuroglot.connect(server, **shown) as client:
        for model in client.models():
            click.echo(f"{model.name}  ({model.family} from {model.source}, {model.dtype})")
            for component in model.components:
                click.echo(
                    f"  {component.name}: {component.layers} layers x {component.neurons:,} neurons, "
                    f"{component.activation_function}{', gated' if component.gated else ''}"
                )
            click.echo(
                f"  at most {model.limits.tokens_per_row:,} tokens a row, {model.limits.rows_per_group} rows a group"
            )
            click.echo(f"  bundle {model.bundle_identity}")
