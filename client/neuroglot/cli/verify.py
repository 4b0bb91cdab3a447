"""`neuroglot verify`: a bundle against the checkpoint that it was made from, or a running server against a probe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

import neuroglot
from neuroglot.cli import not_installed
from neuroglot.cli.reaching import Shown, reaches_a_server
from neuroglot.definitions.bundle import open_bundle
from neuroglot.definitions.probe import Comparison, read_probe
from neuroglot.errors import BundleError, ModelChangedError

_WITH_SOURCE = ("revision", "texts", "report")


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--source", help="The checkpoint that BUNDLE was made from, as `neuroglot export` takes it.")
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option(
    "--texts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Compare on the lines of this file, not on eight sentences.",
)
@click.option("--json", "report", type=click.Path(dir_okay=False, allow_dash=True), help="Write this, too; - for here.")
@click.option("--probe", "server", metavar="HOST:PORT", help="Have the server there answer the probe of its bundle.")
@click.option("--model", help="Which of the server's models; by default its only one.")
@reaches_a_server
def verify(
    bundle: Path | None,
    source: str | None,
    revision: str | None,
    texts: Path | None,
    report: str | None,
    server: str | None,
    model: str | None,
    shown: Shown,
) -> None:
    """Compare a bundle with its source, or a running server with a bundle's probe.

    With --source: the graphs of BUNDLE with transformers, in activations, logits and interventions.

    With --probe: a server's answer to a small fixed request with the one that the export recorded, in active neurons,
    types, and log-probabilities without and with interventions. The recorded answer comes from the server, or from
    BUNDLE if given. Needs no torch.

    Ends with status 1 if anything differs by more than the tolerance of the bundle's data type, and says what.
    """
    if (source is None) == (server is None):
        raise click.UsageError("give either --source CHECKPOINT, for a BUNDLE, or --probe HOST:PORT, for a server")
    if server is not None:
        _refuse(_WITH_SOURCE, "--source")
        _verify_server(server, model, bundle, shown)
        return
    _refuse(("model", "root_certificates", "certificate", "key", "token_file"), "--probe")
    if bundle is None or source is None:
        raise click.UsageError("give the BUNDLE that was made from the --source")
    try:
        from neuroglot_exporter.verify_command import verify_bundle
    except ModuleNotFoundError as error:
        raise not_installed("verify --source", error, "exporter,cpu") from error
    verify_bundle(bundle, source, revision, texts, report)


def _refuse(options: Sequence[str], belongs_to: str) -> None:
    """Raise for options that belong to the other mode."""
    context = click.get_current_context()
    for option in context.command.params:
        if option.name in options and context.params.get(option.name) is not None:
            raise click.UsageError(f"{option.opts[0]} goes with {belongs_to} alone: leave it out")


def _verify_server(server: str, name: str | None, bundle: Path | None, shown: Shown) -> None:
    with neuroglot.connect(server, retry_seconds=0, **shown) as client:
        model = client.model(name)
        if bundle is None:
            probe, recorded_in = model.probe(), "as the server tells"
        else:
            manifest = open_bundle(bundle)
            if model.info.bundle_identity != manifest.identity:
                raise ModelChangedError(
                    f"the server has bundle {model.info.bundle_identity[:12]} under the name {model.name!r}, and "
                    f"{bundle} is {manifest.identity[:12]}: give the bundle that it serves"
                )
            probe, recorded_in = read_probe(bundle, manifest), f"in {bundle}"
        if probe is None:
            raise BundleError(f"the bundle of {model.name!r} has no probe: export the model again")
        click.echo(
            f"model {model.name}: bundle {model.info.bundle_identity[:12]}, {len(probe.group.rows)} rows, "
            f"{len(probe.analysis.variants)} interventions; recorded by {probe.computed_by}, {recorded_in}"
        )
        compared = model.check_probe(probe)
    _show(compared)
    if compared.differences:
        raise BundleError(f"the answer is not what the export recorded: {'; '.join(compared.differences[:3])}")


def _show(compared: Comparison) -> None:
    for part in compared.components:
        click.echo(
            f"{part.component}: {part.neurons:,} neurons over all rows, {part.flips:,} active in one and not in the "
            f"other (at most {part.flips_allowed:,}); {part.types:,} types compared"
        )
    if compared.log_probabilities:
        click.echo(
            f"log-probabilities: {compared.log_probabilities}, largest difference {compared.largest_difference:.1e} "
            f"nats (at most {compared.allowed_difference:.1e})"
        )
