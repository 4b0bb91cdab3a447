from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from neuroglot.errors import RunError
from neuroglot.request.groups import Group
from neuroglot.results.results import GroupResult
from neuroglot.runs.run import EXAMPLES, GROUPS, RUN, Run, data_hash, to_lines
from neuroglot.runs.settings import Settings
from neuroglot.v1 import result_pb2

IDENTITY = "ab" * 32

GROUPS_ASKED = [
    Group(
        {"en": "The capital of France is", "zh": "法国的首都是"}, {"en": ["Paris"], "zh": "巴黎"}, "FR/0", cluster="FR"
    ),
    # A line separator of Unicode in a prompt is no end of a line in the file.
    Group({"en": "a\u2028b\x85c", "zh": "丁"}, {"en": "d"}, "XX/0", {"en": ""}),
]


def settings_of(groups: list[Group]) -> Settings:
    return Settings(
        task="capitals",
        task_title="Capitals",
        task_kind="fact probing",
        task_data="Two groups.",
        data_sha256=data_hash(to_lines(groups)),
        groups=len(groups),
        languages=("en", "zh"),
        model="tiny",
        bundle_identity=IDENTITY,
        family="bloom",
        source="embedded:bloom",
        source_revision="",
        dtype="float32",
        variants=("w/o all-shared",),
        analyses=("types_by_layer",),
        parameters={"shots": 2},
    )


def result(group_id: str, identity: str = IDENTITY) -> GroupResult:
    return GroupResult(
        result_pb2.GroupResult(group_id=group_id, provenance=result_pb2.Provenance(bundle_identity=identity))
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", settings_of(GROUPS_ASKED), GROUPS_ASKED)


def test_a_run_is_read_as_it_was_written(run: Run) -> None:
    with run.session("neuroglot analyze capitals", {"neuroglot": "0.1.0"}) as recorder:
        recorder.keep(result("FR/0"))
        recorder.fail("XX/0", "the prompt is too long")
    again = Run.open(run.folder)
    assert again.settings == run.settings
    assert again.sessions == run.sessions
    assert again.sessions[0].groups == 1
    assert again.sessions[0].finished
    assert again.failures == {"XX/0": "the prompt is too long"}
    assert again.examples() == GROUPS_ASKED
    assert list(again.results()) == [result("FR/0")]
    assert again.done() == {"FR/0"}


def test_an_interruption_keeps_what_was_answered_and_says_when_it_came(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt), run.session("first", {}) as recorder:
        recorder.keep(result("FR/0"))
        raise KeyboardInterrupt
    again = Run.open(run.folder)
    assert again.done() == {"FR/0"}
    assert again.sessions[0].finished
    with again.session("second", {}) as recorder:
        recorder.keep(result("XX/0"))
    assert [session.command for session in Run.open(run.folder).sessions] == ["first", "second"]
    assert Run.open(run.folder).done() == {"FR/0", "XX/0"}


def test_a_kill_leaves_a_run_that_can_go_on(run: Run) -> None:
    with run.session("first", {}) as recorder:
        recorder.keep(result("FR/0"))
        killed = (run.folder / RUN).read_bytes()
    (run.folder / RUN).write_bytes(killed)  # the end of the session was never written
    with (run.folder / GROUPS).open("ab") as file:
        file.write(b"\x50half a record")
    again = Run.open(run.folder)
    assert again.sessions[0].seconds == 0
    with again.session("second", {}) as recorder:
        recorder.keep(result("XX/0"))
    assert again.done() == {"FR/0", "XX/0"}


def test_a_folder_that_holds_a_run_is_refused_with_what_it_holds(run: Run) -> None:
    with pytest.raises(RunError, match=r"holds a run already \(capitals with tiny, 0 of 2 groups\)"):
        Run.create(run.folder, run.settings, GROUPS_ASKED)


def test_a_file_and_orphaned_answers_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "file", run.settings, GROUPS_ASKED)
    (run.folder / GROUPS).touch()
    (run.folder / RUN).unlink()
    with pytest.raises(RunError, match=r"run\.json is gone"):
        Run.create(run.folder, run.settings, GROUPS_ASKED)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed is 1 and not 0"),
        ({"draws": 5, "languages": ("en", "de")}, "draws is 5 and not 3; languages is en, de and not en, zh"),
        ({"parameters": {"shots": 4}}, "parameters is shots=4 and not shots=2"),
        ({"shard": "1/2"}, "shard is 1/2 and not nothing"),
        ({"subsets": (("en", "zh"), ("en",))}, "subsets is en, zh, en and not nothing"),
        ({"bundle_identity": "cd" * 32}, "bundle_identity is cdcdcdcdcdcd and not abababababab"),
    ],
)
def test_other_settings_cannot_resume_and_the_error_names_them(run: Run, change: dict[str, object], said: str) -> None:
    with pytest.raises(RunError, match=said):
        run.require(replace(run.settings, **change))


def test_the_same_bundle_under_another_name_can_resume(run: Run) -> None:
    run.require(replace(run.settings, model="another"))


def test_an_answer_of_another_bundle_is_refused(run: Run) -> None:
    with (
        pytest.raises(RunError, match="the server changed its model"),
        run.session("analyze", {}) as recorder,
    ):
        recorder.keep(result("FR/0", identity="cd" * 32))
    assert run.done() == set()


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run: it has no run\.json"):
        Run.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="holds no run"):
        Run.open(tmp_path / "file")


def test_another_format_is_refused(run: Run) -> None:
    content = json.loads((run.folder / RUN).read_text(encoding="utf-8"))
    (run.folder / RUN).write_text(json.dumps(content | {"version": 3}), encoding="utf-8")
    with pytest.raises(RunError, match=r"is neuroglot\.run 3, and this neuroglot reads neuroglot\.run 2: use"):
        Run.open(run.folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "neuroglot.run", "version": 2}'])
def test_a_damaged_description_is_refused(run: Run, text: str) -> None:
    (run.folder / RUN).write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        Run.open(run.folder)


def test_changed_data_are_refused(run: Run) -> None:
    path = run.folder / EXAMPLES
    path.write_text(path.read_text(encoding="utf-8").replace("Paris", "Rome"), encoding="utf-8")
    with pytest.raises(RunError, match=r"examples\.jsonl was changed"):
        run.examples()
    path.unlink()
    with pytest.raises(RunError, match=r"examples\.jsonl is missing"):
        run.examples()
