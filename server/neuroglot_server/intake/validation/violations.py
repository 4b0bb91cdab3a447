"""What the checks of all parts of a request share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from neuroglot.errors import Violation
from neuroglot_server.core import InvalidRequest, ModelDescription

MOST_VIOLATIONS = 50


def refuse(violations: Iterable[Violation]) -> None:
    """Raise `InvalidRequest` if there are any."""
    found = list(islice(violations, MOST_VIOLATIONS))
    if found:
        raise InvalidRequest(found)


def finite(path: str, value: float, model: ModelDescription) -> Iterator[Violation]:
    """A number that the model's type cannot hold."""
    most = float(np.finfo(np.dtype(model.dtype)).max)
    if not math.isfinite(value) or abs(value) > most:
        yield Violation(path, f"is {value:g}, expected a finite number of {model.dtype}: -{most:g} to {most:g}")


def no_component(path: str, given: str, model: ModelDescription) -> Violation:
    """A component that the model does not have."""
    names = ", ".join(component.name for component in model.components)
    return Violation(path, f"is {given!r}, expected a component of {model.name!r}: {names}")


def no_layer(path: str, layer: int, layers: int, model: ModelDescription) -> Violation:
    """A layer that there is not."""
    return Violation(path, f"is {layer}, expected a layer of {model.name!r}: it has {layers} (0 to {layers - 1})")


def top(path: str, fraction_field: str, fraction: float, k: int, model: ModelDescription) -> Iterator[Violation]:
    """How many neurons of a layer are the largest contributors, as a share or as a number."""
    if not 0 < fraction <= 1:
        yield Violation(f"{path}.{fraction_field}", f"is {fraction:g}, expected more than 0 and at most 1")
    yield from at_most_neurons(f"{path}.top_k", k, model)


def at_most_neurons(path: str, count: int, model: ModelDescription) -> Iterator[Violation]:
    """More neurons of a layer than there are."""
    neurons = min(component.neurons for component in model.components)
    if not 0 <= count <= neurons:
        yield Violation(path, f"is {count}, expected at most the {neurons} neurons that a layer of {model.name!r} has")
