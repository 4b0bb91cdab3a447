"""Detects changes of files, so that they can be reloaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from time import monotonic

_SECONDS_BETWEEN_CHECKS = 1.0
"""Minimum time between two checks, so a change is noticed after at most that long."""


class FileChanges:
    """Reports whether any of some files has changed since the last check; checks at most once a second."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Record the current versions of the files. Create this before reading them, so that no change is missed."""
        self._files = tuple(files)
        self._versions = self._current_versions()
        self._checked = monotonic()

    def found(self) -> bool:
        """Return whether a file was changed, created or removed; True once for each change."""
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
    """Return modification time, size and inode; zeros while the file is missing, as it may be during a replacement."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0, 0
    return status.st_mtime_ns, status.st_size, status.st_ino
