"""The folder of a run: what was asked, of which model, and every answer as it came.

    out/
    ├── run.json          what is run, on what, by which commands (`Settings`, and a `Session` for each start)
    ├── examples.jsonl    the parallel groups, one a line: id, cluster, prompts, answers, separators
    ├── groups.binpb      the answers: neuroglot.v1.GroupResult, each after its length as a varint, in any order
    └── tables/, figures/, report.html    what `neuroglot.analyses` makes of them

Answers are appended and flushed one by one, so whatever ends a run keeps those that came. A record torn by a kill is
dropped when it is read, and cut off before the next is appended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from neuroglot import records
from neuroglot.errors import RunError
from neuroglot.groups import Group
from neuroglot.results import GroupResult
from neuroglot.v1 import result_pb2

FORMAT = "neuroglot.run"
FORMAT_VERSION = 1

RUN = "run.json"
EXAMPLES = "examples.jsonl"
GROUPS = "groups.binpb"


@dataclass(frozen=True)
class Settings:
    """What decides the answers of a run. To resume is to ask for the same settings again.

    Attributes:
        task: name of the task.
        task_title: what it is, a few words.
        task_kind: which of the paper's tasks it is a form of.
        task_data: where its data come from.
        data_sha256: hash of `examples.jsonl`, hexadecimal.
        groups: number of parallel groups.
        languages: the rows of every group.
        model: the name under which the model was served; may differ when a run is resumed.
        bundle_identity: hash that names the model's bundle.
        family: the model's family, `bloom`.
        source: where the checkpoint came from, `embedded:bloom`; and its revision where it has one.
        dtype: type of weights and activations.
        variants: names of the variants, the baseline not among them.
        draws: draws of each control.
        seed: seed of the controls and of the tests.
        threshold: a neuron is active above it.
        top_fraction: share of a layer's neurons that count as its top contributors.
        component: the one in which the variants act; None for all.
    """

    task: str
    task_title: str = field(compare=False)
    task_kind: str = field(compare=False)
    task_data: str = field(compare=False)
    data_sha256: str
    groups: int
    languages: tuple[str, ...]
    model: str = field(compare=False)
    bundle_identity: str
    family: str
    source: str
    source_revision: str
    dtype: str
    variants: tuple[str, ...]
    draws: int
    seed: int
    threshold: float
    top_fraction: float
    component: str | None = None

    def differences(self, other: Settings) -> list[str]:
        """What differs in another run's settings, `seed is 1 and not 0`, in words."""
        return [
            f"{one.name} is {_words(getattr(other, one.name))} and not {_words(getattr(self, one.name))}"
            for one in fields(self)
            if one.compare and getattr(self, one.name) != getattr(other, one.name)
        ]


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)  # of a hash, its beginning


@dataclass
class Session:
    """One start of a run: from the command to its end, or to what interrupted it.

    Attributes:
        command: the command line, or the call.
        started: when, UTC, ISO 8601.
        versions: of what ran, by name.
        finished: when it ended; empty where it was killed.
        groups: answers that it added.
    """

    command: str
    started: str
    versions: Mapping[str, str]
    finished: str = ""
    groups: int = 0

    @property
    def seconds(self) -> float:
        """How long it ran; 0 where it was killed."""
        if not self.finished:
            return 0.0
        return (datetime.fromisoformat(self.finished) - datetime.fromisoformat(self.started)).total_seconds()


