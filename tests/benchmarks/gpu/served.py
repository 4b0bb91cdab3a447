"""Two servers of the same bundle, one on the device: whether they answer the same, and how many groups a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import neuroglot as ng
from neuroglot.request.options import AnalysisKeywords
from tests.benchmarks.serving.prompts import Prompter
from tests.benchmarks.serving.servers import model_of, serving

LEGAL = {"float32": (1e-4, 0.001), "float16": (3e-2, 0.005)}
"""By dtype: how far gold answers' log-probabilities may be apart, relative to the largest, and which share of types."""

_QUESTIONS = {
    "en": "The capital of {} is",
    "de": "Die Hauptstadt von {} ist",
    "es": "La capital de {} es",
    "fr": "La capitale de {} est la ville de",
}
_SUBJECTS = ("Paris", "Ankara", "France, the old country,", "Francia", "Pháp", "Türkiye", "Frankreich", "Portugal")
_VARIANTS = {
    "deactivate": ng.deactivate(ng.ALL_SHARED),
    "override": ng.override(ng.PARTIAL_SHARED, 2.0),
    "all tokens": ng.scale(ng.ALL_SHARED, 0.5, scope=ng.Scope.ALL_TOKENS),
    "control": ng.deactivate(ng.control(ng.ALL_SHARED, ng.ControlKind.RANDOM_ACTIVE, draw=1)),
}


@dataclass(frozen=True)
class Agreement:
    """How far the device's answers are from the processor's.

    Attributes:
        bundle: family and dtype.
        types: share of neurons whose type differs.
        log_probabilities: largest difference of a gold answer's, relative to the largest.
        contributions: largest difference of a type's share of contribution.
        texts: share of generated texts that are the same.
        right: whether all this is within what the dtype allows.
    """

    bundle: str
    types: float
    log_probabilities: float
    contributions: float
    texts: float
    right: bool


def agreement(bundle: Path, device: str) -> Agreement:
    """Ask both servers of a bundle `FAMILY/DTYPE` the same."""
    with serving(bundle) as server, model_of(server) as model:
        expected = _answers(model)
    with serving(bundle, "--device", device) as server, model_of(server) as model:
        got = _answers(model)
    types, contributions, differences, largest, same = [], [], [], [], []
    for ours, theirs in zip(got, expected, strict=True):
        for name, component in theirs.components.items():
            (one,), (other,) = ours.components[name].thresholds, component.thresholds
            types.append((one.codes() != other.codes()).mean())
            contributions.append(np.abs(one.contribution.sums - other.contribution.sums).max())
        for variant, rows in theirs.predictions.items():
            for language, row in rows.items():
                mine = ours.predictions[variant][language]
                assert mine.gold_log_probability is not None
                assert row.gold_log_probability is not None
                differences.append(abs(mine.gold_log_probability - row.gold_log_probability))
                largest.append(abs(row.gold_log_probability))
                same.append(mine.text == row.text)
    relative, apart = max(differences) / max(largest), float(np.mean(types))
    most_relative, most_apart = LEGAL[bundle.name]
    return Agreement(
        bundle=f"{bundle.parent.name} {bundle.name}",
        types=apart,
        log_probabilities=relative,
        contributions=float(max(contributions)),
        texts=float(np.mean(same)),
        right=bool(relative <= most_relative and apart <= most_apart),
    )


def _answers(model: ng.Model) -> list[ng.GroupResult]:
    return [model.analyze(group, variants=_VARIANTS, contribution=True) for group in _groups()]


def _groups() -> Iterator[ng.Group]:
    for number, subject in enumerate(_SUBJECTS):
        prompts = {language: question.format(subject) for language, question in _QUESTIONS.items()}
        yield ng.Group(prompts, answers=dict.fromkeys(prompts, _SUBJECTS[number % 2]), id=str(number))


def groups_a_second(bundle: Path, device: str, groups: int) -> dict[str, float]:
    """Throughput of a server on the device, of ten prompts of XNLI's lengths a group, by what is wanted."""
    prompter = Prompter(bundle)
    controls = [ng.deactivate(ng.control(ng.ALL_SHARED, ng.ControlKind.RANDOM_ACTIVE, draw=draw)) for draw in range(6)]
    variants = {f"control {draw}": control for draw, control in enumerate(controls)}
    wanted: dict[str, AnalysisKeywords] = {
        "types and contributions": AnalysisKeywords(contribution=True, predict=False),
        "and 6 variants": AnalysisKeywords(contribution=True, variants=variants, generate=False),
        "and generated": AnalysisKeywords(contribution=True, variants=variants),
    }
    rates = {}
    with serving(bundle, "--device", device) as server, model_of(server) as model:
        for what, asked in wanted.items():
            questions = prompter.inferences(groups + 1)
            model.analyze(questions[0], **asked)
            start = time.perf_counter()
            outcomes = list(model.analyze_many(questions[1:], **asked))
            assert all(isinstance(one, ng.GroupResult) for one in outcomes), outcomes
            rates[what] = groups / (time.perf_counter() - start)
    return rates
