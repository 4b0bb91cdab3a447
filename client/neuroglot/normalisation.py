"""The form in which texts are compared with answers.

The server matches with it and the analyses look for labels with it, so there is one definition.
"""

from __future__ import annotations

_TRAILING = (".", ";", "!", ",", "?", "</s>", "<pad>")


def normalised(text: str) -> str:
    """A text as it is compared with answers: stripped, lowercased, without trailing `. ; ! , ? </s> <pad>`.

    >>> normalised(" Paris.</s> ")
    'paris'
    """
    text = text.strip().lower()
    while text.endswith(_TRAILING):
        text = next(text.removesuffix(end) for end in _TRAILING if text.endswith(end)).rstrip()
    return text
