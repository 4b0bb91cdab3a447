"""Options by which a command reaches a server that asks who calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypedDict

import click

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Shown(TypedDict):
    """Arguments of `neuroglot.connect`: what a server is shown, and by what it is known."""

    token: str | None
    root_certificates: Path | None
    certificate: Path | None
    key: Path | None


def reaches_a_server(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command, which gets what they say as `shown`.

    The token comes from a file or the environment, for the command line is there for everybody on the machine to read.
    """

    @click.option(
        "--root-certificates",
        type=_FILE,
        metavar="FILE",
        help="Certificates by which the server's is known, PEM. Asks for TLS, as https:// before the server does. By "
        "default those of NEUROGLOT_ROOT_CERTIFICATES.",
    )
    @click.option("--certificate", type=_FILE, metavar="FILE", help="A certificate of your own to show, PEM.")
    @click.option("--key", type=_FILE, metavar="FILE", help="Its private key, PEM.")
    @click.option(
        "--token-file", type=_FILE, metavar="FILE", help="A file with your token. By default NEUROGLOT_TOKEN has it."
    )
    @wraps(command)
    def reaching(
        *,
        root_certificates: Path | None,
        certificate: Path | None,
        key: Path | None,
        token_file: Path | None,
        **rest: Any,
    ) -> None:
        token = None if token_file is None else token_file.read_text(encoding="utf-8", errors="replace").strip()
        shown = Shown(token=token, root_certificates=root_certificates, certificate=certificate, key=key)
        command(shown=shown, **rest)

    return reaching
