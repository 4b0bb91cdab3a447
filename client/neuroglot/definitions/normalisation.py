"""Normalisation of texts before they are compared with answers.

The server uses it to match answers, and the analyses to find labels, so it is defined once.
"""

from __future__ import annotations

_TRAILING = (".", ";", "!", ",", "?", "</s>", "<pad>")


def normalised(text: str) -> str:
    """Normalise a text for comparison with answers: strip, lowercase, remove trailing `. ; ! , ? </s> <pad>`.

    Runs in linear time.

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
