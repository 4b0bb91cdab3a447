"""MzsRE: both forms of its files, both directions, and what is wrong in broken files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import neuroglot as ng
from neuroglot.errors import AnalysisError, DataError

Asked = Mapping[str, Any]
COLON = "\N{FULLWIDTH COLON}"


def edit(language: str, number: int) -> Asked:
    """What the release has of an edit in a language."""
    return {
        "subject": f"S{number}",
        "src": f"Who made S{number}? ({language})",
        "rephrase": f"S{number}, made by? ({language})",
        "alt": f"A{number}-{language}",
        "loc": "nq question: what is it",
        "loc_ans": "that",
        "portability": {"New Question": "Whose is it?", "New Answer": "Mine"},
    }


def pair(folder: Path, a: str, b: str, edits: Sequence[Mapping[str, Any]] | None = None) -> Path:
    """The file of a pair of languages, four edits."""
    path = folder / f"mzsre_test_duplicate_{a}{b}.json"
    edits = edits or [{a: edit(a, number), b: edit(b, number)} for number in range(4)]
    path.write_text(json.dumps(edits, ensure_ascii=False, indent=4), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for other in ("zh", "de", "cz", "du"):
        pair(tmp_path, "en", other)
    pair(tmp_path, "zh", "en")
    pair(tmp_path, "cz", "du")
    return tmp_path


def test_an_edit_is_told_in_english_and_asked_in_every_language(folder: Path) -> None:
    task = ng.tasks.mzsre(folder)
    assert task.languages == ("en", "de", "zh")  # of the paper's languages, those that are there
    assert task.parameters == {"direction": "en-all", "template_language": "en", "templates": "0"}
    groups = list(task.groups(task.languages, None))
    assert [group.id for group in groups] == ["0/0", "1/0", "2/0", "3/0"]
    assert groups[1].prompts == {
        language: f"Question: Who made S1? (en) Answer: A1-en Question: Who made S1? ({language}) Answer:"
        for language in ("en", "de", "zh")
    }
    assert groups[1].answers == {"en": ("A1-en",), "de": ("A1-de",), "zh": ("A1-zh",)}
    assert groups[1].separators == dict.fromkeys(("en", "de", "zh"), " ")
    assert groups[1].cluster == "1"


def test_an_edit_is_told_in_every_language_and_asked_in_english(folder: Path) -> None:
    task = ng.tasks.mzsre(folder, direction="all-en", languages=("zh", "cs", "nl"))
    assert task.languages == ("zh", "cs", "nl")  # Czech and Dutch by their own codes
    (group,) = islice(task.groups(task.languages, None), 1)
    assert group.prompts["cs"] == "Question: Who made S0? (cz) Answer: A0-cz Question: Who made S0? (en) Answer:"
    assert group.prompts["nl"].startswith("Question: Who made S0? (du) Answer: A0-du ")
    assert group.answers == dict.fromkeys(("zh", "cs", "nl"), ("A0-en",))


def test_another_language_can_be_fixed_if_its_files_are_there(folder: Path) -> None:
    task = ng.tasks.mzsre(folder, direction="cs-all", languages=("en", "nl"))
    (group,) = task.groups(task.languages, 1)
    assert group.prompts["nl"] == "Question: Who made S0? (cz) Answer: A0-cz Question: Who made S0? (du) Answer:"
    with pytest.raises(DataError, match="has no fr, the fixed language: its languages are cs, de, en, nl, zh"):
        ng.tasks.mzsre(folder, direction="fr-all")


def test_the_context_has_three_forms(folder: Path) -> None:
    task = ng.tasks.mzsre(folder, templates=(0, 1, 2))
    prompts = {group.id: group.prompts["de"] for group in task.groups(("en", "de"), 3)}
    assert prompts == {
        "0/0": "Question: Who made S0? (en) Answer: A0-en Question: Who made S0? (de) Answer:",
        "0/1": "Who made S0? (en) A0-en Question: Who made S0? (de) Answer:",
        "0/2": "Question: Who made S0? (en) Answer: A0-en Question: S0, made by? (de) Answer:",
    }


def test_the_words_around_it_may_be_each_languages_own(folder: Path) -> None:
    told = ng.tasks.mzsre(folder, template_language="own", languages=("de", "zh"))
    (group,) = told.groups(told.languages, 1)
    assert group.prompts["zh"] == f"Question: Who made S0? (en) Answer: A0-en 问题{COLON}Who made S0? (zh)回答{COLON}"
    assert group.separators == {"de": " ", "zh": ""}
    asked = ng.tasks.mzsre(folder, template_language="own", direction="all-en")
    prompt = next(asked.groups(("de", "zh"), 1)).prompts["zh"]
    assert prompt == f"问题{COLON}Who made S0? (zh)回答{COLON}A0-zh Question: Who made S0? (en) Answer:"
    pair(folder, "en", "hu")
    with pytest.raises(AnalysisError, match="'mzsre' has no wording in hu"):
        ng.tasks.mzsre(folder, template_language="own", languages=("de", "hu"))


@pytest.mark.parametrize("shots", [2, 3])
def test_solved_edits_stand_in_front(shots: int, folder: Path) -> None:
    task = ng.tasks.mzsre(folder, shots=shots)
    assert task.parameters["shots"] == shots
    for group in task.groups(task.languages, None):
        *examples, asked = group.prompts["zh"].split("\n")
        assert len(examples) == shots
        numbers = [example.rsplit(" ", 1)[1].removeprefix("A").removesuffix("-zh") for example in examples]
        assert group.cluster not in numbers
        assert len(set(numbers)) == shots
        assert asked.endswith(f"Question: Who made S{group.cluster}? (zh) Answer:")


def test_one_file_and_json_lines_give_the_same_edits(folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "edits.jsonl"
    lines.write_text(
        "".join(
            json.dumps({"id": number, "langs": {language: edit(language, number) for language in ("en", "zh", "cz")}})
            + "\n"
            for number in range(4)
        ),
        encoding="utf-8",
    )
    expected = list(ng.tasks.mzsre(folder).groups(("en", "zh"), None))
    assert list(ng.tasks.mzsre(lines).groups(("en", "zh"), None)) == expected
    alone = ng.tasks.mzsre(folder / "mzsre_test_duplicate_enzh.json")
    assert alone.languages == ("en", "zh")
    assert list(alone.groups(("en", "zh"), None)) == expected
    assert ng.tasks.mzsre(lines, languages=("en", "cs")).languages == ("en", "cs")


def test_everything_that_is_wrong_is_told_and_left_out_if_asked(tmp_path: Path) -> None:
    good = [{"en": edit("en", number), "de": edit("de", number)} for number in range(8)]
    german = [dict(one) for one in good]
    german[0] = {"en": good[0]["en"]}
    german[1] = {**good[1], "de": {**good[1]["de"], "alt": " "}}
    german[2] = {**good[2], "de": ["no", "object"]}
    german[3] = {**good[3], "en": {**good[3]["en"], "alt": "another"}}
    german[4] = {**good[4], "de": {**good[4]["de"], "src": 3}}
    german[5] = "no object either"
    chinese = [{"en": one["en"], "zh": edit("zh", number)} for number, one in enumerate(good)][:7]
    chinese[6] = {"en": good[7]["en"], "zh": edit("zh", 7)}
    one, other = pair(tmp_path, "en", "de", german), pair(tmp_path, "en", "zh", chinese)
    with pytest.raises(DataError) as raised:
        ng.tasks.mzsre(tmp_path)
    told = [line.strip() for line in str(raised.value).splitlines()]
    lines = [number for number, text in enumerate(one.read_text(encoding="utf-8").split("\n"), 1) if text == "    {"]
    assert told[1:6] == [
        f"{one}:{lines[0]}: edit 0 has no de",
        f"{one}:{lines[1]}: alt of de is empty",
        f'{one}:{lines[2]}: de is not {{"src": ..., "rephrase": ..., "alt": ...}}',
        f"{one}:{lines[4]}: src of de should be text",
        f"{one}:{lines[5] - 1}: is not a JSON object but 'no object either'",
    ]
    assert any("edit 3 is 'Who made S3? (en) A3-en' here and 'Who made S3? (en) another' in" in line for line in told)
    assert any(line.startswith(f"{other}:") and "edit 6 is 'Who made S7?" in line for line in told)
    assert any("edit 7 has no zh" in line for line in told)
    with pytest.raises(DataError, match="the data have no example: they have"):
        ng.tasks.mzsre(tmp_path, skip_bad_data=True)
    task = ng.tasks.mzsre(tmp_path, languages=("en", "de"), skip_bad_data=True)
    assert [group.id for group in task.groups(task.languages, None)] == ["3/0", "6/0", "7/0"]
    assert len(task.problems) == 5


def test_the_same_edit_twice_is_a_duplicate_and_the_same_question_is_one_cluster(tmp_path: Path) -> None:
    again = {"en": {**edit("en", 1), "alt": "another"}, "de": edit("de", 1)}
    edits = [{"en": edit("en", n), "de": edit("de", n)} for n in (0, 1)]
    pair(tmp_path, "en", "de", [*edits, again, edits[0]])
    with pytest.raises(DataError, match="edit 3 is the same as edit 0"):
        ng.tasks.mzsre(tmp_path)
    task = ng.tasks.mzsre(tmp_path, skip_bad_data=True)
    assert [group.cluster for group in task.groups(task.languages, None)] == ["0", "1", "1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "is not a JSON array: it begins with '{}'"),
        ("", "is not a JSON array: it begins with ''"),
        ('[\n{"en": {},\n', ":2: is not JSON: .*; the rest of the file is not read"),
        ("[\n1\n2]", ":2: is not followed by a comma"),
    ],
)
def test_a_file_that_is_torn_or_another_is_told(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mzsre_test_duplicate_ende.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        ng.tasks.mzsre(tmp_path)


def test_broken_json_lines_are_told(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_text('{"id": 1}\n[]\n{"id"\n', encoding="utf-8")
    with pytest.raises(DataError) as raised:
        ng.tasks.mzsre(path)
    assert [line.split(":")[1] for line in str(raised.value).splitlines()[1:]] == ["1", "2", "3"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no MzsRE files: give a folder with mzsre_test_"):
        ng.tasks.mzsre(tmp_path)
