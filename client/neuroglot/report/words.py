"""Formatting of numbers in sentences."""

from __future__ import annotations


def capitalised(text: str) -> str:
    """The text with its first letter capitalised."""
    return text[:1].upper() + text[1:]


def points(difference: float) -> str:
    """A difference of percentages."""
    return f"{signed(difference)} points"


def nats(difference: float) -> str:
    """A difference of log-probabilities, without its unit."""
    return signed(difference, ".2g")


def signed(number: float, form: str = ".1f") -> str:
    """A number with its sign; no sign if it rounds to 0."""
    text = f"{number:+{form}}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def share(percent: float) -> str:
    """A percentage with one decimal below 10 %."""
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %"
