"""Runs that are compared: each has a short name, made of what tells it from the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from neuroglot.analyses.study import Study
from neuroglot.errors import AnalysisError
from neuroglot.runs.run import Run
from neuroglot.runs.settings import Settings

_SAID_OTHERWISE = frozenset(
    {"task_title", "task_kind", "task_data", "problems", "shard", "variants", "analyses", "family", "parameters"}
)
"""Settings that follow from others, or that change what is shown of a run and not what it found."""

_FINGERPRINTS = ("source", "source_revision", "dtype", "bundle_identity", "groups", "data_sha256")
"""What tells runs apart if nothing else does: a model's name or a task's parameters say more, where they differ."""

Value = str | int | float
"""Of a setting, in a cell of a table."""

_WHERE_UNSAID: Mapping[str, Value] = {"shots": 0}
"""What a task's parameter is where a run does not mention it."""

_SPEAKS_FOR_ITSELF = frozenset({"model", "task", "source", "dtype"})
"""Settings whose values need no name beside them."""


@dataclass(frozen=True)
class ComparedRun:
    """One of several runs.

    Attributes:
        name: short, and no other run's.
        varied: its value of each setting in which the runs differ.
        run: its folder.
        study: its analyses, with at least one result.
    """

    name: str
    varied: Mapping[str, Value]
    run: Run
    study: Study


def compared(runs: Sequence[tuple[Run, Study]]) -> tuple[ComparedRun, ...]:
    """Give runs their names.

    Raises:
        AnalysisError: fewer than two runs, or the same one twice.
    """
    folders = [run.folder.resolve() for run, _ in runs]
    if len(folders) < 2:
        raise AnalysisError(f"{len(folders)} run does not compare: give the folders of two or more")
    if twice := [folder for place, folder in enumerate(folders) if folder in folders[:place]]:
        raise AnalysisError(f"{twice[0]} is given twice: give each run once")
    varied = differing([run.settings for run, _ in runs])
    names = [", ".join(_words(*one) for one in values.items()) for values in varied]
    if len(set(names)) < len(names):
        names = [
            f"{name} ({folder.name})" if name else folder.name for name, folder in zip(names, folders, strict=True)
        ]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run, _ in runs]
    return tuple(
        ComparedRun(name, values, run, study) for name, values, (run, study) in zip(names, varied, runs, strict=True)
    )


def differing(several: Sequence[Settings]) -> list[dict[str, Value]]:
    """The settings in which runs differ, and of each run its values of them; empty where it says nothing of one."""
    flat = [_flat(settings) for settings in several]
    names = dict.fromkeys(name for settings in flat for name in settings)
    flat = [{name: one[name] for name in names if name in one} for one in ({**_WHERE_UNSAID, **one} for one in flat)]
    differ = [name for name in names if len({one[name] for one in flat if name in one}) > 1]
    telling = [name for name in differ if name not in _FINGERPRINTS] or differ[:1]
    return [{name: one.get(name, "") for name in telling} for one in flat]


def joined(runs: Iterable[tuple[ComparedRun, pd.DataFrame]]) -> pd.DataFrame:
    """Tables of several runs in one: a column `run`, a column each setting that differs, then their own.

    A setting that has the name of a column is called `run_component`.
    """
    frames = []
    for one, table in runs:
        said: dict[str, Value] = {"run": one.name}
        for name, value in one.varied.items():
            said[f"run_{name}" if name in table.columns else name] = value
        frames.append(table.assign(**said)[[*said, *table.columns]])
    columns = list(dict.fromkeys(column for frame in frames for column in frame.columns))
    # What a table has no value of has no type there, and must not decide the type of the others' column.
    return pd.concat([frame.dropna(axis="columns", how="all") for frame in frames], ignore_index=True).reindex(
        columns=columns
    )


def joined_tables(runs: Sequence[tuple[ComparedRun, Mapping[str, pd.DataFrame]]]) -> dict[str, pd.DataFrame]:
    """The same of all tables, by name; a run may lack some."""
    names = dict.fromkeys(name for _, tables in runs for name in tables)
    return {name: joined([(one, tables[name]) for one, tables in runs if name in tables]) for name in names}


def _flat(settings: Settings) -> dict[str, Value]:
    """A run's settings by name, its task's parameters among them; fingerprints last."""
    said = {name: value for name, value in asdict(settings).items() if name not in _SAID_OTHERWISE}
    chosen = {name: said.pop(name) for name in ("model", "task")} | dict(settings.parameters)
    marks = {name: said.pop(name) for name in _FINGERPRINTS}
    return {name: _plain(value) for name, value in (chosen | said | marks).items()}


def _plain(value: Any) -> Value:
    """A value that fits in a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, tuple | list):
        return " ".join("+".join(map(str, one)) if isinstance(one, tuple | list) else str(one) for one in value)
    return value if isinstance(value, int | float) else str(value)


def _words(name: str, value: Value) -> str:
    text = str(value)
    if len(text) == 64:  # of a hash, its beginning
        text = text[:12]
    if name in _SPEAKS_FOR_ITSELF:
        return text
    return f"{name.replace('_', ' ')} {text or 'all'}"
