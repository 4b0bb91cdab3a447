"""What a process has in memory, and that what is given back is gone and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neuroglot_server.resident import let_go, resident
from neuroglot_server.starting import Mapped

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nothing is known of it")

MEBIBYTE = 2**20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of 16 MiB."""
    path = tmp_path / "of 16 MiB"
    np.arange(4 * MEBIBYTE, dtype=np.int32).tofile(path)
    return path


def mapped_by(action: object) -> int:
    before = resident().mapped
    action()
    return resident().mapped - before


def test_pages_of_a_file_that_is_let_go_are_gone_until_they_are_read(file: Path, tmp_path: Path) -> None:
    content = np.memmap(file, np.int32, "r")
    private = np.memmap(file, np.int32, "c")
    total = int(np.arange(4 * MEBIBYTE).sum())
    assert mapped_by(lambda: (content.sum(), private.sum())) >= 32 * MEBIBYTE
    link = tmp_path / "link"
    link.symlink_to(file)
    assert mapped_by(lambda: let_go([link])) <= -32 * MEBIBYTE
    assert int(content.sum(dtype=np.int64)) == int(private.sum(dtype=np.int64)) == total


def test_what_is_not_more_than_may_be_there_stays(file: Path) -> None:
    content = np.memmap(file, np.int32, "r")
    content.sum()
    assert abs(mapped_by(lambda: let_go([file], 17 * MEBIBYTE))) < MEBIBYTE
    assert mapped_by(lambda: let_go([file], 15 * MEBIBYTE)) <= -16 * MEBIBYTE


def test_pages_that_add_up_are_given_back(file: Path) -> None:
    content = np.memmap(file, np.int32, "r")
    quarter = content.size // 4

    def look_up(part: int) -> int:
        """How much is there after some were looked up."""
        return mapped_by(lambda: (content[part * quarter : (part + 1) * quarter].sum(), mapped.trim(resident().mapped)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neuroglot_server.starting._MOST_LOOKED_UP_BYTES", 8 * MEBIBYTE)
        mapped = Mapped([file], needed=2 * MEBIBYTE)
        grown = [look_up(part) for part in (0, 1, 2, 3)]
    assert [round(one / MEBIBYTE) for one in grown] == [4, 4, -8, 4]


def test_other_files_stay(file: Path, tmp_path: Path) -> None:
    content = np.memmap(file, np.int32, "r")
    content.sum()
    assert abs(mapped_by(lambda: let_go([tmp_path / "another"]))) < MEBIBYTE


def test_what_was_written_into_a_private_mapping_stays(file: Path) -> None:
    content = np.memmap(file, np.int32, "c")
    content[5] = 77
    let_go([file])
    assert content[5] == 77


@pytest.mark.parametrize(("begins", "kept"), [("keep_little_free()", False), ("None", True)])
def test_large_blocks_go_back_although_something_lies_behind_them(begins: str, kept: bool) -> None:
    """As glibc does it by itself, they would stay: what is to be seen is the difference."""
    program = f"""
from neuroglot_server.resident import keep_little_free, resident
{begins}
bytearray(2**23)  # from here on glibc takes blocks of this size for small
blocks = [bytearray(2**22) + b"x" for _ in range(32)]
before = resident().own
del blocks[:-1]
print(before - resident().own)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    given_back = int(ended.stdout)
    assert (given_back < 64 * MEBIBYTE) if kept else (given_back > 100 * MEBIBYTE)
