"""From a task and a model to a folder with answers, tables, figures and a report."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from neuroglot.analyses.ablations import Ablations
from neuroglot.analyses.output import save_figure, save_table
from neuroglot.analyses.study import Study
from neuroglot.errors import AnalysisError
from neuroglot.groups import Group
from neuroglot.model import Model
from neuroglot.report.page import page
from neuroglot.results import GroupFailure
from neuroglot.runs import RUN, Run, Settings, data_hash, to_lines
from neuroglot.tasks.registry import Task

TOP_FRACTION = 0.05
"""Share of a layer's neurons that count as its top contributors, as in the paper."""

THRESHOLD = 0.0
"""A neuron is active above it, as in the paper."""

REPORT = "report.html"

OnProgress = Callable[[int, int, int], None]
"""Is told after each answer: groups answered, groups failed, groups in all."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        run: its folder, with every answer.
        study: the analyses of all answers that it has.
        report: the path of the report.
    """

    run: Run
    study: Study
    report: Path


def run(
    model: Model,
    task: Task,
    out: Path,
    *,
    languages: tuple[str, ...] = (),
    limit: int | None = None,
    draws: int = 3,
    seed: int = 0,
    component: str | None = None,
    resume: bool = False,
    command: str = "neuroglot.analyses.pipeline.run",
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Ask a model about every group of a task, and make tables, figures and a report of the answers.

    Every answer is on disk before the next is waited for. Whatever interrupts the run, KeyboardInterrupt too, leaves
    them there, and with `resume` only the groups that have no answer are asked.

    Args:
        model: from `neuroglot.connect(...).model(...)`.
        task: from `neuroglot.tasks.registry`, or one of your own.
        out: the run's folder.
        languages: of the task's; all by default.
        limit: ask only the task's first groups.
        draws: draws of each control.
        seed: of the controls and of the tests.
        component: deactivate neurons of this component alone, `encoder` or `decoder`; of all by default.
        resume: go on with the run in `out`, if there is one; it must be the same.
        command: what to name in the report as the command that was given.
        on_progress: is told after each answer.

    Raises:
        AnalysisError: languages that the task does not have, a component that the model does not have, too many draws
            for the server, or no group was answered.
        RunError: `out` holds another run, or a run and `resume` was not asked for.
        ServerError: the server failed as a whole.
    """
    languages = task.choose(languages)
    ablations = Ablations(draws=draws, seed=seed, component=component)
    _require_component(model, ablations)
    _require_room(model, ablations)
    examples = list(task.groups(languages, limit))
    settings = _settings(model, task, examples, languages, ablations)
    if resume and (out / RUN).exists():
        opened = Run.open(out)
        opened.require(settings)
    else:
        opened = Run.create(out, settings, examples)
    collect(opened, model, ablations, examples, command, on_progress)
    return publish(opened)


def collect(
    run: Run, model: Model, ablations: Ablations, examples: list[Group], command: str, on_progress: OnProgress | None
) -> None:
    """Ask for the groups that have no answer yet, and append the answers to the run."""
    done = run.done()
    answered = len(done)
    with (
        run.session(command, _versions()) as recorder,
        closing(
            model.analyze_many(
                (group for group in examples if group.id not in done),
                variants=ablations.variants(),
                thresholds=(THRESHOLD,),
                type_map=False,
                contribution=TOP_FRACTION,
                predict=True,
            )
        ) as outcomes,
    ):
        for outcome in outcomes:
            if isinstance(outcome, GroupFailure):
                recorder.fail(outcome.group_id, str(outcome.error))
            else:
                recorder.keep(outcome)
                answered += 1
            if on_progress:
                on_progress(answered, len(run.failures), len(examples))


def publish(run: Run) -> Outcome:
    """Make tables, figures and the report of the answers that a run has, all of them or not yet.

    Raises:
        AnalysisError: it has none.
        RunError: its folder is damaged.
    """
    settings = run.settings
    clusters = {group.id: group.cluster for group in run.examples() if group.cluster}
    ablations = Ablations(settings.draws, settings.seed, settings.component)
    study = Study.of(settings.languages, ablations, clusters)
    for result in run.results():
        study.add(result)
    if not study.groups:
        reason = next(iter(run.failures.values()), "")
        raise AnalysisError(
            f"{run.folder} has no answer to analyse" + (f": every group failed, {reason}" if reason else "")
        )
    metadata = {**asdict(settings), "sessions": [asdict(session) for session in run.sessions]}
    for fold in study.folds():
        save_table(fold.table(), run.folder / "tables", fold.name, metadata)
    svgs = {one.name: save_figure(one.figure(), run.folder / "figures", one.name) for one in study.analyses()}
    report = run.folder / REPORT
    report.write_text(page(run, study, svgs), encoding="utf-8")
    return Outcome(run, study, report)


def _settings(
    model: Model, task: Task, examples: list[Group], languages: tuple[str, ...], ablations: Ablations
) -> Settings:
    info = model.info
    return Settings(
        task=task.name,
        task_title=task.title,
        task_kind=task.kind,
        task_data=task.data,
        data_sha256=data_hash(to_lines(examples)),
        groups=len(examples),
        languages=languages,
        model=info.name,
        bundle_identity=info.bundle_identity,
        family=info.family,
        source=info.source,
        source_revision=info.source_revision,
        dtype=info.dtype,
        variants=tuple(ablations.variants()),
        draws=ablations.draws,
        seed=ablations.seed,
        component=ablations.component,
        threshold=THRESHOLD,
        top_fraction=TOP_FRACTION,
    )


def _require_component(model: Model, ablations: Ablations) -> None:
    names = [component.name for component in model.info.components]
    if ablations.component is not None and ablations.component not in names:
        raise AnalysisError(
            f"model {model.info.name!r} has no component {ablations.component!r} to deactivate neurons of: it has "
            f"{' and '.join(names)}"
        )


def _require_room(model: Model, ablations: Ablations) -> None:
    allowed, wanted = model.info.limits.variants_per_group, len(ablations.variants())
    if wanted > allowed:
        types = len(ablations.variants()) // (ablations.draws + 1)
        raise AnalysisError(
            f"{ablations.draws} draws make {wanted} variants of each group, and the server allows {allowed}: "
            f"ask for at most {allowed // types - 1} draws"
        )


def _versions() -> Mapping[str, str]:
    packages = ("neuroglot", "numpy", "scipy", "pandas", "matplotlib", "protobuf", "grpcio")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
