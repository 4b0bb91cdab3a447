"""The folder of a run: its settings, its groups, and their results in the order of arrival.

    out/
    ├── run.json          the run's `Settings`, and a `Session` for each start
    ├── examples.jsonl    the parallel groups of all shards, one per line: id, cluster, prompts, answers, ...
    ├── problems.txt      problems in the data, whose examples are left out, one per line; absent without problems
    ├── groups.binpb      the results: length-prefixed (varint) neuroglot.v1.GroupResult messages, in any order
    └── tables/, figures/, report.html    the output of `neuroglot.analyses`

Results are appended and flushed one by one, so an interrupted run keeps all results received so far. A record that was
truncated by a kill is skipped by readers, and cut off before the next one is appended.
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
    """One execution of a run, from its start to its end or interruption.

    Attributes:
        command: the command line, or the Python call.
        started: start time, UTC, ISO 8601.
        versions: versions of the packages used, by name.
        finished: end time, UTC, ISO 8601; empty if the process was killed.
        groups: number of results that the session added.
    """

    command: str
    started: str
    versions: Mapping[str, str]
    finished: str = ""
    groups: int = 0

    @property
    def seconds(self) -> float:
        """Duration in seconds; 0 if the process was killed."""
        if not self.finished:
            return 0.0
        return (datetime.fromisoformat(self.finished) - datetime.fromisoformat(self.started)).total_seconds()


class Run:
    """An open run folder.

    Attributes:
        folder: path of the folder.
        settings: settings of the run, which determine its results.
        sessions: sessions of the run, oldest first.
        failures: error messages of the groups that failed in the last session, by group id.
    """

    def __init__(self, folder: Path, settings: Settings, sessions: list[Session], failures: dict[str, str]) -> None:
        """Use `Run.create` or `Run.open` instead."""
        self.folder = folder
        self.settings = settings
        self.sessions = sessions
        self.failures = failures

    @classmethod
    def create(cls, folder: Path, settings: Settings, examples: Sequence[Group], problems: Sequence[str] = ()) -> Run:
        """Create a run in a folder that holds no run.

        Args:
            folder: path of the folder; created if it does not exist.
            settings: settings of the run.
            examples: the groups of all shards.
            problems: problems in the data, one line each.

        Raises:
            RunError: the folder holds a run or the results of one, is a file, or cannot be written.
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
            RunError: the folder holds no run, a run of another format version, or a damaged run.
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
        """Check that the run can be resumed with these settings.

        Raises:
            RunError: the settings differ; the message lists the differences.
        """
        if differences := self.settings.differences(settings):
            raise RunError(
                f"{self.folder} holds another run and cannot be resumed: {'; '.join(differences)}. Ask for the same "
                "again, or give another folder"
            )

    def examples(self) -> list[Group]:
        """Read the parallel groups of all shards.

        Raises:
            RunError: their file is missing, or was changed.
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
        """Read the groups of this run's shard; errors as in `examples`."""
        return of_shard(self.examples(), self.settings.shard)

    def problems(self) -> list[str]:
        """Read the problems in the data, whose examples are left out, one line each."""
        path = self.folder / PROBLEMS
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def results(self) -> Iterator[GroupResult]:
        """Iterate over the results received so far, in the order of arrival.

        Raises:
            RunError: a result is damaged.
        """
        return map(GroupResult, records.read(self.folder / GROUPS, result_pb2.GroupResult))

    def done(self) -> set[str]:
        """Return the ids of the groups that have a result."""
        return {result.group_id for result in self.results()}

    @contextmanager
    def session(self, command: str, versions: Mapping[str, str]) -> Iterator[Recorder]:
        """Open a session that adds results. However the block ends, results are kept and `run.json` gets the end time.

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
    """Writes the results and failures of a session to the run's folder."""

    run: Run
    session: Session
    file: RawIOBase

    def keep(self, result: GroupResult) -> None:
        """Append a result.

        Raises:
            RunError: the result was made by another bundle than the run's (the server has changed its model
                meanwhile), or cannot be written.
        """
        made_by = result.provenance.bundle_identity
        if made_by != self.run.settings.bundle_identity:
            raise RunError(
                f"group {result.group_id!r} was answered by bundle {made_by[:12]}, and the run is of "
                f"{self.run.settings.bundle_identity[:12]}: the server changed its model; run the analysis again"
            )
        before = self.file.tell()
        try:
            with writing(self.run.folder):
                records.append(self.file, result.message)
        finally:  # Ctrl-C may come when the answer is kept and not yet counted
            self.session.groups += self.file.tell() > before

    def fail(self, group_id: str, reason: str) -> None:
        """Record why a group failed; resuming the run retries it."""
        self.run.failures[group_id] = reason


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Convert errors of writing to a run's folder.

    Raises:
        RunError: an OSError was raised in the block; the message is one line.
    """
    try:
        yield
    except OSError as error:
        what = f"cannot write {error.filename or folder}: {error.strerror or error}"
        if error.errno in _NO_SPACE:
            raise RunError(f"{what}. Make room and resume the run: the answers that came are kept") from error
        raise RunError(f"{what}: give a folder that can be written") from error


def of_shard(examples: Sequence[Group], shard: str) -> list[Group]:
    """Select the groups of a shard, `2/4`: every n-th cluster by order of first occurrence; all groups without one."""
    if not shard:
        return list(examples)
    number, parts = Shard.parse(shard)
    clusters: dict[str, int] = {}
    indices = [clusters.setdefault(group.cluster or group.id, len(clusters)) for group in examples]
    return [group for group, index in zip(examples, indices, strict=True) if index % parts == number - 1]


def to_lines(examples: Iterable[Group]) -> str:
    """Encode groups as JSON lines with a fixed key order: the content of `examples.jsonl`."""
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
    """Return the hexadecimal SHA-256 of the lines, which identifies the data of a run."""
    return hashlib.sha256(lines.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
