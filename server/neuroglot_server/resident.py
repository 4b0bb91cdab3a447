"""What this process has in memory, and how it gives back what nobody needs there.

On Linux; elsewhere it is not known what it has, and nothing is given back.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

_PROCESS = Path("/proc/self")
_HEADING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)")
_AMOUNT = re.compile(r"(Rss|Anonymous): +(\d+) kB")

_KIB = 1024
_LARGE_BYTES = 2**20
"""Blocks from here on lie by themselves, and go back to the system with their last user."""
_TRIM_BYTES = 2**25
"""What stays free at the end of the heap."""
_HEAPS = 2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h


class Resident(NamedTuple):
    """Memory that is there, in bytes.

    Attributes:
        own: that nobody else has.
        mapped: pages of files.
    """

    own: int
    mapped: int


def resident() -> Resident | None:
    """What this process has; None where that is not known."""
    try:
        pages = (_PROCESS / "statm").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return None
    held, mapped = (int(count) * mmap.PAGESIZE for count in pages[1:3])
    return Resident(held - mapped, mapped)


def let_go(files: Collection[Path], beyond: int = 0) -> bool:
    """Take the pages of mapped files out of this process; whoever reads there again gets them from the page cache.

    A mapping of which a page was written to is left alone, for that would be lost.

    Args:
        files: which.
        beyond: how many bytes of them may be there; where there are no more, all stay.

    Returns:
        Whether any were taken out.
    """
    if not sys.platform.startswith("linux"):
        return False
    paths = {str(file.resolve()) for file in files}
    mappings = [mapping for mapping in _clean_mappings() if mapping.path in paths]
    if sum(mapping.present for mapping in mappings) <= beyond:
        return False
    for mapping in mappings:
        _libc().madvise(ctypes.c_void_p(mapping.start), ctypes.c_size_t(mapping.size), mmap.MADV_DONTNEED)
    return True


def keep_little_free() -> None:
    """Have the C library give large blocks back to the system as soon as they are free.

    By itself glibc gets used to their size, puts them among the small ones, and after some hours of batches of all
    shapes holds twice what is in use. For the whole process, so for a program of its own.
    """
    if os.name == "posix" and (mallopt := getattr(_libc(), "mallopt", None)) is not None:
        for parameter, value in (
            (_M_MMAP_THRESHOLD, _LARGE_BYTES),
            (_M_TRIM_THRESHOLD, _TRIM_BYTES),
            (_M_ARENA_MAX, _HEAPS),
        ):
            mallopt(parameter, value)


class _Mapping(NamedTuple):
    """Of a file: its address, its size, how much of it is in memory, and the file."""

    start: int
    size: int
    present: int
    path: str


def _clean_mappings() -> Iterator[_Mapping]:
    """What is mapped and there, and was not written to."""
    start = end = present = 0
    path = ""
    for line in (_PROCESS / "smaps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        if found := _HEADING.fullmatch(line):
            start, end, path = int(found[1], 16), int(found[2], 16), found[3]
        elif amount := _AMOUNT.match(line):
            if amount[1] == "Rss":
                present = int(amount[2]) * _KIB
            elif present and not int(amount[2]):
                yield _Mapping(start, end - start, present, path)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
