"""`neuroglot serve`: bundles on an address, until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

import click

from neuroglot_server.address import Address, AddressError
from neuroglot_server.core import Limits, Settings
from neuroglot_server.lifecycle import Started, by_name, run

_logger = logging.getLogger(__name__)


def _parse_address(_: click.Context, option: click.Parameter, text: str) -> Address:
    try:
        return Address.parse(text)
    except AddressError as error:
        raise click.BadParameter(str(error), param=option) from None


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@click.option(
    "--address",
    callback=_parse_address,
    default="127.0.0.1:50051",
    metavar="HOST:PORT",
    show_default=True,
    help="Where to listen. Port 0 picks a free one.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Listen where other machines can connect, though traffic is neither encrypted nor authenticated.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=Settings.threads,
    show_default=True,
    help="Threads of ONNX Runtime for each model; 0 is one a core.",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=Settings.batch_tokens,
    show_default=True,
    help="Most padded tokens a batch: its rows times its longest row.",
)
@click.option(
    "--row-tokens",
    type=click.IntRange(min=2),
    default=Limits.tokens_per_row,
    show_default=True,
    help="Longest row that is accepted, prompt and answer, in tokens.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0.0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long requests that run may go on after SIGTERM or Ctrl-C. A second signal ends the server at once.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What goes to standard error.",
)
def serve(
    bundles: Sequence[Path],
    address: Address,
    insecure: bool,
    threads: int,
    batch_tokens: int,
    row_tokens: int,
    grace: float,
    log_level: str,
) -> None:
    """Serve BUNDLEs over gRPC, each under the name of its folder.

    Prints a line for each model and, once it answers, the address it listens on.
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if not address.is_loopback:
        exposed = f"other machines can reach {address}, and traffic is neither encrypted nor authenticated"
        if not insecure:
            raise click.ClickException(f"{exposed}: listen on 127.0.0.1, or add --insecure if the network is trusted")
        _logger.warning("%s", exposed)
    settings = Settings(Limits(tokens_per_row=row_tokens), batch_tokens=batch_tokens, threads=threads)
    asyncio.run(_until_signal(bundles, address, settings, grace))


async def _until_signal(bundles: Sequence[Path], address: Address, settings: Settings, grace_seconds: float) -> None:
    """Serve until SIGTERM or SIGINT, and then for as long as what runs needs and the grace allows."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)  # a second one ends the process there and then
        stopping.set()
        _logger.info("going down within %g s: taking nothing new", grace_seconds)

    def started(server: Started) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        for model in server.models:
            layers = ", ".join(f"{part.name} {part.layers} x {part.neurons} neurons" for part in model.components)
            click.echo(f"model {model.name}: {model.family}, {layers}, bundle {model.bundle_identity[:12]}")
        click.echo(f"listening on {server.target}")

    await run(by_name(bundles), address, settings, stopping, started, grace_seconds)
