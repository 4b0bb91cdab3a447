"""Files that are read again when they change."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from time import monotonic

_SECONDS_BETWEEN_CHECKS = 1.0
"""How long a change may go unnoticed."""


class FileChanges:
    """Says whether any of some files has changed since the last look, looking at most once a second."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Remember the files as they are now: make this before reading them, so that no change is missed."""
        self._files = tuple(files)
        self._versions = self._current_versions()
        self._checked = monotonic()

    def found(self) -> bool:
        """Whether a file has changed, appeared or gone; true once for each change."""
        if monotonic() - self._checked < _SECONDS_BETWEEN_CHECKS:
            return False
        self._checked = monotonic()
        versions = self._current_versions()
        changed = versions != self._versions
        self._versions = versions
        return changed

    def _current_versions(self) -> list[tuple[int, int, int]]:
        return [_version(file) for file in self._files]


def _version(file: Path) -> tuple[int, int, int]:
    """What changes when the file does; zeros while it is missing, as it may be for a moment while it is replaced."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0, 0
    return status.st_mtime_ns, status.st_size, status.st_ino
