"""Options for TLS and authentication, for commands that call a server."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypedDict

import click

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Shown(TypedDict):
    """Credentials and root certificates, as arguments of `neuroglot.connect`."""

    token: str | None
    root_certificates: Path | None
    certificate: Path | None
    key: Path | None


def reaches_a_server(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command, which gets their values as `shown`.

    The token comes from a file or the environment because other users of the machine can read command lines.
    """

    @click.option(
        "--root-certificates",
        type=_FILE,
        metavar="FILE",
        help="Root certificates to verify the server's with, PEM. Enables TLS, as https:// in the server's address "
        "does. By default those of NEUROGLOT_ROOT_CERTIFICATES.",
    )
    @click.option("--certificate", type=_FILE, metavar="FILE", help="Client certificate, PEM.")
    @click.option("--key", type=_FILE, metavar="FILE", help="Private key of the client certificate, PEM.")
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
