"""Merges the parts of a run, executed on several machines, into one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from neuroglot.errors import RunError
from neuroglot.runs.run import Run
from neuroglot.runs.settings import Shard


def merge(folders: Sequence[Path], out: Path, command: str, versions: Mapping[str, str]) -> Run:
    """Merge the results of parts of a run into the folder of the whole run, which can be resumed.

    Args:
        folders: folders of the parts, complete or not: shards, or other runs of the same settings.
        out: folder of the whole run; must hold no run.
        command: the command line, or the Python call.
        versions: versions of the packages used, by name.

    Returns:
        The whole run.

    Raises:
        RunError: the parts belong to different runs, two parts have the same group, or a folder holds no run. The
            message names them and their differences; nothing is written.
    """
    parts = [Run.open(folder) for folder in folders]
    _require_same(parts)
    _require_apart(parts)
    first = parts[0]
    whole = Run.create(out, replace(first.settings, shard=""), first.examples(), first.problems())
    whole.sessions = sorted((one for part in parts for one in part.sessions), key=lambda one: one.started)
    answered = set()
    with whole.session(command, versions) as recorder:
        for part in parts:
            for result in part.results():
                recorder.keep(result)
                answered.add(result.group_id)
        for part in parts:
            for group_id, reason in part.failures.items():
                if group_id not in answered:
                    recorder.fail(group_id, reason)
    return whole


def missing_shards(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the shards of a run that are missing from the folders; empty unless all are shards of one division."""
    shards = [Run.open(folder).settings.shard for folder in folders]
    if "" in shards or len({Shard.parse(one).parts for one in shards}) != 1:
        return ()
    parts = Shard.parse(shards[0]).parts
    return tuple(one for one in (str(Shard(number, parts)) for number in range(1, parts + 1)) if one not in shards)


def _require_same(parts: Sequence[Run]) -> None:
    if not parts:
        raise RunError("there is nothing to merge: give the folders of a run's parts")
    for part in parts[1:]:
        if differences := parts[0].settings.differences(part.settings, but=("shard",)):
            raise RunError(f"{part.folder} is another run than {parts[0].folder}: {'; '.join(differences)}")


def _require_apart(parts: Sequence[Run]) -> None:
    owners: dict[str, Path] = {}
    for part in parts:
        for group_id in part.done():
            if group_id in owners:
                raise RunError(
                    f"{owners[group_id]} and {part.folder} both have an answer to group {group_id!r}: parts of a run "
                    "must not overlap"
                )
            owners[group_id] = part.folder
