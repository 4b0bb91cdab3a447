"""The form in which texts are compared with answers.

The server matches with it and the analyses look for labels with it, so there is one definition.
"""

from __future__ import annotations

_TRAILING = (".", ";", "!", ",", "?", "</s>", "<pad>")


def normalised(text: str) -> str:
    """A text as it is compared with answers: stripped, lowercased, without trailing `. ; ! , ? </s> <pad>`.

    It takes time in proportion to the text's length.

    >>> normalised(" Paris.</s> ")
    'paris'
    """
    text = text.strip().lower()
    end = len(text)
    while (ending := next((one for one in _TRAILING if text.endswith(one, 0, end)), None)) is not None:
        end -= len(ending)
        while end and text[end - 1].isspace():
            end -= 1
    return text[:end]
