"""Facts of a run (task, model, settings, versions) as terms and descriptions."""

from __future__ import annotations

from neuroglot.analyses.study import Study
from neuroglot.runs.run import PROBLEMS, Run, Session
from neuroglot.runs.settings import Settings


def facts(run: Run, study: Study) -> list[tuple[str, str]]:
    """List the facts of a run as terms and descriptions.

    Args:
        run: a run.
        study: its analyses, with at least one result.
    """
    settings = run.settings
    revision = f" at {settings.source_revision}" if settings.source_revision else ""
    said = [
        ("Model", f"{settings.model}: family {settings.family}, {_geometry(study)}, {settings.dtype}"),
        ("Source", f"{settings.source}{revision}"),
        ("Bundle", settings.bundle_identity),
        ("Task", _task(settings)),
        ("Data", settings.task_data),
        ("Data hash", settings.data_sha256),
        ("Groups", _groups(run, study)),
    ]
    if settings.problems:
        said.append(("Problems of the data", _problems(settings)))
    said += [("Settings", _options(settings)), ("Versions", _versions(run))]
    return said + [("Command" if not place else "Resumed", _session(one)) for place, one in enumerate(run.sessions)]


def problems_in_words(settings: Settings) -> str:
    """How many problems the data had, by kind: `3 empty answers, 1 broken line`."""
    return ", ".join(f"{count:,} x {kind}" for kind, count in settings.problems.items())


def _geometry(study: Study) -> str:
    (geometry, *_) = (fold.geometry for fold in study.folds.values())
    return ", ".join(f"{name} of {layers} layers x {neurons:,} neurons" for name, (layers, neurons) in geometry.items())


def _task(settings: Settings) -> str:
    chosen = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.parameters.items())
    return f"{settings.task}: {settings.task_title}, {settings.task_kind}" + (f" ({chosen})" if chosen else "")


def _groups(run: Run, study: Study) -> str:
    settings = run.settings
    failed = f", {len(run.failures):,} failed" if run.failures else ""
    part = f" (part {settings.shard} of them was asked here)" if settings.shard else ""
    return f"{study.groups:,} of {settings.groups:,} answered{part}{failed}; {len(settings.languages)} languages each"


def _problems(settings: Settings) -> str:
    return f"{problems_in_words(settings)}; what they concern is left out ({PROBLEMS} has each, with file and line)"


def _options(settings: Settings) -> str:
    thresholds = ", ".join(f"{one:g}" for one in settings.thresholds)
    alone = f", interventions in the {settings.component} alone" if settings.component else ""
    return (
        f"thresholds {thresholds}; top {100 * settings.top_fraction:g} % of contribution; {settings.draws} draws of "
        f"each control ({', '.join(settings.controls)}); {settings.replicates:,} bootstrap replicates; "
        f"seed {settings.seed}{alone}"
    )


def _versions(run: Run) -> str:
    servers = sorted({result.provenance.server_version for result in run.results()})
    client = ", ".join(f"{name} {number}" for name, number in run.sessions[-1].versions.items())
    return f"server {', '.join(servers)}; client {client}"


def _session(session: Session) -> str:
    took = f"{session.groups:,} groups in {session.seconds:,.0f} s" if session.finished else "ended by a kill"
    return f"{session.command} ({session.started.replace('T', ' ').replace('+00:00', ' UTC')}, {took})"
