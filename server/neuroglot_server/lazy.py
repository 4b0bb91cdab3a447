"""Attributes that are worked out when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Self, TypeVar, overload

_Owner = TypeVar("_Owner")
_Value = TypeVar("_Value", covariant=True)


class lazy(Generic[_Owner, _Value]):  # noqa: N801 - is written as a decorator
    """As `functools.cached_property`, which takes a lock in Python 3.11.

    That is longer than most of what is worked out for every row of a request.
    """

    def __init__(self, work: Callable[[_Owner], _Value]) -> None:
        """Take what works it out."""
        self._work = work
        self.__doc__ = work.__doc__

    def __set_name__(self, owner: type[_Owner], name: str) -> None:
        """Be told the attribute's name."""
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type[_Owner]) -> Self: ...

    @overload
    def __get__(self, instance: _Owner, owner: type[_Owner]) -> _Value: ...

    def __get__(self, instance: _Owner | None, owner: type[_Owner]) -> Self | _Value:
        """Work it out, and put it where it is found without asking here."""
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._work(instance)
        return value
