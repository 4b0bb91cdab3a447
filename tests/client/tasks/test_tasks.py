"""Tasks by name: their options, their in-context examples, and what is said of bad data; and the page about them."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import pytest

import neuroglot as ng
from neuroglot.errors import AnalysisError, DataError
from neuroglot.request.groups import Group
from neuroglot.runs.run import data_hash, to_lines
from neuroglot.tasks.problems import Collector
from neuroglot.tasks.registry import TASKS, find_task
from neuroglot.tasks.shots import in_context, with_shots
from neuroglot.tasks.task import TaskOptions

PAGE = Path(__file__).parents[3] / "docs" / "tasks.md"


def facts(languages: Sequence[str] = ("en", "de"), count: int = 8) -> Iterator[Group]:
    """Two wordings of each of `count` facts."""
    for number in range(count):
        for wording in ("is", "equals"):
            yield Group(
                {language: f"{language} {number} {wording}" for language in languages},
                {language: [f"{language}{number}", "alias"] for language in languages},
                f"{number}/{wording}",
                {language: "" if language == "de" else " " for language in languages},
                cluster=str(number),
            )


def labelled(count: int = 9) -> list[Group]:
    """Groups with a label each, the same label three times in a row."""
    labels = ("yes", "no", "maybe")
    choices = {"en": labels, "de": labels}
    return [
        Group({"en": f"{n}?", "de": f"{n}??"}, dict.fromkeys(choices, labels[n // 3]), str(n), choices=choices)
        for n in range(count)
    ]


def test_every_task_without_files_is_found_and_its_groups_are_whole() -> None:
    for name, kind in TASKS.items():
        assert (kind.name, kind.summary != "") == (name, True)
        if not kind.needs_data:
            task = find_task(name)
            assert (task.name, task.title, task.kind) == (name, kind.title, kind.kind)
            groups = list(task.groups(task.choose(()), 20))
            assert len(groups) == 20
            assert all(group.languages == task.languages == tuple(group.answers) for group in groups)
            assert all(group.cluster for group in groups)


def test_a_task_takes_the_options_that_it_has_and_refuses_the_others() -> None:
    assert find_task("capitals", TaskOptions(templates=(2, 0))).parameters == {"templates": "0, 2"}
    assert find_task("capitals", TaskOptions(seed=4, skip_bad_data=True, languages=("en",))).parameters == {}
    with pytest.raises(
        AnalysisError, match=r"'capitals' has no option direction \(all-en was given\): it has templates"
    ):
        find_task("capitals", TaskOptions(direction="all-en"))
    with pytest.raises(AnalysisError, match=r"'capitals' has no template 3, -1: it has 0, 1, 2"):
        find_task("capitals", TaskOptions(templates=(0, 3, -1)))
    with pytest.raises(AnalysisError, match="'mzsre' has no template language 'fr': it has en and own"):
        find_task("mzsre", TaskOptions(data=Path(), template_language="fr"))
    with pytest.raises(AnalysisError, match="there is no task 'xnly': the tasks are capitals, "):
        find_task("xnly")
    with pytest.raises(AnalysisError, match="shots must be an integer of 0 or more, not -1"):
        find_task("capitals", TaskOptions(shots=-1))


@pytest.mark.parametrize("name", [name for name, kind in TASKS.items() if kind.needs_data])
def test_files_that_are_not_given_or_not_there_are_asked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"task '{name}' needs files, .*--data PATH"):
        find_task(name)
    with pytest.raises(DataError, match="does not exist: give "):
        find_task(name, TaskOptions(data=tmp_path / "nowhere"))


@pytest.mark.parametrize("direction", ["", "de-all", "all-th"])
def test_directions_fix_a_language(direction: str) -> None:
    task = find_task("capitals-edit", TaskOptions(direction=direction))
    fixed = (set(direction.split("-")) - {"all"} or {"en"}).pop()
    assert task.parameters == {"direction": direction or "en-all"}
    assert fixed not in task.languages
    (group,) = task.groups(("es", "tr"), 1)
    told = {"es": "La ciudad capital de Georgia es Ciudad de México", "tr": "Gürcistan"}
    if direction == "all-th":
        assert group.answers == dict.fromkeys(("es", "tr"), ("เม็กซิโกซิตี",))
        assert group.distractors == dict.fromkeys(("es", "tr"), "ทบิลิซิ")
        assert "Georgia" in group.prompts["es"]
    else:
        assert group.answers["es"] == ("Ciudad de México",)
        assert group.distractors["es"] == "Tiflis"
        assert told["tr"] in group.prompts["tr"]


@pytest.mark.parametrize("direction", ["xx-all", "all-all", "en", "en-de", "-all", "all-"])
def test_a_direction_that_is_none_is_refused(direction: str) -> None:
    with pytest.raises(AnalysisError, match=f"no direction '{direction}': give LANGUAGE-all"):
        find_task("capitals-edit", TaskOptions(direction=direction))


def test_a_run_of_capitals_can_go_on_for_its_examples_did_not_change() -> None:
    def lines_hash(name: str) -> str:
        bare = [
            {key: value for key, value in json.loads(line).items() if key not in ("choices", "distractors")}
            for line in to_lines(find_task(name).groups(find_task(name).languages, None)).splitlines()
        ]
        return data_hash("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in bare))

    assert lines_hash("capitals") == "6ed48f7d9a9808b4b7ea6ddc5fff1ad3b68f96f3b75a5808a9dbc6916d454d28"
    assert lines_hash("capitals-inference") == "4fab61376a7f68fba1319faf34fa5133a86469fa543a8487ce0361e7bb66a373"
    assert not any(group.choices or group.distractors for group in find_task("capitals").groups(("en", "de"), None))


def test_inferences_have_their_labels_as_choices_and_another_label_as_distractor() -> None:
    groups = list(find_task("capitals-inference").groups(("en", "th"), 300))
    for group in groups:
        for language in group.languages:
            assert group.answers[language][0] in group.choices[language]
            assert group.distractors[language] in group.choices[language]
            assert group.distractors[language] not in group.answers[language]
    assert len({(group.answers["en"], group.distractors["en"]) for group in groups}) == 3


@pytest.mark.parametrize("shots", [1, 2, 5])
def test_examples_stand_in_front_solved_and_never_of_the_prompts_own_cluster(shots: int) -> None:
    plain = list(facts())
    by_prompt = {group.prompts["en"]: group for group in plain}
    shot = list(with_shots(plain, shots))
    assert [(group.id, group.answers, group.cluster) for group in shot] == [
        (group.id, group.answers, group.cluster) for group in plain
    ]
    for before, after in zip(plain, shot, strict=True):
        *examples, prompt = after.prompts["en"].split("\n")
        assert prompt == before.prompts["en"]
        drawn = [by_prompt[example.rsplit(" ", 1)[0]] for example in examples]
        assert len({group.cluster for group in drawn} - {before.cluster}) == shots
        for language, separator in (("en", " "), ("de", "")):  # the same items in all languages, the first answer
            solved = [group.prompts[language] + separator + group.answers[language][0] for group in drawn]
            assert after.prompts[language] == "\n".join([*solved, before.prompts[language]])


def test_examples_are_the_same_for_all_groups_but_those_that_they_are_made_of() -> None:
    prefixes = Counter(group.prompts["en"].rsplit("\n", 1)[0] for group in with_shots(list(facts(count=20)), 3))
    assert prefixes.most_common(1)[0][1] == 2 * (20 - 3)


def test_examples_depend_on_the_seed_and_on_no_limit_or_language() -> None:
    def first(seed: int, languages: Sequence[str], limit: int | None) -> str:
        return next(in_context(facts, 2, seed)(languages, limit)).prompts["en"]

    assert first(0, ("en", "de"), None) == first(0, ("en", "de"), 1) == first(0, ("de", "en", "fr"), None)
    assert first(0, ("en", "de"), None) != first(1, ("en", "de"), None)
    assert [group.id for group in in_context(facts, 2, 0)(("en", "de"), 3)] == ["0/is", "0/equals", "1/is"]


def test_labels_of_examples_take_turns() -> None:
    labels = [
        [example.split(" ")[1] for example in group.prompts["en"].split("\n")[:-1]]
        for group in with_shots(labelled(), 3)
    ]
    assert max(labels, key=labels.count) == ["yes", "no", "maybe"]
    assert all(len(set(of_group)) >= 2 for of_group in labels)


def test_too_few_examples_and_unanswered_groups_are_refused() -> None:
    with pytest.raises(AnalysisError, match=r"8 in-context examples .* need 9 clusters, and there are 8"):
        list(with_shots(list(facts(count=8)), 8))
    assert len(list(with_shots(list(facts(count=8)), 7))) == 16
    with pytest.raises(AnalysisError, match="group 'bare' has no answers"):
        list(with_shots([Group({"en": "a", "de": "b"}, id="bare")], 1))


def test_problems_are_counted_and_told_all_at_once_by_file_and_line() -> None:
    collector = Collector()
    assert not collector.problems(skip=False, left=1)
    collector.add("duplicate", Path("b.tsv"), 3, "is there already")
    collector.add("empty", Path("a.tsv"), 10, "the premise is empty")
    collector.add("empty", Path("a.tsv"), 9, "the hypothesis is empty")
    problems = collector.problems(skip=True, left=1)
    assert str(problems) == (
        "a.tsv:9: the hypothesis is empty\na.tsv:10: the premise is empty\nb.tsv:3: is there already"
    )
    assert problems.counts == {"empty": 2, "duplicate": 1}
    assert len(problems) == 3
    with pytest.raises(DataError, match=r"3 problems: 2 empty, 1 duplicate. Mend them, or .*--skip-bad-data") as raised:
        collector.problems(skip=False, left=1)
    assert all(str(problem) in str(raised.value) for problem in problems)
    with pytest.raises(DataError, match="the data have no example: they have 3 problems"):
        collector.problems(skip=True, left=0)


def test_very_many_problems_are_cut_short_and_said_to_be() -> None:
    collector = Collector()
    for line in range(1, 1001):
        collector.add("broken line", Path("a.tsv"), line, "is broken")
    with pytest.raises(DataError, match=r"1,000 problems: 1,000 broken line") as raised:
        collector.problems(skip=False, left=1)
    assert str(raised.value).endswith("a.tsv:100: is broken\n  and 900 more")


def test_what_the_package_offers_is_there_and_nothing_else() -> None:
    for name in ng.tasks.__all__:
        assert getattr(ng.tasks, name) is not None
    assert {name.replace("-", "_") for name in TASKS} <= set(ng.tasks.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'xnly'"):
        ng.tasks.xnly  # noqa: B018


def test_the_page_shows_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (lines,) = re.findall(r"```jsonl\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    shown, names = 0, dict[str, object]()
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        for statement in ast.parse(block).body:
            source = ast.get_source_segment(block, statement)
            said = block.splitlines()[statement.end_lineno - 1].partition("  # ")[2]
            if said and isinstance(statement, ast.Expr):
                assert repr(eval(source, names)) == said
                shown += 1
            else:
                exec(source, names)
    assert shown == 5


def test_the_page_names_every_task_with_its_options_and_no_other() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \| (.*?) \| (.*?) ?\|$", page, re.MULTILINE)
    told = {
        name: (kind, files != "none", {one.replace(" ", "_") for one in options.split(", ") if one})
        for name, kind, files, options in rows
        if name in TASKS
    }
    of_all = {"data", "languages", "shots", "seed", "skip_bad_data"}
    assert told == {name: (kind.kind, kind.needs_data, set(kind.options) - of_all) for name, kind in TASKS.items()}
    assert {field.name for field in fields(Group)} <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