class Run:
    """A run's folder, open.

    Attributes:
        folder: where it is.
        settings: what decides its answers.
        sessions: its starts, the last one last.
        failures: why each group failed that was asked in the last session in vain, by its id.
    """

    def __init__(self, folder: Path, settings: Settings, sessions: list[Session], failures: dict[str, str]) -> None:
        """`Run.create` and `Run.open` make one."""
        self.folder = folder
        self.settings = settings
        self.sessions = sessions
        self.failures = failures

    @classmethod
    def create(cls, folder: Path, settings: Settings, examples: Sequence[Group]) -> Run:
        """Start a run in a folder that holds none.

        Raises:
            RunError: the folder holds a run, or the answers of one, or is a file.
        """
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file: give a folder for the run")
        if (folder / RUN).exists():
            raise RunError(f"{folder} holds a run already ({cls.open(folder)}): resume it, or give another folder")
        if (folder / GROUPS).exists():
            raise RunError(f"{folder} holds the answers of a run whose {RUN} is gone: give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / EXAMPLES).write_text(to_lines(examples), encoding="utf-8")
        run = cls(folder, settings, [], {})
        run._write()
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open the run in a folder.

        Raises:
            RunError: the folder holds no run, one of another format version, or a damaged one.
        """
        try:
            content = json.loads((folder / RUN).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{folder} holds no run: it has no {RUN}; make one with `neuroglot analyze`") from None
        except ValueError as error:
            raise RunError(f"{folder / RUN} is damaged ({error}): run the analysis in another folder") from None
        try:
            written_as = f"{content['format']} {content['version']}"
            if written_as != f"{FORMAT} {FORMAT_VERSION}":
                raise RunError(f"{folder} is {written_as}, and this neuroglot reads {FORMAT} {FORMAT_VERSION}: upgrade")
            settings: dict[str, Any] = {
                key: tuple(one) if isinstance(one, list) else one for key, one in content["settings"].items()
            }
            sessions = [Session(**session) for session in content["sessions"]]
            return cls(folder, Settings(**settings), sessions, content["failures"])
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{folder / RUN} is damaged ({error!r}): run the analysis in another folder") from None

    def __str__(self) -> str:
        settings = self.settings
        return f"{settings.task} with {settings.model}, {len(self.done())} of {settings.groups} groups"

    def require(self, settings: Settings) -> None:
        """Refuse to go on with other settings.

        Raises:
            RunError: they differ; the message says in what.
        """
        if differences := self.settings.differences(settings):
            raise RunError(
                f"{self.folder} holds another run and cannot be resumed: {'; '.join(differences)}. Ask for the same "
                "again, or give another folder"
            )

    def examples(self) -> list[Group]:
        """The parallel groups that are asked.

        Raises:
            RunError: they are gone, or were changed.
        """
        path = self.folder / EXAMPLES
        try:
            lines = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RunError(f"{path} is missing: run the analysis in another folder") from None
        if data_hash(lines) != self.settings.data_sha256:
            raise RunError(f"{path} was changed: its hash is not the one in {RUN}; run the analysis in another folder")
        return [Group(**json.loads(line)) for line in lines.split("\n") if line]

    def results(self) -> Iterator[GroupResult]:
        """The answers that there are, as they came.

        Raises:
            RunError: one of them is damaged.
        """
        return map(GroupResult, records.read(self.folder / GROUPS, result_pb2.GroupResult))

    def done(self) -> set[str]:
        """Ids of the groups that are answered."""
        return {result.group_id for result in self.results()}

    @contextmanager
    def session(self, command: str, versions: Mapping[str, str]) -> Iterator[Recorder]:
        """Add answers. However the block ends, those that were kept stay, and `run.json` says when it ended."""
        session = Session(command, _now(), dict(versions))
        self.sessions.append(session)
        self.failures = {}
        self._write()
        with records.open_to_append(self.folder / GROUPS, result_pb2.GroupResult) as file:
            try:
                yield Recorder(self, session, file)
            finally:
                session.finished = _now()
                self._write()

    def _write(self) -> None:
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "settings": asdict(self.settings),
            "sessions": [asdict(session) for session in self.sessions],
            "failures": self.failures,
        }
        aside = self.folder / f"{RUN}.partial"
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.replace(self.folder / RUN)


@dataclass(frozen=True)
class Recorder:
    """Takes what comes in during a session."""

    run: Run
    session: Session
    file: BinaryIO

    def keep(self, result: GroupResult) -> None:
        """Append an answer.

        Raises:
            RunError: it was made by another model than the run's: the server has changed its bundle meanwhile.
        """
        made_by = result.provenance.bundle_identity
        if made_by != self.run.settings.bundle_identity:
            raise RunError(
                f"group {result.group_id!r} was answered by bundle {made_by[:12]}, and the run is of "
                f"{self.run.settings.bundle_identity[:12]}: the server changed its model; run the analysis anew"
            )
        records.append(self.file, result.message)
        self.session.groups += 1

    def fail(self, group_id: str, reason: str) -> None:
        """Note why a group has no answer; resuming asks it again."""
        self.run.failures[group_id] = reason


def to_lines(examples: Iterable[Group]) -> str:
    """The groups as JSON, one a line, with keys in a fixed order: what `examples.jsonl` holds."""
    return "".join(
        json.dumps(
            {
                "id": group.id,
                "cluster": group.cluster,
                "prompts": dict(group.prompts),
                "answers": {language: list(answers) for language, answers in group.answers.items()},
                "separators": dict(group.separators),
                # Left out where there are none: the hash of these lines names the data of runs that exist already.
                **({"choices": dict(group.choices)} if group.choices else {}),
                **({"distractors": dict(group.distractors)} if group.distractors else {}),
            },
            ensure_ascii=False,
        )
        + "\n"
        for group in examples
    )


def data_hash(lines: str) -> str:
    """SHA-256 of the lines, hexadecimal: names the data of a run."""
    return hashlib.sha256(lines.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
