"""XNLI: both forms of its files, the paper's prompt, and what is wrong in broken files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import neuroglot as ng
from neuroglot.errors import AnalysisError, DataError
from neuroglot.tasks.inference import wordings

# Two premises; quotes and a line separator are text like any other.
ROWS = (
    ("entailment", 'He said "stop.', "He spoke."),
    ("contradiction", 'He said "stop.', "He was silent."),
    ("neutral", 'He said "stop.', "He shouted.\u2028Loudly."),
    ("neutral", "It {rained}.", "It was cold."),
)


def say(language: str, text: str) -> str:
    return text if language == "en" else f"{text} ({language})"


def folder(place: Path, languages: Sequence[str] = ("de", "en", "th"), rows: Sequence[Sequence[str]] = ROWS) -> Path:
    """A file for each language."""
    place.mkdir(exist_ok=True)
    for language in languages:
        lines = [f"{n}\t{label}\t{say(language, p)}\t{say(language, h)}" for n, (label, p, h) in enumerate(rows)]
        text = "\n".join(["id\tgold_label\tpremise\thypothesis", *lines]) + "\n"
        (place / f"test-{language}.tsv").write_text(text, encoding="utf-8")
    return place


def official(place: Path, languages: Sequence[str] = ("ar", "de", "en"), *, pair_ids: bool = True) -> Path:
    """The one file of the release, with some of its columns; rows by language."""
    header = ["language", "gold_label", "sentence1_parse", "sentence1", "sentence2", "promptID"]
    lines = ["\t".join(header + ["pairID"] * pair_ids)]
    for language in languages:
        rows = list(enumerate(ROWS))
        for number, (label, premise, hypothesis) in rows[::-1] if pair_ids and language == "de" else rows:
            cells = [language, label, "", say(language, premise), say(language, hypothesis), "7"]
            lines.append("\t".join(cells + [f"p{number}"] * pair_ids))
    path = place / "xnli.test.tsv"
    path.write_bytes("\r\n".join(lines).encode("utf-8"))
    return path


def change(path: Path, line: int, text: str | None) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[line - 1 : line] = [] if text is None else [text]
    path.write_text("\n".join(lines), encoding="utf-8")


def first_prompts(task: ng.tasks.Task, languages: Sequence[str]) -> Mapping[str, str]:
    return next(task.groups(languages, 1)).prompts


def test_the_prompt_is_the_papers_and_the_labels_are_its_words(tmp_path: Path) -> None:
    task = ng.tasks.xnli(folder(tmp_path))
    assert task.languages == ("en", "de", "th")
    assert task.parameters == {"template_language": "en", "templates": "0"}
    groups = list(task.groups(("en", "th"), None))
    assert groups[0].prompts == {
        "en": "Take the following as truth: He said \"stop. Then the following statement: 'He spoke.' is 'true', "
        "'false', or 'inconclusive'?",
        "th": "Take the following as truth: He said \"stop. (th) Then the following statement: 'He spoke. (th)' is "
        "'true', 'false', or 'inconclusive'?",
    }
    assert groups[0].separators == {"en": " ", "th": " "}  # an English answer stands behind an English question
    assert [group.answers["th"] for group in groups] == [("true",), ("false",), ("inconclusive",), ("inconclusive",)]
    assert [group.distractors["th"] for group in groups] == ["false", "inconclusive", "true", "true"]
    assert [group.cluster for group in groups] == ["0", "0", "0", "3"]
    assert [group.id for group in groups] == ["0/0", "1/0", "2/0", "3/0"]
    assert {group.choices["th"] for group in groups} == {("true", "false", "inconclusive")}
    assert "It {rained}. (th)" in groups[3].prompts["th"]


def test_with_its_own_template_each_language_is_asked_and_answers_in_its_own_words(tmp_path: Path) -> None:
    task = ng.tasks.xnli(folder(tmp_path), template_language="own", templates=(2, 0))
    groups = list(task.groups(task.languages, None))
    assert [group.id for group in groups[:3]] == ["0/0", "0/2", "1/0"]
    assert groups[0].prompts["de"].startswith("Nimm Folgendes als wahr an: He said")
    assert groups[1].prompts["de"].endswith("wahr, falsch oder ungewiss? Antwort:")
    assert groups[0].answers == {"en": ("true",), "de": ("wahr",), "th": ("จริง",)}
    assert groups[0].separators == {"en": " ", "de": " ", "th": ""}
    assert groups[0].choices["de"] == ("wahr", "falsch", "ungewiss")


def test_every_language_has_the_same_number_of_wordings_with_all_labels() -> None:
    assert {len(prompts) for prompts in wordings().values()} == {3}
    for prompts in wordings().values():
        for number, prompt in enumerate(prompts):
            assert prompt == prompt.strip()
            assert prompt.index("{premise}") < prompt.index("{hypothesis}")
            assert number == 1 or all(prompt.count(label) == 1 for label in ("{true}", "{false}", "{inconclusive}"))


@pytest.mark.parametrize("pair_ids", [True, False])
def test_the_official_file_gives_the_same_groups_as_the_folder(pair_ids: bool, tmp_path: Path) -> None:
    path = official(tmp_path, pair_ids=pair_ids)
    ours = ng.tasks.xnli(folder(tmp_path / "folder", ("en", "de")))
    theirs = ng.tasks.xnli(path)
    assert theirs.languages == ("en", "de")  # of the paper's languages, those that are there
    expected = [group.prompts for group in ours.groups(("en", "de"), None)]
    assert [group.prompts for group in theirs.groups(("en", "de"), None)] == expected
    assert ng.tasks.xnli(tmp_path).languages == ("en", "de")  # the folder in which it is
    assert ng.tasks.xnli(path, languages=("ar", "de")).languages == ("de", "ar")


def test_a_language_without_a_wording_is_asked_with_the_english_one_alone(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="'xnli' has no wording in ar: leave the language out, or use the English"):
        ng.tasks.xnli(official(tmp_path), languages=("ar", "de"), template_language="own")


def test_a_language_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no pt, xx: its languages are de, en, th"):
        ng.tasks.xnli(folder(tmp_path), languages=("en", "pt", "xx"))


def test_everything_that_is_wrong_is_told_at_once_and_left_out_if_asked(tmp_path: Path) -> None:
    place = folder(tmp_path, rows=(*ROWS, *((label, f"{p} again", h) for label, p, h in ROWS)))
    change(place / "test-en.tsv", 2, "0\tentailment\tonly a premise")
    change(place / "test-de.tsv", 3, "1\tcontradiction\t \tein Satz")
    change(place / "test-de.tsv", 4, "2\tmaybe\tein Satz\tnoch einer")
    change(place / "test-th.tsv", 5, "3\tentailment\tเอ\tบี")
    change(place / "test-th.tsv", 6, None)
    change(place / "test-th.tsv", 6, "6\tcontradiction\tเอ\tบี")
    with pytest.raises(DataError) as raised:
        ng.tasks.xnli(place)
    for told in (
        "8 problems",
        f"{place / 'test-en.tsv'}:2: has 3 columns instead of 4",
        f"{place / 'test-de.tsv'}:3: the premise is empty",
        f"{place / 'test-de.tsv'}:4: 'maybe' is no label: those are entailment, contradiction, neutral",
        f"{place / 'test-th.tsv'}:5: example 3 is true here and inconclusive in en",
        f"{place / 'test-th.tsv'}:7: example 6 is in line 6 already",
        f"{place / 'test-th.tsv'}:6: example 6 is false here and inconclusive in en",
        f"{place / 'test-en.tsv'}:6: example 4 has no th",
        f"{place / 'test-en.tsv'}:7: example 5 has no th",
    ):
        assert told in str(raised.value)
    task = ng.tasks.xnli(place, skip_bad_data=True)
    assert [group.id for group in task.groups(task.languages, None)] == ["7/0"]
    assert len(task.problems) == 8
    assert task.problems.counts["missing language"] == 2
    # What a language lacks that is not asked for is no problem.
    assert len(ng.tasks.xnli(place, languages=("en", "de"), skip_bad_data=True).problems) == 3


def test_the_same_example_twice_is_a_duplicate(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test-en.tsv:6: example 4 is the same as example 1"):
        ng.tasks.xnli(folder(tmp_path, rows=(*ROWS, ROWS[1])))


def test_files_without_names_that_differ_in_length_cannot_be_brought_together(tmp_path: Path) -> None:
    path = official(tmp_path, pair_ids=False)
    change(path, 8, None)
    with pytest.raises(DataError, match="does not run parallel: it has 4 in en, 3 in de, and no pairID"):
        ng.tasks.xnli(path, skip_bad_data=True)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither xnli.test.tsv nor a test-LANGUAGE.tsv"):
        ng.tasks.xnli(tmp_path)
    place = folder(tmp_path)
    change(place / "test-th.tsv", 1, "id\tpremise\thypothesis")
    with pytest.raises(DataError, match=r"test-th.tsv has no column gold_label: its first line should name them"):
        ng.tasks.xnli(place)
    (place / "test-th.tsv").unlink()
    (place / "test-de.tsv").unlink()
    with pytest.raises(DataError, match="has 1 languages, and parallel prompts need two or more"):
        ng.tasks.xnli(place)


def test_a_line_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    place = folder(tmp_path)
    path = place / "test-de.tsv"
    path.write_bytes(path.read_bytes().replace(b"He spoke", b"Er spr\xe4che"))
    with pytest.raises(DataError, match=r"test-de.tsv:2: is not UTF-8"):
        ng.tasks.xnli(place)
