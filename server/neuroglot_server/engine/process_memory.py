"""The memory of this process, as the operating system counts it."""

from __future__ import annotations

import mmap
from pathlib import Path

_STATM = Path("/proc/self/statm")


def anonymous_bytes() -> int | None:
    """Bytes of memory that this process holds outside of mapped files; None where there is no `/proc`."""
    try:
        resident, shared = map(int, _STATM.read_text(encoding="ascii").split()[1:3])
    except FileNotFoundError:
        return None
    return (resident - shared) * mmap.PAGESIZE
