"""From a task and a model to a folder with answers, tables, figures and a report."""

from __future__ import annotations

import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

from neuroglot import arguments
from neuroglot.analyses.base.context import Context
from neuroglot.analyses.base.fold import Fold
from neuroglot.analyses.figures.output import save_figure, save_tables
from neuroglot.analyses.registry import choose
from neuroglot.analyses.study import Study
from neuroglot.errors import AnalysisError
from neuroglot.model import Model
from neuroglot.report.page import page
from neuroglot.request.groups import Group
from neuroglot.request.options import AnalysisKeywords, ScoreTarget
from neuroglot.request.selections import DEFAULT_TOP_FRACTION, ControlKind
from neuroglot.results.results import GroupFailure
from neuroglot.runs import merging
from neuroglot.runs.run import RUN, Run, data_hash, of_shard, to_lines, writing
from neuroglot.runs.settings import (
    DRAWS,
    REPLICATES,
    THRESHOLDS,
    Options,
    ScoreReduction,
    Settings,
    Shard,
)
from neuroglot.tasks.registry import find_task
from neuroglot.tasks.task import Task

REPORT = "report.html"
TABLES = "tables"
FIGURES = "figures"

OnProgress = Callable[[int, int, int], None]
"""Callback after each result, with the numbers of groups answered, groups failed, and groups in total."""


@dataclass(frozen=True, repr=False)
class Outcome:
    """The outcome of a run.

    Attributes:
        run: its folder, with every answer.
        study: the analyses of all its answers.
        report: the path of the report.
    """

    run: Run
    study: Study
    report: Path

    def __getitem__(self, name: str) -> Fold:
        """An analysis, by its name.

        Raises:
            AnalysisError: the run has none of that name.
        """
        if name not in self.study.folds:
            raise AnalysisError(f"the run has no analysis {name!r}: it has {', '.join(self.study.folds)}")
        return self.study.folds[name]

    def __repr__(self) -> str:
        settings, study = self.run.settings, self.study
        return (
            f"<Outcome of {settings.task} with {settings.model}: {study.groups} groups x {len(settings.languages)} "
            f"languages; {', '.join(study.folds)}; {self.report}>"
        )

    def _repr_html_(self) -> str:
        """HTML for a notebook: the run's settings, and every analysis."""
        settings, study = self.run.settings, self.study
        head = Markup("<h3>{}, {}</h3><p>{} groups x {} languages. {}</p>").format(
            settings.task_title, settings.model, study.groups, len(settings.languages), self.report
        )
        return str(head) + "".join(fold._repr_html_() for fold in study.folds.values())


