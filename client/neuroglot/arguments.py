"""Validation of arguments: an invalid value raises an error that says what was given and what is expected.

Each check returns the value as a plain Python type, with NumPy's numbers converted. The error is a TypeError unless the
caller passes another class.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from numbers import Integral, Real
from os import PathLike
from typing import Any, TypeVar

import numpy as np

Raises = Callable[[str], Exception]
"""Callable that makes an exception from its message."""

_Member = TypeVar("_Member", bound=StrEnum)

_SHOWN_CHARACTERS = 200
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def shown(value: object) -> str:
    """Format a value for a message: its repr, on one line and of bounded length."""
    line = " ".join(_SHORT.repr(value).split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."


def refuse(name: str, value: object, expected: str, error: Raises = TypeError) -> Exception:
    """Make the exception for an invalid argument; the caller raises it."""
    return error(f"{name} must be {expected}, not {shown(value)}")


def text(name: str, value: object, error: Raises = TypeError, expected: str = "a string") -> str:
    """Check a string that UTF-8 can encode."""
    if not isinstance(value, str):
        raise refuse(name, value, expected, error)
    try:
        value.encode()
    except UnicodeEncodeError as cause:
        raise refuse(name, value, f"Unicode text (character {cause.start} is a lone surrogate)", error) from None
    return value


def optional_text(name: str, value: object, error: Raises = TypeError, expected: str = "a string") -> str | None:
    """Check a string, or None."""
    return None if value is None else text(name, value, error, f"{expected}, or None")


def path(name: str, value: object, error: Raises = TypeError) -> str | PathLike[str]:
    """Check a path."""
    if not isinstance(value, str | PathLike):
        raise refuse(name, value, "a path: a string or a pathlib.Path", error)
    return value


def flag(name: str, value: object, error: Raises = TypeError) -> bool:
    """Check a bool."""
    if not isinstance(value, bool | np.bool_):
        raise refuse(name, value, "True or False", error)
    return bool(value)


def integer(name: str, value: object, error: Raises = TypeError, expected: str = "an integer") -> int:
    """Check an integer that is not a bool."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise refuse(name, value, expected, error)
    return int(value)


def count(name: str, value: object, minimum: int = 0, error: Raises | None = None) -> int:
    """Check an integer of at least `minimum`; a smaller one raises ValueError, or the class that is given."""
    expected = f"an integer of {minimum} or more"
    number = integer(name, value, error or TypeError, expected)
    if number < minimum:
        raise refuse(name, number, expected, error or ValueError)
    return number


def number(name: str, value: object, error: Raises = TypeError, expected: str = "a number") -> float:
    """Check a real number that is not a bool."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise refuse(name, value, expected, error)
    return float(value)


def seconds(name: str, value: object) -> float | None:
    """Check a non-negative number of seconds, or None for no limit.

    Raises:
        ValueError: the number is negative or NaN.
    """
    if value is None:
        return None
    expected = "a number of seconds of 0 or more, or None for no limit"
    given = number(name, value, expected=expected)
    if not given >= 0:
        raise refuse(name, value, expected, ValueError)
    return given


def mapping(name: str, value: object, expected: str, error: Raises = TypeError) -> Mapping[str, Any]:
    """Check a mapping whose keys are strings."""
    if not isinstance(value, Mapping):
        raise refuse(name, value, expected, error)
    for key in value:
        text(f"a key of {name}", key, error)
    return value


def items(name: str, value: object, expected: str, error: Raises = TypeError) -> tuple[Any, ...]:
    """Return the items of an iterable that is neither a string nor a mapping."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        raise refuse(name, value, expected, error)
    try:
        return tuple(value)
    except TypeError:  # a zero-dimensional array is an Iterable that cannot be iterated over
        raise refuse(name, value, expected, error) from None


def texts(name: str, value: object, expected: str, error: Raises = TypeError) -> tuple[str, ...]:
    """Check an iterable of strings."""
    return tuple(text(f"{name}[{i}]", item, error) for i, item in enumerate(items(name, value, expected, error)))


def integers(name: str, value: object, expected: str, error: Raises = TypeError) -> tuple[int, ...]:
    """Check an iterable of integers."""
    return tuple(integer(f"{name}[{i}]", item, error) for i, item in enumerate(items(name, value, expected, error)))


def numbers(name: str, value: object, expected: str, error: Raises = TypeError) -> tuple[float, ...]:
    """Check an iterable of numbers."""
    return tuple(number(f"{name}[{i}]", item, error) for i, item in enumerate(items(name, value, expected, error)))


def member(kind: type[_Member], what: str, value: object, error: Raises = ValueError) -> _Member:
    """Check a member of an enumeration, given as the member or as its value."""
    if not isinstance(value, str) or value not in set(kind):
        raise error(f"unknown {what} {shown(value)}: expected one of {', '.join(kind)}")
    return kind(value)
