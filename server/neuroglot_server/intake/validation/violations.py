"""Violations that several validators report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from neuroglot.errors import Violation
from neuroglot_server.core import InvalidRequest, ModelDescription

MOST_VIOLATIONS = 50


def refuse(violations: Iterable[Violation]) -> None:
    """Raise `InvalidRequest` if there are violations; keeps the first `MOST_VIOLATIONS`."""
    found = list(islice(violations, MOST_VIOLATIONS))
    if found:
        raise InvalidRequest(found)


def finite(path: str, value: float, model: ModelDescription) -> Iterator[Violation]:
    """Yield a violation if a number is not finite in the model's dtype."""
    limit = float(np.finfo(np.dtype(model.dtype)).max)
    if not math.isfinite(value) or abs(value) > limit:
        yield Violation(path, f"is {value:g}, expected a finite number of {model.dtype}: -{limit:g} to {limit:g}")


def no_component(path: str, given: str, model: ModelDescription) -> Violation:
    """Return the violation of an unknown component."""
    names = ", ".join(component.name for component in model.components)
    return Violation(path, f"is {given!r}, expected a component of {model.name!r}: {names}")


def no_layer(path: str, layer: int, layers: int, model: ModelDescription) -> Violation:
    """Return the violation of a layer index that is out of range."""
    return Violation(path, f"is {layer}, expected a layer of {model.name!r}: it has {layers} (0 to {layers - 1})")


def top(path: str, fraction_field: str, fraction: float, k: int, model: ModelDescription) -> Iterator[Violation]:
    """Yield the violations of the number of top contributors, given as a fraction and as a count."""
    if not 0 < fraction <= 1:
        yield Violation(f"{path}.{fraction_field}", f"is {fraction:g}, expected more than 0 and at most 1")
    yield from at_most_neurons(f"{path}.top_k", k, model)


def at_most_neurons(path: str, count: int, model: ModelDescription) -> Iterator[Violation]:
    """Yield a violation if a count exceeds the neurons of a layer."""
    neurons = min(component.neurons for component in model.components)
    if not 0 <= count <= neurons:
        yield Violation(path, f"is {count}, expected at most the {neurons} neurons that a layer of {model.name!r} has")
