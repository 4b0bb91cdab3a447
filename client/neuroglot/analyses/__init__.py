"""Analyses of group results: tables and figures, and the pipeline from a task to a report.

    run         analyses a task with a model and returns an Outcome: a folder with tables, figures and a report
    merge       joins the shards of a run that several machines have computed
    publish     rebuilds the tables, figures and report of a run's folder
    study_of    the analyses of all results in a run's folder
    ANALYSES    every analysis, by name: see docs/analyses.md

>>> import neuroglot as ng
>>> with ng.connect("bundles/bloom") as client:                                           # doctest: +SKIP
...     outcome = ng.analyses.run(client.model(), ng.tasks.capitals(), analyses=["types_by_layer"])
>>> outcome["types_by_layer"].table()                                                     # doctest: +SKIP

Needs `pip install 'neuroglot[analysis]'`.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

from neuroglot.errors import InstallationError

if TYPE_CHECKING:
    from neuroglot.analyses.registry import ANALYSES
    from neuroglot.pipeline.pipeline import Outcome, merge, publish, run, study_of

__all__ = ["ANALYSES", "Outcome", "merge", "publish", "run", "study_of"]

_PACKAGES = ("jinja2", "matplotlib", "pandas", "pyarrow", "scipy")


def _require_packages() -> None:
    if missing := [package for package in _PACKAGES if find_spec(package) is None]:
        raise InstallationError(f"the analyses need {', '.join(missing)}: pip install 'neuroglot[analysis]'")


_require_packages()


def __getattr__(name: str) -> object:
    """Import the requested name lazily, so that one analysis does not load all of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it has {', '.join(__all__)}")
    module = f"{__name__}.registry" if name == "ANALYSES" else "neuroglot.pipeline.pipeline"
    return getattr(importlib.import_module(module), name)
