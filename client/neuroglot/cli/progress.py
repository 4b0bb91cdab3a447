"""A progress bar over parallel groups."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from neuroglot.errors import OverloadedError, ServerError


class _Rate(ProgressColumn):
    """Groups a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} groups/s", style="progress.data.speed")


class GroupProgress:
    """A bar with the rate and the time that is left, on standard error; it appears with the first answer.

    Attributes:
        bar: what is shown.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.bar = Progress(
            TextColumn("analysing"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[failures]}", style="red"),
            TextColumn("{task.fields[trouble]}", style="yellow"),
            console=console or Console(stderr=True),
        )
        self._task: TaskID | None = None

    def update(self, answered: int, failed: int, total: int) -> None:
        """Show the progress; the `on_progress` callback of `neuroglot.pipeline.pipeline.run`."""
        failures = f"{failed:,} failed" if failed else ""
        if self._task is None:
            # Groups answered by an earlier session must not count into this session's rate.
            self._task = self.bar.add_task(
                "groups", total=total, completed=answered + failed, failures=failures, trouble=""
            )
            self.bar.start()
        else:
            self.bar.update(self._task, completed=answered + failed, failures=failures, trouble="")

    def waits(self, error: ServerError, seconds: float) -> None:
        """Show until the next answer that the server is away or full; called by the client of `neuroglot.connect`."""
        trouble = "the server is full, waiting" if isinstance(error, OverloadedError) else "no server, reconnecting"
        if self._task is None:
            self.bar.console.print(f"{trouble} ({error.message})", style="yellow", markup=False)
        else:
            self.bar.update(self._task, trouble=trouble)

    def stop(self) -> None:
        """Stop updating the bar and leave it on the terminal."""
        if self._task is not None:
            self.bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