def run(
    model: Model,
    task: Task | str,
    out: str | Path | None = None,
    *,
    languages: Sequence[str] = (),
    limit: int | None = None,
    shard: str = "",
    resume: bool = False,
    command: str = "neuroglot.analyses.run",
    on_progress: OnProgress | None = None,
    analyses: Sequence[str] = (),
    draws: int = DRAWS,
    controls: Sequence[ControlKind | str] = (ControlKind.RANDOM_ACTIVE,),
    seed: int = 0,
    thresholds: Sequence[float] = THRESHOLDS,
    top_fraction: float = DEFAULT_TOP_FRACTION,
    score_target: ScoreTarget | str = ScoreTarget.FIRST_GOLD_TOKEN,
    score_reduction: ScoreReduction | str = ScoreReduction.WITHIN_GROUPS,
    convert_to: float | Literal["mean"] | None = None,
    component: str | None = None,
    subsets: Sequence[Sequence[str]] = (),
    cumulative_dead: bool = False,
    replicates: int = REPLICATES,
) -> Outcome:
    """Ask a model about every group of a task, once, and make tables, figures and a report of the answers.

    >>> outcome = neuroglot.analyses.run(model, "capitals", out="results/capitals")  # doctest: +SKIP
    >>> outcome["types_by_layer"].table()                                            # doctest: +SKIP

    Each answer is written to disk before the next is awaited. An interrupted run (KeyboardInterrupt included) keeps
    its answers, and with `resume` only the groups without an answer are requested.

    Args:
        model: from `neuroglot.connect(...).model(...)`.
        task: from `neuroglot.tasks`, `neuroglot.tasks.capitals(shots=2)`, or one of your own; or the name of a task
            that needs no files, `capitals`.
        out: the run's folder; None for a new temporary folder.
        languages: of the task's; all by default.
        limit: number of groups, taken from the task's start; None for all.
        shard: ask only this part of the groups, `2/4`; `merge` puts the parts together.
        resume: resume the run in `out`, if there is one; its settings must be the same.
        command: the command line to record in the report.
        on_progress: callback after each result.
        analyses: names of the analyses to run; empty for all that the task's groups allow.
        draws: draws of each control.
        controls: the kinds of neurons that controls are drawn from; headlines use the first.
        seed: of the controls, of the tests and of the bootstrap.
        thresholds: activation thresholds, a neuron is active above; all analyses but one use the first only.
        top_fraction: share of a layer's neurons that count as its top contributors.
        score_target: the tokens that effective scores are computed for.
        score_reduction: how the largest and smallest scores are reduced over layers.
        convert_to: the activation that converted neurons get; None for the next number above the threshold, `mean` for
            the mean over the group's languages in which the neuron is active.
        component: deactivate and convert neurons in this component only, `encoder` or `decoder`; None for all.
        subsets: sets of languages to type the neurons among; none for all subsets of 3, 5, 7, ... languages.
        cumulative_dead: draw neurons that are dead in all prompts, in place of those that are dead in a prompt.
        replicates: replicates of the bootstrap.

    Raises:
        TypeError, ValueError: an argument of another kind.
        AnalysisError: languages or options that do not fit the task or the model, too many variants for the
            server, or no group was answered.
        RunError: `out` holds another run, or a run and `resume` was not asked for.
        ServerError: the server failed as a whole.
    """
    if not isinstance(model, Model):
        raise arguments.refuse("model", model, "a Model, client.model('NAME')")
    if isinstance(task, str):
        task = find_task(task)
    if not isinstance(task, Task):
        raise arguments.refuse("task", task, "a Task, neuroglot.tasks.capitals(), or its name, 'capitals'")
    if limit is not None:
        limit = arguments.count("limit", limit, 1)
    arguments.flag("resume", resume)
    languages = task.choose(languages)
    given: dict[str, Any] = {
        "analyses": analyses,
        "draws": draws,
        "controls": controls,
        "seed": seed,
        "thresholds": thresholds,
        "top_fraction": top_fraction,
        "score_target": score_target,
        "score_reduction": score_reduction,
        "convert_to": convert_to,
        "component": component,
        "subsets": subsets,
        "cumulative_dead": cumulative_dead,
        "replicates": replicates,
    }
    options = Options(**given)  # converts lists and names into its own types
    examples = list(task.groups(languages, limit))
    _require_ids(task, examples)
    names = choose(options.analyses, answers=any(group.answers for group in examples))
    study = Study(Context(languages, options), names)
    settings = _settings(model, task, examples, languages, options, study, shard)
    _require_component(model, options)
    _require_variant_limit(model, settings)
    if not of_shard(examples, settings.shard):
        raise AnalysisError(f"part {shard} has no group: the task has fewer clusters than there are parts")
    if out is not None:
        arguments.path("out", out)
    folder = Path(tempfile.mkdtemp(prefix="neuroglot-") if out is None else out)
    if resume and (folder / RUN).exists():
        opened = Run.open(folder)
        opened.require(settings)
    else:
        opened = Run.create(folder, settings, examples, list(map(str, task.problems)))
    collect(opened, model, study.keywords(), command, on_progress)
    return publish(opened)


def merge(folders: Sequence[str | Path], out: str | Path, *, command: str = "neuroglot.analyses.merge") -> Outcome:
    """Put parts of a run into one folder, and make tables, figures and the report of the whole.

    Args:
        folders: folders of the parts, complete or not: shards, or other runs with the same settings.
        out: folder of the merged run; must not hold a run yet.
        command: the command line to record in the report.

    Raises:
        AnalysisError: no part has an answer.
        RunError: the parts are of different runs, or overlap, or a folder holds no run.
    """
    parts = arguments.items("folders", folders, "a list of the folders of the parts")
    paths = [Path(arguments.path(f"folders[{index}]", part)) for index, part in enumerate(parts)]
    return publish(merging.merge(paths, Path(arguments.path("out", out)), command, _versions()))


