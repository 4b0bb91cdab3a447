"""Help with options grouped under headings, for commands with many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


class Option(click.Option):
    """An option with the heading that `--help` lists it under."""

    def __init__(self, *declarations: Any, section: str, **attributes: Any) -> None:
        """For `declarations` and `attributes` see `click.Option`."""
        super().__init__(*declarations, **attributes)
        self.section = section


class Command(click.Command):
    """A command whose help groups its options; those without a heading come last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections in the order of their first options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (line := parameter.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(parameter, "section", ""), []).append(line)
        others = sections.pop("", [])
        for heading, lines in (*sections.items(), ("Other", others)):
            if lines:
                with formatter.section(heading):
                    formatter.write_dl(lines)


def option(section: str, *declarations: str, **attributes: Any) -> Callable[[Any], Any]:
    """`click.option` under a heading."""
    return click.option(*declarations, cls=Option, section=section, **attributes)
