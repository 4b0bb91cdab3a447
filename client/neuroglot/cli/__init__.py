"""The command line: `neuroglot COMMAND`. Each command's module is imported when it is called, not before."""

from __future__ import annotations

import errno
import importlib
from typing import Any, NamedTuple

import click

from neuroglot.errors import NeuroglotError


class Command(NamedTuple):
    """Where a command is and what it needs.

    Attributes:
        module: where it is defined.
        attribute: its name there.
        extras: what to install for it beside the base; empty for nothing.
        summary: what the overview says of it.
    """

    module: str
    attribute: str
    extras: str
    summary: str


COMMANDS = {
    "export": Command("neuroglot_exporter.command", "export", "exporter,cpu", "Turn a checkpoint into a bundle."),
    "verify": Command(
        "neuroglot.cli.verify", "verify", "", "Compare a bundle with its source, or a server with its probe."
    ),
    "serve": Command("neuroglot_server.command", "serve", "cpu", "Serve bundles over gRPC."),
    "prepare": Command(
        "neuroglot_server.prepare_command", "prepare", "cpu", "Let a machine's servers of a bundle share its weights."
    ),
    "token": Command("neuroglot_server.command", "token", "cpu", "Make a token for a tenant of a server."),
    "models": Command("neuroglot.cli.models", "models", "", "List the models of a server."),
    "analyze": Command("neuroglot.cli.analyze", "analyze", "analysis", "Run a task: tables, figures and a report."),
    "merge": Command("neuroglot.cli.merge", "merge", "analysis", "Put the parts of a run together."),
    "report": Command("neuroglot.cli.report", "report", "analysis", "Rewrite tables, figures and report of a run."),
    "compare": Command("neuroglot.cli.compare", "compare", "analysis", "Put several runs side by side."),
    "demo": Command("neuroglot.cli.demo", "demo", "analysis,cpu,exporter", "The whole way, on an embedded model."),
}
"""The commands by name, in the order of a user's way."""


def not_installed(command: str, error: ModuleNotFoundError, extras: str) -> click.ClickException:
    """What to say of a command that needs a package which is not there."""
    return click.ClickException(
        f"`neuroglot {command}` needs the package {error.name}, which is not installed: "
        f"pip install 'neuroglot[{extras}]'"
    )


class LazyGroup(click.Group):
    """A click group that imports a command when it is asked for: `neuroglot --help` needs no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now.

        Raises:
            ClickException: a package that it needs is not installed.
        """
        if cmd_name not in COMMANDS:
            return None
        found = COMMANDS[cmd_name]
        try:
            command: click.Command = getattr(importlib.import_module(found.module), found.attribute)
        except ModuleNotFoundError as error:
            raise not_installed(cmd_name, error, found.extras) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table above instead of importing each."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors that neuroglot raises on purpose, and the system's, are shown without a traceback."""
        try:
            return super().invoke(ctx)
        except NeuroglotError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click exits quietly on a closed output pipe
            raise click.ClickException(_in_one_line(error)) from error


def _in_one_line(error: OSError) -> str:
    """Which file, and what is wrong with it."""
    if error.filename is None or error.strerror is None:
        return " ".join((error.strerror or str(error) or type(error).__name__).split())
    return f"{error.filename}: {error.strerror}"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="neuroglot", prog_name="neuroglot")
def main() -> None:
    """The feed-forward neurons of multilingual language models: export, serve, analyse."""
