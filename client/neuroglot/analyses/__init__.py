"""Analyses: folds over group results, their tables and figures, and the way from a task to a report.

    types_by_layer      the four types by layer                              Figure 4, left
    active_by_language  active neurons by language and layer                 Figure 4, right
    top_contributors    types among the top 5 % of contribution              Figure 23
    accuracy            without each type, and without its controls          the form of Table 2
    effects             the paired test of each type against its control
    answers             how the gold answers are tokenized
    study               all of these at once
    pipeline            from a task and a model to a folder with everything: `run`

Needs `pip install 'neuroglot[analysis]'`.
"""

from __future__ import annotations

from importlib.util import find_spec

from neuroglot.errors import InstallationError

_PACKAGES = ("jinja2", "matplotlib", "pandas", "pyarrow", "scipy")


def _require_packages() -> None:
    if missing := [package for package in _PACKAGES if find_spec(package) is None]:
        raise InstallationError(f"the analyses need {', '.join(missing)}: pip install 'neuroglot[analysis]'")


_require_packages()
