"""Errors: their hierarchy, their words, their way to another process."""

from __future__ import annotations

import inspect
import pickle

import pytest

from neuroglot import errors
from neuroglot.errors import InvalidRequestError, NeuroglotError, OverloadedError, ServerError, Violation


def test_the_tree_in_the_docstring_is_the_hierarchy() -> None:
    """Depth of each line of the tree, four characters a level, against the classes."""
    drawn: dict[str, list[str]] = {}
    path: list[str] = []
    for line in inspect.getdoc(errors).splitlines()[2:]:
        name = line.lstrip(" │├└─").split()[0]
        depth = line.index(name) // 4
        path = [*path[:depth], name]
        drawn[name] = path
    classes = {
        name: thing
        for name, thing in vars(errors).items()
        if isinstance(thing, type) and issubclass(thing, NeuroglotError)
    }
    assert set(drawn) == set(classes)
    for name, thing in classes.items():
        ancestry = [one.__name__ for one in reversed(thing.__mro__) if issubclass(one, NeuroglotError)]
        assert drawn[name] == ancestry


def test_a_server_error_reads_as_what_was_said() -> None:
    error = InvalidRequestError(
        "INVALID_ARGUMENT",
        "the request is refused: 2 fields are wrong",
        [
            Violation("group.rows[1].text", "is empty"),
            Violation("analysis.thresholds[0]", "is NaN: give a finite number"),
        ],
        request_id="4f",
    )
    assert str(error) == (
        "the request is refused: 2 fields are wrong\n"
        "  group.rows[1].text: is empty\n"
        "  analysis.thresholds[0]: is NaN: give a finite number\n"
        "  (request 4f)"
    )


def test_a_violation_that_the_message_tells_is_not_told_twice() -> None:
    error = InvalidRequestError("INVALID_ARGUMENT", "group.id: it is empty", [Violation("group.id", "it is empty")])
    assert str(error) == "group.id: it is empty"
    assert error.violations == (Violation("group.id", "it is empty"),)


@pytest.mark.parametrize("kind", [ServerError, OverloadedError, InvalidRequestError])
def test_a_server_error_crosses_processes(kind: type[ServerError]) -> None:
    error = kind("RESOURCE_EXHAUSTED", "full", [Violation("a", "b")], "4f", 1.5)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
