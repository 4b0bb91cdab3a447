"""The finding of a run in one or two sentences: which type's loss costs more than that of random neurons."""

from __future__ import annotations

from collections.abc import Sequence

from neuroglot.analyses.accuracy.effects import Effect
from neuroglot.analyses.accuracy.predictions import Metric
from neuroglot.analyses.base.statistics import p_words
from neuroglot.report.words import nats, points, signed
from neuroglot.request.selections import ControlKind

ALPHA = 0.01
"""Significance level for corrected p-values."""

_RANDOM = {
    ControlKind.RANDOM: "as many random neurons",
    ControlKind.RANDOM_ACTIVE: "as many random active neurons",
    ControlKind.RANDOM_MASS: "random neurons of the same contribution",
}
"""What a control deactivates, as short as a headline needs it."""


def headline(effects: Sequence[Effect]) -> str:
    """Which type's loss costs more, or less, than the loss of random neurons."""
    exact = [effect for effect in effects if effect.metric is Metric.EXACT]
    log_probability = [effect for effect in effects if effect.metric is Metric.LOG_PROBABILITY]
    return f"{_in_exact_match(exact)} {_in_log_probability(log_probability)}"


def _in_exact_match(effects: Sequence[Effect]) -> str:
    found, missed = _split(effects)
    if not found:
        nearest = min(missed, key=lambda effect: effect.p_holm)
        return (
            f"In exact match ({nearest.baseline:.1f} % with all neurons), no type's loss was found to differ from that "
            f"of {_RANDOM[ControlKind(nearest.against)]} (nearest to it: {nearest.type}, {points(nearest.difference)}, "
            f"corrected {p_words(nearest.p_holm)})."
        )
    first, *others = sorted(found, key=lambda effect: effect.difference)
    sentences = [
        f"Losing the {first.type} neurons {_verb(first)} than losing {_RANDOM[ControlKind(first.against)]}: exact "
        f"match goes from {first.baseline:.1f} % to {first.without:.1f} %, and without random ones to "
        f"{first.reference:.1f} % (difference {points(first.difference)}, 95 % interval {signed(first.low)} to "
        f"{signed(first.high)}, corrected {p_words(first.p_holm)}).",
        *(
            f"Losing the {one.type} neurons {_verb(one)} than random ones: it goes to {one.without:.1f} %, and without "
            f"random ones to {one.reference:.1f} % ({points(one.difference)}, {p_words(one.p_holm)})."
            for one in others
        ),
        *(
            f"For the {one.type} neurons no difference from random ones was found ({points(one.difference)}, "
            f"{p_words(one.p_holm)})."
            for one in missed
        ),
    ]
    return " ".join(sentences)


def _verb(effect: Effect) -> str:
    return "costs more" if effect.difference < 0 else "costs less"


def _in_log_probability(effects: Sequence[Effect]) -> str:
    found, missed = _split(effects)
    if not found:
        return "In the log-probability of the gold answer, no type's loss was found to differ from random ones."
    listed = [
        f"{one.type} {nats(one.without - one.baseline)} nats, random {nats(one.reference - one.baseline)} "
        f"({p_words(one.p_holm)})"
        for one in found
    ]
    none = f"; no difference was found for {' and '.join(one.type for one in missed)}" if missed else ""
    return f"The log-probability of the gold answer tells them apart: without {'; without '.join(listed)}{none}."


def _split(effects: Sequence[Effect]) -> tuple[list[Effect], list[Effect]]:
    """Those that differ from their control, and the others."""
    found = [effect for effect in effects if effect.p_holm < ALPHA]
    return found, [effect for effect in effects if effect not in found]
