from __future__ import annotations

import resource
from pathlib import Path

import pytest

from neuroglot.errors import RunError
from neuroglot.runs import records
from neuroglot.v1.result_pb2 import GroupResult


def write(path: Path, names: list[str]) -> bytes:
    with records.open_to_append(path, GroupResult) as file:
        for name in names:
            records.append(file, GroupResult(group_id=name))
    return path.read_bytes()


def names(path: Path) -> list[str]:
    return [message.group_id for message in records.read(path, GroupResult)]


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "groups.binpb"
    assert names(path) == []
    write(path, ["a", "b"])
    write(path, ["c" * 300])
    assert names(path) == ["a", "b", "c" * 300]


def test_a_record_is_on_disk_before_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "groups.binpb"
    with records.open_to_append(path, GroupResult) as file:
        records.append(file, GroupResult(group_id="a"))
        assert names(path) == ["a"]


def test_a_last_record_torn_anywhere_is_dropped_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "groups.binpb"
    whole = write(path, ["a"])
    both = write(path, ["b" * 300])
    for size in range(len(whole), len(both)):
        path.write_bytes(both[:size])
        assert names(path) == ["a"], size
        write(path, ["c"])
        assert names(path) == ["a", "c"], size


def test_a_record_that_a_full_disk_does_not_take_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "groups.binpb"
    whole = write(path, ["a" * 100])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with records.open_to_append(path, GroupResult) as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 50, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                records.append(file, GroupResult(group_id="b" * 100))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == whole
        records.append(file, GroupResult(group_id="c"))
    assert names(path) == ["a" * 100, "c"]


def test_a_damaged_record_before_the_last_is_an_error_that_says_where(tmp_path: Path) -> None:
    path = tmp_path / "groups.binpb"
    first = write(path, ["a" * 50])
    both = bytearray(write(path, ["b" * 50]))
    both[2] = 0xFF
    path.write_bytes(both)
    assert len(both) > len(first)
    with pytest.raises(RunError, match=r"groups\.binpb is damaged at byte 0"):
        names(path)
