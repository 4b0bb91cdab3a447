"""Passes of the engine on the device and on the processor, without a server around them.

Ten prompts of 32 tokens, seven variants of each forked from what was kept of it, and eight tokens generated for each of
the 70.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from neuroglot.definitions.bundle import read_manifest
from neuroglot_server.engine.graph import interfaces
from neuroglot_server.engine.session import Engine
from neuroglot_server.engine.steps import Edit, Edits, KeyValues, RowStep, StepResult

Result = TypeVar("Result")

PROMPTS, TOKENS, VARIANTS, GENERATED = 10, 32, 7, 8
_TOKEN_IDS = 2000
"""Every vocabulary here has as many."""
LEGAL = {"float32": (1e-3, 0.001), "float16": (2e-2, 0.005)}
"""By dtype: how far log-probabilities may be from the processor's in float32, relative to the largest, and which share
of neurons may have another sign."""


@dataclass(frozen=True)
class Outcome:
    """What an engine answered, and how long it took.

    Attributes:
        seconds: by kind of pass, the median of one.
        activations: of the prompts' last tokens, `[prompts, layers, neurons]`.
        log_probabilities: of the variants' targets.
    """

    seconds: dict[str, float]
    activations: np.ndarray
    log_probabilities: np.ndarray


@dataclass(frozen=True)
class Compared:
    """An engine on the device against the processor in float32."""

    dtype: str
    signs: float
    log_probabilities: float
    times_as_fast: dict[str, float]
    right: bool


def work(engine: Engine, rounds: int) -> Outcome:
    """Run prompts, variants and generation, the same for every engine."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(random.integers(4, _TOKEN_IDS, count).tolist())

    seconds: dict[str, float] = {}
    prompts = [RowStep(tokens(TOKENS), focus=TOKENS - 1, taps=True, keep=True) for _ in range(PROMPTS)]
    seconds["prompts"], read = timed(lambda: engine.run(prompts), rounds)
    edits = [Edits(at=random_edit(engine, random)) for _ in range(VARIANTS)]
    forks = [
        RowStep(tokens(1), kept(result), edits=edit, scored=True, targets=tokens(1), keep=True)
        for result in read
        for edit in edits
    ]
    seconds["variants"], answered = timed(lambda: engine.run(forks), rounds)
    seconds["generation"], _ = timed(lambda: generate(engine, forks, answered), rounds)
    return Outcome(
        seconds,
        np.stack([result.activations for result in read if result.activations is not None]).astype(np.float32),
        np.array([result.scores.log_probabilities for result in answered if result.scores is not None]),
    )


def random_edit(engine: Engine, random: np.random.Generator) -> Edit:
    """A fifth of all neurons deactivated."""
    signature = engine.signature
    mask = (random.random((signature.layers, signature.neurons)) > 0.2).astype(signature.dtype)
    return Edit(tuple(range(signature.layers)), mask, np.zeros_like(mask))


def kept(result: StepResult) -> KeyValues:
    """Its keys and values."""
    assert result.kept is not None
    return result.kept


def generate(engine: Engine, steps: Sequence[RowStep], results: Sequence[StepResult]) -> None:
    """Generate some tokens for each row."""
    pasts = [step.past.extended(kept(result)) for step, result in zip(steps, results, strict=True)]
    for _ in range(GENERATED):
        results = engine.run([RowStep((7,), past, focus=-1, scored=True, keep=True) for past in pasts])
        pasts = [past.extended(kept(result)) for past, result in zip(pasts, results, strict=True)]


def timed(function: Callable[[], Result], rounds: int) -> tuple[float, Result]:
    """The median of how long it takes, after a first time that is not counted, and what it gave."""
    result = function()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), result


def compared(dtype: str, got: Outcome, expected: Outcome) -> Compared:
    """How far two outcomes are apart."""
    signs = float(((got.activations > 0) != (expected.activations > 0)).mean())
    distance = np.abs(got.log_probabilities - expected.log_probabilities).max()
    relative = float(distance / np.abs(expected.log_probabilities).max())
    most_distance, most_signs = LEGAL[dtype]
    faster = {kind: expected.seconds[kind] / got.seconds[kind] for kind in expected.seconds}
    return Compared(dtype, signs, relative, faster, bool(relative <= most_distance and signs <= most_signs))


def engine_of(bundle: Path, device: str, *, bound: bool) -> Engine:
    """An engine of a bundle's decoder."""
    facts = read_manifest(bundle).model
    (component,) = facts.components
    return Engine(bundle / component.graph, component, interfaces(facts)[component.name], 0, device, bound=bound)


def outcomes(bundles: Path, device: str, rounds: int) -> Iterator[Compared]:
    """Measure the device in both dtypes against the processor in float32; `bundles` is a folder by dtype."""
    expected = work(engine_of(bundles / "float32", "cpu", bound=False), rounds)
    for dtype in LEGAL:
        yield compared(dtype, work(engine_of(bundles / dtype, device, bound=True), rounds), expected)
