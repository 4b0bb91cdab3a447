"""Groups of one's own: a run's examples are a task again, and what is wrong in a file is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import neuroglot as ng
from neuroglot.errors import DataError
from neuroglot.runs.run import to_lines
from neuroglot.tasks.task import Task


def groups_of(task: Task) -> list[ng.Group]:
    return list(task.groups(task.languages, None))


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("made", [ng.tasks.capitals, ng.tasks.capitals_inference, ng.tasks.capitals_edit])
def test_the_examples_of_a_run_are_a_task_with_the_same_groups(made: Any, shots: int, tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    task = made(shots=shots)
    examples = list(task.groups(task.languages, 50))
    path.write_text(to_lines(examples), encoding="utf-8")
    task = ng.tasks.jsonl(path)
    assert task.languages == examples[0].languages
    assert groups_of(task) == examples
    assert to_lines(groups_of(task)) == path.read_text(encoding="utf-8")
    assert next(task.groups(("de", "zh"), 1)).languages == ("de", "zh")


def test_prompts_of_token_ids_are_kept_and_take_no_examples(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    group = ng.Group({"en": [3, 1], "de": "Hallo"}, {"en": "a", "de": "b"}, "g")
    groups = [group, replace(group, id="h")]
    path.write_text(to_lines(groups), encoding="utf-8")
    assert groups_of(ng.tasks.jsonl(path)) == groups
    with pytest.raises(
        ng.AnalysisError, match=r"group '[gh]' has prompts of token ids, and in-context examples are text"
    ):
        groups_of(ng.tasks.jsonl(path, shots=1))


def test_a_group_may_be_as_short_as_its_prompts(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [
        {"prompts": {"cs": "Ahoj", "nl": "Hallo"}},
        {"id": "b", "prompts": {"cs": "A", "nl": "B", "en": "C"}, "answers": {"cs": "a", "nl": ["b", "c"], "en": "c"}},
    ]
    path.write_text("".join(json.dumps(line) + "\n\n" for line in lines), encoding="utf-8")
    with pytest.raises(DataError, match=r"mine.jsonl:1: group '1' has no prompt in en"):
        ng.tasks.jsonl(path)
    task = ng.tasks.jsonl(path, languages=("cs", "nl"))
    assert (task.title, task.languages) == ("mine", ("cs", "nl"))
    first, second = groups_of(task)
    assert (first.id, first.answers) == ("1", {})
    assert second == ng.Group({"cs": "A", "nl": "B"}, {"cs": "a", "nl": ["b", "c"]}, "b")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompts": {"en": "a", "de": "b"}, "answer": {}}, "has an unknown field 'answer'"),
        ({"id": "a"}, "has no prompts: give a file with a group a line"),
        ({"id": 3, "prompts": {"en": "a", "de": "b"}}, "id is 3: give a text"),
        ({"prompts": "a"}, "prompts is 'a': give a text or a list of token ids by language"),
        (
            {"prompts": {"en": "a", "de": ["b"]}},
            r"prompts is \{'en': 'a', 'de': \['b'\]\}: give a text or a list of token ids by language",
        ),
        ({"prompts": {"en": "a", "de": "b"}, "answers": {"en": [1]}}, "give a list of texts by language"),
        ({"prompts": {"en": "a", "de": ""}}, "the prompt of 'de' is empty"),
        ({"prompts": {"en": "a", "de": "b"}, "answers": {"en": "", "de": "x"}}, "an answer of 'en' is empty"),
        ({"prompts": {"en": "a", "de": "b"}, "answers": {"en": "x"}}, "has no answer in de"),
        (
            {"prompts": {"en": "a", "de": "b"}, "separators": {"en": "-"}},
            "the separator of 'en' must be ' ' or '', not '-'",
        ),
        ({"id": "fine", "prompts": {"en": "a", "de": "b"}}, "id 'fine' is in line 1 already"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_left_out_if_asked(record: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [{"id": "fine", "prompts": {"en": "a", "de": "b"}}, record]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(DataError, match=rf"mine.jsonl:2: .*{said}"):
        ng.tasks.jsonl(path)
    task = ng.tasks.jsonl(path, skip_bad_data=True)
    assert [group.id for group in groups_of(task)] == ["fine"]
    assert len(task.problems) == 1


def test_a_file_without_a_group_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("nonsense\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"they have 1 problem: 1 broken line\n .*mine.jsonl:1: is not JSON"):
        ng.tasks.jsonl(path, skip_bad_data=True)
    path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"the data have no example$"):
        ng.tasks.jsonl(path)
