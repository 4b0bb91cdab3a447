"""Groups: what no server could answer is refused before it is sent."""

from __future__ import annotations

import pytest

from neuroglot import Group, InvalidGroupError


def test_a_group_keeps_the_order_of_its_languages() -> None:
    group = Group({"es": "Hola", "de": "Hallo", "en": "Hello"}, answers={"en": "world", "es": ["mundo", "Mundo"]})
    assert group.languages == ("es", "de", "en")
    assert group.answers == {"en": ("world",), "es": ("mundo", "Mundo")}


def test_separators_are_spaces_but_for_languages_written_without() -> None:
    group = Group(dict.fromkeys(["en", "th", "zh-Hant", "zh", "ja"], "x"), separators={"ja": "", "zh": " "})
    assert group.separators == {"en": " ", "th": "", "zh-Hant": "", "zh": " ", "ja": ""}


def test_a_group_does_not_follow_the_prompts_it_was_made_of() -> None:
    prompts = {"en": "Hello"}
    group = Group(prompts)
    prompts["de"] = ""
    assert group.languages == ("en",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": {}}, "the group has no prompts: give at least one"),
        ({"prompts": {}, "id": "7"}, "group '7' has no prompts"),
        ({"prompts": {"en": ""}}, "the prompt of 'en' is empty"),
        (
            {"prompts": {"en": "x"}, "answers": {"de": "y"}},
            "has answers for 'de' but no prompt .*: its languages are en",
        ),
        ({"prompts": {"en": "x"}, "separators": {"de": ""}}, "has separators for 'de' but no prompt"),
        ({"prompts": {"en": "x"}, "separators": {"en": ", "}}, "the separator of 'en' must be ' ' or '', not ', '"),
        ({"prompts": {"en": "x"}, "answers": {"en": ""}}, "an answer of 'en' is empty"),
        ({"prompts": {"en": "x"}, "answers": {"en": []}}, "an answer of 'en' is empty"),
        ({"prompts": {"en": "x"}, "answers": {"en": ["y", ""]}}, "an answer of 'en' is empty"),
        ({"prompts": {"en": "x"}, "choices": {"de": ["y"]}}, "has choices for 'de' but no prompt"),
        (
            {"prompts": {"en": "x"}, "choices": {"en": "yes"}},
            "the choices of 'en' must be a list of words, .* not 'yes'",
        ),
        (
            {"prompts": {"en": "x"}, "choices": {"en": ["y", ""]}},
            r"the choices of 'en' must be a list .*, not \['y', ''\]",
        ),
        ({"prompts": {"en": "x"}, "distractors": {"de": "y"}}, "has distractors for 'de' but no prompt"),
        ({"prompts": {"en": "x"}, "distractors": {"en": ""}}, "the distractor of 'en' is empty"),
    ],
)
def test_groups_that_nobody_could_answer(arguments: dict, message: str) -> None:
    with pytest.raises(InvalidGroupError, match=message):
        Group(**arguments)
