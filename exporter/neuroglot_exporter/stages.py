"""Shows the current stage of a long command on a terminal."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def quiet_libraries() -> None:
    """Let libraries log errors only: the verification measures what they warn of."""
    for library in ("huggingface_hub", "optimum", "torch", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)


class StageDisplay:
    """Shows the current stage with a spinner and its time, and a line for each finished stage."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._console = console
        self._stage: str | None = None
        self._began = 0.0

    def __enter__(self) -> StageDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish_stage()
        self._progress.stop()

    def begin(self, stage: str) -> None:
        """Show a stage as running, and the previous one as finished."""
        self._finish_stage()
        self._progress.start()
        self._stage, self._began = stage, time.monotonic()
        self._progress.add_task(stage, total=None)

    def _finish_stage(self) -> None:
        if self._stage is None:
            return
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._console.print(f"{self._stage} [dim]{time.monotonic() - self._began:.1f} s[/dim]")
        self._stage = None
