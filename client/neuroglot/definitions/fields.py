"""Validation of untrusted JSON objects: each field has a type and bounds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

_Value = TypeVar("_Value")

_LONGEST_SHOWN = 60
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line breaks, and halves of surrogate pairs, which UTF-8 cannot encode."""


class FieldError(ValueError):
    """A field that is missing, unknown, of another type or out of its bounds.

    The text names the field, what it is and what is expected.
    """


def parse(text: str) -> Any:
    """Parse JSON without duplicate keys, NaN and infinities.

    Raises:
        FieldError: the text is not such JSON, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise FieldError("its JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise FieldError(f"it is no JSON: {error}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise FieldError(str(error)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FieldError(f"{shown(twice)} is there twice in one object")
    return found


def _refuse_constant(name: str) -> None:
    raise FieldError(f"{name} is no number of JSON")


def shown(value: object) -> str:
    """Format a value for an error message, as one short line."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = ascii(value)  # at most 4,300 digits of an integer: `parse` rejects longer ones
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def is_one_line(text: str) -> bool:
    """Return whether a text has no control characters and no line breaks, and UTF-8 can encode it."""
    return not _UNPRINTABLE.search(text)


def depth_at_most(value: object, limit: int) -> bool:
    """Return whether objects and lists nest at most `limit` deep in a JSON value, and all numbers are finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if not isinstance(value, dict | list):
        return True
    parts = value.values() if isinstance(value, dict) else value
    return limit > 0 and all(depth_at_most(part, limit - 1) for part in parts)


class Fields:
    """Reader of an object's fields. Each field is read once; `end` rejects fields that were not read.

    Methods that read a field raise `FieldError` if it is missing or invalid.
    """

    def __init__(self, value: object, path: str = "") -> None:
        """Take an object.

        Args:
            value: of `parse`.
            path: where it stands, for the errors: `model.components[0]`; empty for the outermost.

        Raises:
            FieldError: it is no object.
        """
        if not isinstance(value, dict):
            raise FieldError(f"{path or 'its JSON'} is {shown(value)}, expected an object")
        self._fields: dict[str, Any] = dict(value)
        self._path = path

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    @property
    def names(self) -> list[str]:
        """Names of the fields that were not read yet."""
        return list(self._fields)

    def take(self, name: str, expected: str, fits: Callable[[Any], bool]) -> Any:
        """A field's value, if it fits; `expected` says in words what does."""
        if name not in self._fields:
            raise FieldError(f"{self._at(name)} is missing, expected {expected}")
        value = self._fields.pop(name)
        if not fits(value):
            raise FieldError(f"{self._at(name)} is {shown(value)}, expected {expected}")
        return value

    def text(self, name: str, longest: int, *, empty: bool = False) -> str:
        """A text of one line."""
        least = 0 if empty else 1
        value: str = self.take(
            name,
            f"a text of one line of {least} to {longest} characters",
            lambda value: isinstance(value, str) and least <= len(value) <= longest and is_one_line(value),
        )
        return value

    def one_of(self, name: str, *allowed: str) -> str:
        """One of several texts."""
        value: str = self.take(name, " or ".join(allowed), lambda value: isinstance(value, str) and value in allowed)
        return value

    def hexadecimal(self, name: str, digits: int) -> str:
        """Read a string of lower-case hexadecimal digits of the given length."""
        value: str = self.take(
            name,
            f"{digits} hexadecimal digits",
            lambda value: isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None,
        )
        return value

    def whole(self, name: str, least: int, most: int) -> int:
        """A whole number within bounds; true and false are none."""
        value: int = self.take(
            name,
            f"a whole number from {least} to {most}" if least < most else str(most),
            lambda value: type(value) is int and least <= value <= most,
        )
        return value

    def number(self, name: str, least: float, most: float) -> float:
        """A finite number within bounds."""
        value: float = self.take(
            name,
            f"a number from {least:g} to {most:g}",
            lambda value: type(value) in (int, float) and least <= value <= most,
        )
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value: bool = self.take(name, "true or false", lambda value: isinstance(value, bool))
        return value

    def optional(self, name: str, read: Callable[[str], _Value]) -> _Value | None:
        """What `read` makes of the field, or None where it is null."""
        if name in self._fields and self._fields[name] is None:
            return self._fields.pop(name)  # type: ignore[no-any-return]
        return read(name)

    def items(self, name: str, least: int, most: int) -> list[tuple[str, Any]]:
        """The items of a list, each with its path."""
        values = self.take(
            name,
            f"a list of {least} to {most} items" if least < most else f"a list of length {most}",
            lambda value: isinstance(value, list) and least <= len(value) <= most,
        )
        return [(f"{self._at(name)}[{index}]", value) for index, value in enumerate(values)]

    def object(self, name: str) -> Fields:
        """The fields of an object."""
        return Fields(self.take(name, "an object", lambda value: isinstance(value, dict)), self._at(name))

    def end(self) -> None:
        """Refuse fields that were not read.

        Raises:
            FieldError: there are some.
        """
        if self._fields:
            raise FieldError(f"{self._at(min(self._fields))} is unknown, expected no field of this name")

    def _at(self, name: str) -> str:
        name = name if len(name) <= _LONGEST_SHOWN and is_one_line(name) else shown(name)
        return f"{self._path}.{name}" if self._path else name
