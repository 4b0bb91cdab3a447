"""Registry of the tasks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property

from neuroglot import arguments
from neuroglot.errors import AnalysisError, DataError
from neuroglot.tasks.about_capitals import capitals, capitals_edit, capitals_inference
from neuroglot.tasks.editing import mzsre
from neuroglot.tasks.inference import xnli
from neuroglot.tasks.own_groups import jsonl
from neuroglot.tasks.probing import mpararel
from neuroglot.tasks.task import Task, TaskOptions

_HARMLESS = frozenset({"languages", "seed", "skip_bad_data"})
"""Options that are ignored by tasks that do not take them."""


@dataclass(frozen=True)
class TaskKind:
    """A task before its options are chosen.

    Attributes:
        name: name of the task.
        title: short title.
        kind: the corresponding task of the paper.
        summary: its files and options, one line.
        make: creates the task; its parameters are fields of `TaskOptions`.
    """

    name: str
    title: str
    kind: str
    summary: str
    make: Callable[..., Task]

    @cached_property
    def options(self) -> tuple[str, ...]:
        """Names of its options."""
        return tuple(inspect.signature(self.make).parameters)

    @property
    def needs_data(self) -> bool:
        """Whether the task needs files."""
        return "data" in self.options


TASKS: Mapping[str, TaskKind] = {
    kind.name: kind
    for kind in (
        TaskKind(
            name="capitals",
            title="Capitals",
            kind="fact probing",
            summary="the capitals of 126 states, in ten languages and three wordings; no files",
            make=capitals,
        ),
        TaskKind(
            name="capitals-inference",
            title="Inferences about capitals",
            kind="natural language inference",
            summary="whether a claim about a capital follows from another; no files",
            make=capitals_inference,
        ),
        TaskKind(
            name="capitals-edit",
            title="Edited capitals",
            kind="cross-lingual knowledge editing",
            summary="a counterfactual capital told in one language, asked for in another; direction; no files",
            make=capitals_edit,
        ),
        TaskKind(
            name="xnli",
            title="XNLI",
            kind="natural language inference",
            summary="xnli.test.tsv, or a folder of test-LANGUAGE.tsv",
            make=xnli,
        ),
        TaskKind(
            name="mpararel",
            title="mParaRel",
            kind="fact probing",
            summary="a folder of patterns/LANGUAGE/RELATION.jsonl and tuples/LANGUAGE/RELATION.jsonl",
            make=mpararel,
        ),
        TaskKind(
            name="mzsre",
            title="MzsRE",
            kind="cross-lingual knowledge editing",
            summary="a folder of mzsre_test_duplicate_AB.json, or a .jsonl file",
            make=mzsre,
        ),
        TaskKind(
            name="jsonl",
            title="Groups of one's own",
            kind="groups of one's own",
            summary="a file of groups, one a line, like a run's examples.jsonl",
            make=jsonl,
        ),
    )
}
"""Every task, by name."""


def find_task(name: str, options: TaskOptions | None = None) -> Task:
    """Return a task by name, with options.

    >>> find_task("capitals-edit", TaskOptions(direction="all-en", shots=2)).parameters
    {'direction': 'all-en', 'shots': 2}

    Raises:
        AnalysisError: the name is unknown, the task does not take an option, or the value of an option is invalid.
        DataError: its files are not given, do not exist, or have errors.
    """
    arguments.text("name", name, AnalysisError, "the name of a task, 'capitals'")
    options = options or TaskOptions()
    if not isinstance(options, TaskOptions):
        raise arguments.refuse("options", options, "neuroglot.tasks.TaskOptions(...)", AnalysisError)
    if name not in TASKS:
        raise AnalysisError(f"there is no task {name!r}: the tasks are {', '.join(TASKS)}")
    kind, default = TASKS[name], TaskOptions()
    for field in fields(options):
        given = getattr(options, field.name)
        if given != getattr(default, field.name) and field.name not in {*kind.options, *_HARMLESS}:
            raise AnalysisError(
                f"task {name!r} has no option {field.name.replace('_', '-')} ({given} was given): it has "
                f"{', '.join(one.replace('_', '-') for one in kind.options)}"
            )
    if kind.needs_data and options.data is None:
        raise DataError(f"task {name!r} needs files, {kind.summary}: say where they are with --data PATH (data=PATH)")
    return kind.make(**{option: getattr(options, option) for option in kind.options})
