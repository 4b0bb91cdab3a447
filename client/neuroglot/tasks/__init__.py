"""Tasks: sources of the parallel groups of an analysis.

    find_task               a task by name and options, as on the command line
    capitals                capitals: the capital of a state
    capitals_inference      capitals-inference: whether a claim about a capital follows
    capitals_edit           capitals-edit: a counterfactual capital, stated in one language, questioned in another
    xnli                    natural language inference, from XNLI's files
    mpararel                facts in several wordings, from mParaRel's files
    mzsre                   knowledge editing, from MzsRE's files
    jsonl                   custom groups, one a line

>>> import neuroglot as ng
>>> ng.tasks.capitals_edit(direction="all-en").choose(["zh", "de"])
('de', 'zh')

A custom task is a `Task`: a name and a function that yields groups.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuroglot.tasks.about_capitals import capitals, capitals_edit, capitals_inference
    from neuroglot.tasks.editing import mzsre
    from neuroglot.tasks.inference import xnli
    from neuroglot.tasks.own_groups import jsonl
    from neuroglot.tasks.probing import mpararel
    from neuroglot.tasks.problems import Problem, Problems
    from neuroglot.tasks.registry import TASKS, TaskKind, find_task
    from neuroglot.tasks.task import Task, TaskOptions

__all__ = [
    "TASKS",
    "Problem",
    "Problems",
    "Task",
    "TaskKind",
    "TaskOptions",
    "capitals",
    "capitals_edit",
    "capitals_inference",
    "find_task",
    "jsonl",
    "mpararel",
    "mzsre",
    "xnli",
]

_MODULES = {
    "TASKS": "registry",
    "Problem": "problems",
    "Problems": "problems",
    "Task": "task",
    "TaskKind": "registry",
    "TaskOptions": "task",
    "capitals_edit": "about_capitals",
    "capitals": "about_capitals",
    "capitals_inference": "about_capitals",
    "find_task": "registry",
    "jsonl": "own_groups",
    "mpararel": "probing",
    "mzsre": "editing",
    "xnli": "inference",
}


def __getattr__(name: str) -> object:
    """Import a task lazily: `import neuroglot` loads none of them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
