"""Compared runs, each with a short name made of the settings in which it differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from neuroglot.analyses.study import Study
from neuroglot.errors import AnalysisError
from neuroglot.runs.run import Run
from neuroglot.runs.settings import Settings

_DERIVED = frozenset(
    {"task_title", "task_kind", "task_data", "problems", "shard", "variants", "analyses", "family", "parameters"}
)
"""Settings that follow from others, or that affect the presentation of a run and not its results."""

_FINGERPRINTS = ("source", "source_revision", "dtype", "bundle_identity", "groups", "data_sha256")
"""Settings that distinguish runs only if no other setting does, because their values are less readable."""

Value = str | int | float
"""Value of a setting in a table cell."""

_DEFAULTS: Mapping[str, Value] = {"shots": 0}
"""Values of task parameters that a run does not record."""

_UNNAMED = frozenset({"model", "task", "source", "dtype"})
"""Settings whose values are shown without their name."""


@dataclass(frozen=True)
class ComparedRun:
    """One of several compared runs.

    Attributes:
        name: short unique name.
        varied: value by setting, for the settings in which the runs differ.
        run: the run's folder.
        study: the run's analyses, with at least one result.
    """

    name: str
    varied: Mapping[str, Value]
    run: Run
    study: Study


def compared(runs: Sequence[tuple[Run, Study]]) -> tuple[ComparedRun, ...]:
    """Name the runs by their differing settings.

    Raises:
        AnalysisError: there are fewer than two runs, or a run is given twice.
    """
    folders = [run.folder.resolve() for run, _ in runs]
    if len(folders) < 2:
        raise AnalysisError(f"cannot compare {len(folders)} run: give the folders of two or more")
    if duplicates := [folder for index, folder in enumerate(folders) if folder in folders[:index]]:
        raise AnalysisError(f"{duplicates[0]} is given twice: give each run once")
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
    """Return the differing settings with their values, one mapping a run; empty strings for missing values."""
    flat = [_flat(settings) for settings in several]
    names = dict.fromkeys(name for settings in flat for name in settings)
    flat = [{name: one[name] for name in names if name in one} for one in ({**_DEFAULTS, **one} for one in flat)]
    differ = [name for name in names if len({one[name] for one in flat if name in one}) > 1]
    informative = [name for name in differ if name not in _FINGERPRINTS] or differ[:1]
    return [{name: one.get(name, "") for name in informative} for one in flat]


def joined(runs: Iterable[tuple[ComparedRun, pd.DataFrame]]) -> pd.DataFrame:
    """Concatenate tables of several runs: a column `run`, one column a differing setting, then the tables' columns.

    A setting with the name of a table column gets the prefix `run_`: `run_component`.
    """
    frames = []
    for one, table in runs:
        settings: dict[str, Value] = {"run": one.name}
        for name, value in one.varied.items():
            settings[f"run_{name}" if name in table.columns else name] = value
        frames.append(table.assign(**settings)[[*settings, *table.columns]])
    columns = list(dict.fromkeys(column for frame in frames for column in frame.columns))
    # An all-missing column has no type of its own and must not decide the type of the joined column.
    return pd.concat([frame.dropna(axis="columns", how="all") for frame in frames], ignore_index=True).reindex(
        columns=columns
    )


def joined_tables(runs: Sequence[tuple[ComparedRun, Mapping[str, pd.DataFrame]]]) -> dict[str, pd.DataFrame]:
    """Join all tables by name; a run may lack some of them."""
    names = dict.fromkeys(name for _, tables in runs for name in tables)
    return {name: joined([(one, tables[name]) for one, tables in runs if name in tables]) for name in names}


def _flat(settings: Settings) -> dict[str, Value]:
    """Return a run's settings by name, including its task's parameters, fingerprints last."""
    values = {name: value for name, value in asdict(settings).items() if name not in _DERIVED}
    chosen = {name: values.pop(name) for name in ("model", "task")} | dict(settings.parameters)
    marks = {name: values.pop(name) for name in _FINGERPRINTS}
    return {name: _plain(value) for name, value in (chosen | values | marks).items()}


def _plain(value: Any) -> Value:
    """Convert a value for a table cell."""
    if value is None:
        return ""
    if isinstance(value, tuple | list):
        return " ".join("+".join(map(str, one)) if isinstance(one, tuple | list) else str(one) for one in value)
    return value if isinstance(value, int | float) else str(value)


def _words(name: str, value: Value) -> str:
    text = str(value)
    if len(text) == 64:  # a SHA-256 hash is shortened
        text = text[:12]
    if name in _UNNAMED:
        return text
    return f"{name.replace('_', ' ')} {text or 'all'}"
