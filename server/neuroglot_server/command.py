"""`neuroglot serve`, which serves bundles until a signal, and `neuroglot token`, which creates tokens for tenants."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from neuroglot_server.config import config_file
from neuroglot_server.config.config_file import ModelTable
from neuroglot_server.config.deployment import (
    Certificates,
    Deployment,
    LogFormat,
    TransportLimits,
    by_name,
)
from neuroglot_server.config.options import BY_NAME, OPTIONS, with_settings
from neuroglot_server.config.tenants import new_token
from neuroglot_server.core import LoadTooSlow, Settings
from neuroglot_server.event_loop import run_in_loop
from neuroglot_server.lifecycle import Started, run
from neuroglot_server.telemetry import logs

_logger = logging.getLogger(__name__)


def _read_file(context: click.Context, _: click.Parameter, file: Path | None) -> Path | None:
    """Use the values of the configuration file as defaults of the other options."""
    if file is not None:
        content = config_file.read(file)
        context.default_map = content.values
        context.obj = content.models
    return file


def _with_options(function: Callable[..., None]) -> click.Command:
    """Create a command with the options of the table, in addition to those of the function."""
    command = click.command()(function)
    command.params += [option.click_option() for option in OPTIONS]
    return command


@_with_options
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path), metavar="[BUNDLE]...")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    callback=_read_file,
    is_eager=True,
    envvar="NEUROGLOT_CONFIG",
    show_envvar=True,
    metavar="FILE",
    help="TOML file with any of these options, named with underscores, and a table [models.NAME] per model. "
    "Environment variables override the file, and flags override both.",
)
@click.option(
    "--print-config", is_flag=True, help="Print the effective configuration with the source of each value, and exit."
)
@click.pass_context
def serve(
    context: click.Context, /, bundles: Sequence[Path], file: Path | None, print_config: bool, **values: Any
) -> None:
    """Serve BUNDLEs over gRPC, in addition to the models of the configuration file.

    The name of each model is the name of its bundle's folder. Prints one line per model, and the address once the
    server is ready.
    """
    models: dict[str, ModelTable] = dict(context.obj or {})
    for name, folder in by_name(bundles).items():
        models[name] = ModelTable(folder, models[name].values if name in models else {})
    values = {option.name: values[option.name] for option in OPTIONS}
    if print_config:
        sources = {name: _source(context, name, file) for name in values}
        for line in config_file.effective(values, sources, models):
            click.echo(line)
        return
    if not models and not values["bundles_folder"]:
        raise click.UsageError("there is nothing to serve: give a BUNDLE, --config FILE or --bundles-folder")
    logs.configure(values["log_level"], LogFormat(values["log_format"]))
    deployment = _deployment(values, models)
    for exposure in deployment.exposures:
        if not values["insecure"]:
            raise click.ClickException(f"{exposure}, or add --insecure if the network is trusted")
        _logger.warning("%s", exposure)
    try:
        if run_in_loop(partial(_until_signal, deployment)):
            _end_without_waiting(0)
    except LoadTooSlow as error:
        click.echo(f"Error: {error}", err=True)
        _end_without_waiting(1)


@click.command()
@click.argument("tenant")
def token(tenant: str) -> None:
    """Create a token for TENANT.

    Prints the token, which is stored nowhere, and the entry for the --tokens-file, which has only its hash.
    """
    made = new_token()
    click.echo(f"token for {tenant}: {made.token}")
    click.echo("add this to the --tokens-file, or only the hash to the list of an existing tenant:", err=True)
    click.echo(f'[tenants.{config_file.quoted(tenant)}]\ntoken_sha256 = ["{made.sha256}"]')


def _source(context: click.Context, name: str, file: Path | None) -> str:
    """Return the source of an option's value: flag, variable, file or default."""
    match context.get_parameter_source(name):
        case ParameterSource.COMMANDLINE:
            return BY_NAME[name].flag
        case ParameterSource.ENVIRONMENT:
            return BY_NAME[name].variable
        case ParameterSource.DEFAULT_MAP:
            return str(file)
        case _:
            return "default"


def _deployment(values: Mapping[str, Any], models: Mapping[str, ModelTable]) -> Deployment:
    """Create the deployment that the options describe.

    Raises:
        UsageError: a TLS certificate is given without its key, or the reverse.
    """
    settings = with_settings(Settings(), values)
    return Deployment(
        bundles={name: table.bundle for name, table in models.items()},
        address=values["address"],
        settings=settings,
        settings_of={name: with_settings(settings, table.values) for name, table in models.items()},
        bundles_folder=_path(values["bundles_folder"]),
        certificates=_certificates(values),
        tokens=_path(values["tokens_file"]),
        metrics_address=values["metrics_address"],
        tracing_endpoint=values["tracing_endpoint"],
        transport=TransportLimits(**{field.name: values[field.name] for field in fields(TransportLimits)}),
        load_seconds=values["load_seconds"],
        grace_seconds=values["grace"],
    )


def _certificates(values: Mapping[str, Any]) -> Certificates | None:
    certificate, key, client_ca = (_path(values[f"tls_{name}"]) for name in ("certificate", "key", "client_ca"))
    if certificate is not None and key is not None:
        return Certificates(certificate, key, client_ca)
    if certificate is not None or key is not None or client_ca is not None:
        raise click.UsageError("TLS needs a certificate and its key: give both --tls-certificate and --tls-key")
    return None


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _end_without_waiting(status: int) -> NoReturn:
    """Exit at once, although a thread is loading a bundle, for which an ordinary exit would wait."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


async def _until_signal(deployment: Deployment) -> bool:
    """Serve until SIGTERM or SIGINT, then let running requests finish within the grace period.

    While models are loading, either signal ends the process at once: no request was accepted yet, and ONNX Runtime
    cannot be interrupted while it starts a session.

    Returns:
        Whether a thread is still loading a bundle, as `run`.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def end() -> None:
        _logger.info("ended by a signal while models were loading")
        _end_without_waiting(0)

    def stop() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        stopping.set()
        _logger.info("shutting down within %g s: new requests are refused", deployment.grace_seconds)

    def started(server: Started) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        for model in server.models:
            layers = ", ".join(f"{part.name} {part.layers} x {part.neurons} neurons" for part in model.components)
            click.echo(f"model {model.name}: {model.family}, {layers}, bundle {model.bundle_identity[:12]}")
        click.echo(f"listening on {server.target}")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    try:
        return await run(deployment, stopping, started)
    except BaseException:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)  # uvloop keeps them when it closes, and Ctrl-C would have no effect
        raise