def collect(run: Run, model: Model, keywords: AnalysisKeywords, command: str, on_progress: OnProgress | None) -> None:
    """Request the groups without an answer, and append the answers to the run."""
    done, groups = run.done(), run.asked()
    answered = len(done)
    with (
        run.session(command, _versions()) as recorder,
        closing(model.analyze_many((group for group in groups if group.id not in done), **keywords)) as outcomes,
    ):
        for outcome in outcomes:
            if isinstance(outcome, GroupFailure):
                recorder.fail(outcome.group_id, str(outcome.error))
            else:
                recorder.keep(outcome)
                answered += 1
            if on_progress:
                on_progress(answered, len(run.failures), len(groups))


def study_of(run: Run) -> Study:
    """Build the analyses of all answers of a run.

    Raises:
        AnalysisError: the run has no answers.
        RunError: its folder is damaged.
    """
    study = Study(Context.of(run), run.settings.analyses)
    for result in run.results():
        study.add(result)
    if not study.groups:
        reason = next(iter(run.failures.values()), "")
        raise AnalysisError(
            f"{run.folder} has no answer to analyse" + (f": every group failed, {reason}" if reason else "")
        )
    return study


def publish(run: Run) -> Outcome:
    """Make tables, figures and the report of a run's answers so far; raises as `study_of`."""
    study = study_of(run)
    metadata = {**asdict(run.settings), "sessions": [asdict(session) for session in run.sessions]}
    tables = {name: table for fold in study.folds.values() for name, table in fold.tables().items()}
    report = run.folder / REPORT
    with writing(run.folder):
        save_tables(tables, run.folder / TABLES, metadata)
        svgs = {
            analysis.name: save_figure(analysis.figure(), run.folder / FIGURES, analysis.name)
            for analysis in study.analyses()
        }
        report.write_text(page(run, study, svgs), encoding="utf-8")
    return Outcome(run, study, report)


def _settings(
    model: Model,
    task: Task,
    examples: list[Group],
    languages: tuple[str, ...],
    options: Options,
    study: Study,
    shard: str,
) -> Settings:
    info = model.info
    return Settings(
        **{**asdict(options), "analyses": tuple(study.folds)},
        task=task.name,
        task_title=task.title,
        task_kind=task.kind,
        task_data=task.data,
        parameters=task.parameters,
        problems={str(kind): count for kind, count in task.problems.counts.items()},
        data_sha256=data_hash(to_lines(examples)),
        groups=len(examples),
        shard=str(Shard.parse(shard)) if shard else "",
        languages=languages,
        model=info.name,
        bundle_identity=info.bundle_identity,
        family=info.family,
        source=info.source,
        source_revision=info.source_revision,
        dtype=info.dtype,
        variants=tuple(study.keywords()["variants"]),
    )


def _require_ids(task: Task, examples: Sequence[Group]) -> None:
    if not examples:
        raise AnalysisError(f"task {task.name!r} has no groups in these languages: there is nothing to ask")
    name, count = Counter(group.id for group in examples).most_common(1)[0]
    if count > 1 or any(not group.id for group in examples):
        what = f"{count} groups with the id {name!r}" if count > 1 else "a group without an id"
        raise AnalysisError(f"task {task.name!r} has {what}: give each group its own, answers are kept under it")


def _require_component(model: Model, options: Options) -> None:
    names = [component.name for component in model.info.components]
    if options.component is not None and options.component not in names:
        raise AnalysisError(
            f"model {model.info.name!r} has no component {options.component!r} to deactivate neurons of: it has "
            f"{' and '.join(names)}"
        )


def _require_variant_limit(model: Model, settings: Settings) -> None:
    allowed, variants = model.info.limits.variants_per_group, len(settings.variants)
    if variants > allowed:
        raise AnalysisError(
            f"{settings.draws} draws make {variants} variants of each group, and the server allows {allowed}: ask for "
            "fewer draws, fewer kinds of controls or fewer analyses"
        )


def _versions() -> Mapping[str, str]:
    packages = ("neuroglot", "numpy", "scipy", "pandas", "matplotlib", "protobuf", "grpcio")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
