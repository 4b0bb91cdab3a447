"""The capitals: complete data, one wording a prompt, and held-out edits that stay held out."""

from __future__ import annotations

import pytest

from neuroglot.request.groups import default_separator
from neuroglot.tasks import capital_prompts as capitals
from neuroglot.tasks.capital_prompts import LANGUAGES, SAME_NAME


def test_every_state_has_a_name_and_a_capital_in_every_language() -> None:
    assert len(capitals.states()) == 130
    for state in capitals.states().values():
        assert tuple(state.country) == LANGUAGES
        assert tuple(state.capital) == LANGUAGES
        assert all(name == name.strip() != "" for name in (*state.country.values(), *state.capital.values()))


@pytest.mark.parametrize("language", LANGUAGES)
def test_within_a_language_no_two_states_and_no_two_capitals_share_a_name(language: str) -> None:
    states = capitals.states().values()
    assert len({state.country[language] for state in states}) == len(states)
    assert len({state.capital[language] for state in states}) == len(states)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_three_wordings_and_three_distinct_labels(language: str) -> None:
    assert [wording.count("{X}") for wording in capitals.templates()[language]] == [1, 1, 1]
    assert tuple(capitals.label_words(language)) == capitals.LABELS
    assert len(set(capitals.label_words(language).values())) == 3


def test_the_states_left_out_share_their_capitals_name_in_every_language() -> None:
    shared = {
        territory
        for territory, state in capitals.states().items()
        if all(state.country[x] == state.capital[x] for x in LANGUAGES)
    }
    assert shared == SAME_NAME


def test_facts_are_groups_of_parallel_rows() -> None:
    groups = list(capitals.groups())
    assert len(groups) == (130 - len(SAME_NAME)) * 3
    france = next(group for group in groups if group.id == "FR/0")
    assert france.languages == LANGUAGES
    assert france.cluster == "FR"
    assert (france.prompts["es"], france.answers["es"]) == ("La capital de Francia es", ("París",))
    assert (france.prompts["zh"], france.separators["zh"], france.answers["zh"]) == ("法国的首都是", "", ("巴黎",))
    assert not SAME_NAME & {group.cluster for group in groups}


def test_facts_can_be_narrowed() -> None:
    groups = list(capitals.groups(languages=("th", "en"), limit=3, templates=(2,), skip=("AF",)))
    assert [group.id for group in groups] == ["AM/2", "AO/2", "AR/2"]
    assert groups[0].languages == ("th", "en")


@pytest.mark.parametrize("groups", [capitals.groups, capitals.edits, capitals.inferences])
def test_ids_are_unique_and_no_prompt_ends_in_a_space(groups) -> None:  # type: ignore[no-untyped-def]
    found = list(groups())
    assert len({group.id for group in found}) == len(found)
    for group in found:
        assert set(group.answers) == set(group.prompts)
        assert all(prompt == prompt.strip() for prompt in group.prompts.values())
        assert all(
            group.separators[language] == default_separator(language)
            for language in ("en", "ru")
            if language in group.prompts
        )


def test_held_out_edits_are_fixed_and_cross_languages() -> None:
    edits = capitals.held_out_edits()
    assert len(edits) == len(capitals.held_out_pairs()) == 1000
    assert all(edit.country != edit.city and edit.context != edit.question for edit in edits)
    assert edits[0] == ("GE", "MX", "tr", "zh", 1)  # the embedded models were trained without exactly these
    assert {(edit.context, edit.question) for edit in edits} == {(a, b) for a in LANGUAGES for b in LANGUAGES if a != b}


def test_an_edit_tells_in_one_language_and_asks_in_another() -> None:
    assert capitals.edit("FR", "JP", "en", "es") == (
        "The capital of France is Tokyo. La capital de Francia es",
        " ",
        "Tokio",
    )
    assert capitals.edit("FR", "JP", "zh", "th").prompt == "法国的首都是东京。เมืองหลวงของฝรั่งเศสคือ"
    assert capitals.edit("FR", "JP", "th", "zh").prompt == "เมืองหลวงของฝรั่งเศสคือโตเกียว 法国的首都是"


def test_groups_of_edits_fix_one_side_and_leave_its_language_out() -> None:
    told_in_english = next(capitals.edits(context="en"))
    asked_in_english = next(capitals.edits(context=None, question="en"))
    assert told_in_english.languages == asked_in_english.languages == LANGUAGES[1:]
    assert set(told_in_english.answers["de"]) == {"Mexiko-Stadt"}
    assert set(asked_in_english.answers["de"]) == {"Mexico City"}


def test_edits_need_exactly_one_fixed_side() -> None:
    with pytest.raises(ValueError, match="got 'en' and 'de'"):
        capitals.edits(context="en", question="de")


@pytest.mark.parametrize(
    ("hypothesis", "label"),
    [(("FR", "JP"), "true"), (("FR", "FR"), "false"), (("ES", "JP"), "inconclusive"), (("ES", "ES"), "inconclusive")],
)
def test_a_label_follows_from_the_premise_and_not_from_the_world(hypothesis: tuple[str, str], label: str) -> None:
    assert capitals.label(("FR", "JP"), hypothesis) == label


def test_inferences_balance_their_labels_over_held_out_premises() -> None:
    pairs = capitals.held_out_inferences()
    counts = [sum(capitals.label(*pair) == label for pair in pairs) for label in capitals.LABELS]
    assert counts == [334, 333, 333]
    assert {premise for premise, _ in pairs} == capitals.held_out_pairs()


def test_an_inference_reads_as_one_text() -> None:
    row = capitals.inference(("FR", "JP"), ("FR", "IT"), "en")
    assert row.prompt == "The capital of France is Tokyo. Claim: The capital city of France is Rome. The claim is"
    assert row.answer == "false"
