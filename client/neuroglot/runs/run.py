"""The folder of a run: what was asked, of which model, and every answer as it came.

    out/
    ├── run.json          what is run, on what, by which commands (`Settings`, and a `Session` for each start)
    ├── examples.jsonl    the parallel groups of all shards, one a line: id, cluster, prompts, answers, ...
    ├── problems.txt      what was wrong with the data and is left out, one a line; not there where nothing was
    ├── groups.binpb      the answers: neuroglot.v1.GroupResult, each after its length as a varint, in any order
    └── tables/, figures/, report.html    what `neuroglot.analyses` makes of them

Answers are appended and flushed one by one, so whatever ends a run keeps those that came. A record torn by a kill is
dropped when it is read, and cut off before the next is appended.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import RawIOBase
from pathlib import Path

from neuroglot.errors import AnalysisError, RunError
from neuroglot.request.groups import Group
from neuroglot.results.results import GroupResult
from neuroglot.runs import records
from neuroglot.runs.settings import Settings, Shard
from neuroglot.v1 import result_pb2

FORMAT = "neuroglot.run"
FORMAT_VERSION = 2

RUN = "run.json"
EXAMPLES = "examples.jsonl"
PROBLEMS = "problems.txt"
GROUPS = "groups.binpb"

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    def create(cls, folder: Path, settings: Settings, examples: Sequence[Group], problems: Sequence[str] = ()) -> Run:
        """Start a run in a folder that holds none.

        Args:
            folder: is made if it is not there.
            settings: what decides its answers.
            examples: the groups, those of all shards.
            problems: what was wrong with the data, a line each.

        Raises:
            RunError: the folder holds a run, or the answers of one, or is a file, or cannot be written.
        """
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file: give a folder for the run")
        if (folder / RUN).exists():
            raise RunError(f"{folder} holds a run already ({cls.open(folder)}): resume it, or give another folder")
        if (folder / GROUPS).exists():
            raise RunError(f"{folder} holds the answers of a run whose {RUN} is gone: give another folder")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / EXAMPLES).write_text(to_lines(examples), encoding="utf-8")
            if problems:
                (folder / PROBLEMS).write_text("".join(f"{one}\n" for one in problems), encoding="utf-8")
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
        except OSError as error:
            raise RunError(f"cannot read {folder / RUN}: {error.strerror}") from None
        except ValueError as error:
            raise RunError(f"{folder / RUN} is damaged ({error}): run the analysis in another folder") from None
        try:
            written_as = f"{content['format']} {content['version']}"
            if written_as != f"{FORMAT} {FORMAT_VERSION}":
                raise RunError(
                    f"{folder} is {written_as}, and this neuroglot reads {FORMAT} {FORMAT_VERSION}: use the "
                    "neuroglot that wrote it, or run the analysis in another folder"
                )
            sessions = [Session(**session) for session in content["sessions"]]
            return cls(folder, Settings(**content["settings"]), sessions, content["failures"])
        except (KeyError, TypeError, AttributeError, AnalysisError) as error:
            raise RunError(f"{folder / RUN} is damaged ({error!r}): run the analysis in another folder") from None

    def __str__(self) -> str:
        settings = self.settings
        part = f", part {settings.shard}" if settings.shard else ""
        return f"{settings.task} with {settings.model}{part}, {len(self.done())} of {len(self.asked())} groups"

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
        """The parallel groups, those of all shards.

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

    def asked(self) -> list[Group]:
        """The groups that are asked here, those of its shard; errors as in `examples`."""
        return of_shard(self.examples(), self.settings.shard)

    def problems(self) -> list[str]:
        """What was wrong with the data and is left out, a line each."""
        path = self.folder / PROBLEMS
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

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
        """Add answers. However the block ends, those that were kept stay, and `run.json` says when it ended.

        Raises:
            RunError: the folder cannot be written.
        """
        session = Session(command, _now(), dict(versions))
        self.sessions.append(session)
        self.failures = {}
        self._write()
        with writing(self.folder):
            groups = records.open_to_append(self.folder / GROUPS, result_pb2.GroupResult)
        with groups as file:
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
        with writing(self.folder):
            aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            aside.replace(self.folder / RUN)


@dataclass(frozen=True)
class Recorder:
    """Takes what comes in during a session."""

    run: Run
    session: Session
    file: RawIOBase

    def keep(self, result: GroupResult) -> None:
        """Append an answer.

        Raises:
            RunError: it was made by another model than the run's, as the server has changed its bundle meanwhile; or
                it cannot be written.
        """
        made_by = result.provenance.bundle_identity
        if made_by != self.run.settings.bundle_identity:
            raise RunError(
                f"group {result.group_id!r} was answered by bundle {made_by[:12]}, and the run is of "
                f"{self.run.settings.bundle_identity[:12]}: the server changed its model; run the analysis anew"
            )
        before = self.file.tell()
        try:
            with writing(self.run.folder):
                records.append(self.file, result.message)
        finally:  # Ctrl-C may come when the answer is kept and not yet counted
            self.session.groups += self.file.tell() > before

    def fail(self, group_id: str, reason: str) -> None:
        """Note why a group has no answer; resuming asks it again."""
        self.run.failures[group_id] = reason


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one line what keeps a run's folder from being written.

    Raises:
        RunError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        what = f"cannot write {error.filename or folder}: {error.strerror or error}"
        if error.errno in _NO_SPACE:
            raise RunError(f"{what}. Make room and resume the run: the answers that came are kept") from error
        raise RunError(f"{what}: give a folder that can be written") from error


def of_shard(examples: Sequence[Group], shard: str) -> list[Group]:
    """The groups of one shard, `2/4`: every n-th cluster, in the order of their first groups; all without a shard."""
    if not shard:
        return list(examples)
    number, parts = Shard.parse(shard)
    clusters: dict[str, int] = {}
    places = [clusters.setdefault(group.cluster or group.id, len(clusters)) for group in examples]
    return [group for group, place in zip(examples, places, strict=True) if place % parts == number - 1]


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
