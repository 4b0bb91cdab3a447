"""mParaRel: patterns that end in the answer, facts by line id, and what is wrong in broken files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import neuroglot as ng
from neuroglot.errors import AnalysisError, DataError

PATTERNS: Mapping[str, Sequence[str]] = {
    "en": ("[Y] is the capital of [X]", "the capital of [X] is [Y]", "*[X]'s capital, [Y] .", "[X] has [Y] as capital"),
    "fr": ("[X] a pour capitale [Y].", "la capitale de [X], c'est l'[Y]", "[X], capitale [Y]", "capitale de [X] : [Y]"),
    "zh-hans": (
        "[X] 的资本是 [Y]",
        "*[X] 的首都是 [Y]",
        "[X]的首都是[Y]。",
        "[Y]是[X]的首都",
        "[X]\N{FULLWIDTH COMMA}首都[Y]",
    ),
}
"""A star stands before those that a person has checked."""

ENTITIES = {0: ("Q1", "Q2"), 3: ("Q142", "Q90"), 7: ("Q1", "Q3")}

FACTS: Mapping[str, Mapping[int, tuple[str, str]]] = {
    "en": {3: ("France", "Paris"), 0: ("Sicily", "Naples"), 7: ("Sicily", "Palermo")},
    "fr": {0: ("Sicile", "Naples"), 3: ("France", "Paris"), 7: ("Sicile", "Palerme")},
    "zh-hans": {0: ("西西里", "那不勒斯"), 3: ("法国", "巴黎"), 7: ("西西里", "巴勒莫")},
}


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for language, patterns in PATTERNS.items():
        write(
            tmp_path / "patterns" / language / "P36.jsonl",
            [{"pattern": one.lstrip("*"), "checked-by-human": one.startswith("*")} for one in patterns],
        )
    keys = ("sub_uri", "obj_uri", "sub_label", "obj_label", "lineid")
    for language, facts in FACTS.items():
        records = [dict(zip(keys, (*ENTITIES[line], *names, line), strict=True)) for line, names in facts.items()]
        write(tmp_path / "tuples" / language / "P36.jsonl", records)
    return tmp_path


def test_prompts_are_the_patterns_up_to_the_answer_the_checked_ones_first(folder: Path) -> None:
    task = ng.tasks.mpararel(folder)
    assert task.languages == ("en", "fr", "zh")
    assert task.parameters == {"relations": "P36", "templates": "0, 1"}
    assert not task.problems
    groups = {group.id: group for group in task.groups(task.languages, None)}
    assert list(groups) == ["P36/3/0", "P36/3/1", "P36/0/0", "P36/0/1", "P36/7/0", "P36/7/1"]
    assert groups["P36/3/0"].prompts == {
        "en": "France's capital,",
        "fr": "France a pour capitale",
        "zh": "法国的首都是",
    }
    assert groups["P36/3/1"].prompts == {
        "en": "the capital of France is",
        "fr": "la capitale de France, c'est l'",
        "zh": "法国的资本是",
    }
    assert groups["P36/3/0"].separators == {"en": " ", "fr": " ", "zh": ""}
    assert groups["P36/3/1"].separators == {"en": " ", "fr": "", "zh": ""}  # l'[Y]: nothing stands between
    assert groups["P36/3/0"].answers == {"en": ("Paris",), "fr": ("Paris",), "zh": ("巴黎",)}


def test_a_subject_with_two_objects_is_one_cluster_and_accepts_both(folder: Path) -> None:
    first, second = (
        group for group in ng.tasks.mpararel(folder, templates=(0,)).groups(("en", "zh"), None) if "Sic" in str(group)
    )
    assert first.answers == {"en": ("Naples", "Palermo"), "zh": ("那不勒斯", "巴勒莫")}
    assert second.answers["en"] == ("Palermo", "Naples")
    assert first.cluster == second.cluster == "P36/Q1"
    assert first.distractors == second.distractors == {"en": "Paris", "zh": "巴黎"}  # no object of the same subject


def test_languages_relations_and_wordings_can_be_chosen(folder: Path) -> None:
    for kind in ("patterns", "tuples"):
        for language in ("fr", "en"):
            text = (folder / kind / language / "P36.jsonl").read_text(encoding="utf-8")
            (folder / kind / language / "P17.jsonl").write_text(text, encoding="utf-8")
    task = ng.tasks.mpararel(folder, relations=("P17", "P36"), templates=(1,))
    assert task.languages == ("en", "fr")  # Chinese has no P17
    assert [group.id for group in task.groups(task.languages, None)][::3] == ["P17/3/1", "P36/3/1"]
    with pytest.raises(DataError, match="for P17, P36 has no zh: its languages are en, fr"):
        ng.tasks.mpararel(folder, relations=("P17", "P36"), languages=("en", "zh"))
    with pytest.raises(AnalysisError, match="'mpararel' has no template 2: it has 0, 1"):
        ng.tasks.mpararel(folder, templates=(2,))
    # Of French and Chinese alone there are three wordings, which is the default; more can be had by name.
    assert ng.tasks.mpararel(folder, languages=("fr", "zh")).parameters["templates"] == "0, 1, 2"


def test_everything_that_is_wrong_is_told_and_left_out_if_asked(folder: Path) -> None:
    tuples = folder / "tuples"
    records = [json.loads(line) for line in (tuples / "fr" / "P36.jsonl").read_text(encoding="utf-8").splitlines()]
    write(
        tuples / "fr" / "P36.jsonl",
        [records[0] | {"obj_label": ""}, records[1], records[2] | {"obj_uri": "Q9"}, records[1], {"sub_label": "x"}],
    )
    with (tuples / "en" / "P36.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"sub_label": "torn\n')
        file.write(json.dumps(records[1] | {"lineid": 12, "sub_label": "Gallia"}) + "\n")
    for language in ("fr", "zh-hans"):
        with (tuples / language / "P36.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(records[1] | {"lineid": 12, "sub_label": "Gallia"}) + "\n")
    with (tuples / "zh-hans" / "P36.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(records[1] | {"lineid": 13}) + "\n")
    write(folder / "patterns" / "fr" / "P36.jsonl", [{"pattern": "[X] est [Y]"}, {"pattern": "[X] est"}])
    with pytest.raises(DataError) as raised:
        ng.tasks.mpararel(folder)
    for told in (
        f"{folder / 'patterns/fr/P36.jsonl'}:2: has no pattern with one [X] and one [Y], but '[X] est'",
        f"{tuples / 'fr/P36.jsonl'}:1: obj_label is empty",
        f"{tuples / 'fr/P36.jsonl'}:3: lineid 7 is of ('Q1', 'Q9') here and of ('Q1', 'Q3') in en",
        f"{tuples / 'fr/P36.jsonl'}:4: lineid 3 is in line 2 already",
        f"{tuples / 'fr/P36.jsonl'}:5: has no lineid",
        f"{tuples / 'en/P36.jsonl'}:4: is not JSON",
        f"{tuples / 'en/P36.jsonl'}:5: lineid 12 is the same fact as lineid 3",
        f"{tuples / 'zh-hans/P36.jsonl'}:5: lineid 13 has no en, fr",
    ):
        assert told in str(raised.value)
    task = ng.tasks.mpararel(folder, skip_bad_data=True)
    assert [group.id for group in task.groups(task.languages, None)] == ["P36/3/0"]
    assert len(task.problems) == 8


def test_a_language_without_a_pattern_for_decoders_is_told(folder: Path) -> None:
    write(folder / "patterns" / "fr" / "P36.jsonl", [{"pattern": "[Y] est la capitale de [X]"}])
    with pytest.raises(DataError, match=r"fr/P36.jsonl has no pattern that ends in \[Y\]: leave fr out"):
        ng.tasks.mpararel(folder)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="for P36 has 0 languages, and parallel prompts need two or more"):
        ng.tasks.mpararel(tmp_path)
