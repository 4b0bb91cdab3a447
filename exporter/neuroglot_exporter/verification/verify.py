"""Verifies a bundle: the same texts through its graph and through transformers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from neuroglot.bundle import TOKENIZER, ModelFacts
from neuroglot_exporter.errors import VerificationError
from neuroglot_exporter.families.family import Family
from neuroglot_exporter.verification.exported import ExportedGraph
from neuroglot_exporter.verification.observation import Floats, Intervention, Observation
from neuroglot_exporter.verification.reference import Reference

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TOLERANCE = 1e-4
"""Largest difference that passes in float32: absolute, and relative to the largest value where that is above 1."""

MOST_TYPE_FLIPS = 1e-3
"""Largest share of neurons that may be active in one and not in the other."""

TEXTS = (
    "The capital of France is",
    "Die Hauptstadt von Frankreich ist",
    "La capital de Francia es",
    "Столица Франции —",
    "เมืองหลวงของฝรั่งเศสคือ",
    "Türkiye'nin başkenti",
    "Thủ đô của Pháp là",
    "法国的首都是",
)

_SHARE_OF_NEURONS = 0.25
_OVERRIDES = {"deactivate": 0.0, "override": 1.0}
_SEED = 0


@dataclass(frozen=True)
class Measurement:
    """How far the exported graph is from transformers.

    Attributes:
        difference: the largest absolute difference.
        magnitude: the largest absolute value that transformers computes.
        effect: by how much, at most, the intervention moves what transformers computes; None where there is none.
    """

    difference: float
    magnitude: float
    effect: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance; not so where it is not a number."""
        return self.difference <= TOLERANCE * max(1.0, self.magnitude)


@dataclass(frozen=True)
class Verification:
    """What the comparison measured.

    Attributes:
        texts: how many texts: in one left-padded batch through the graph, each alone through transformers.
        positions: their tokens.
        tolerance: `TOLERANCE`.
        measurements: by what was compared: `activations`, `coefficients` (where gated), `logits`; the same with `past.`
            before it, at the last position, after the keys and values of the others; `deactivate.logits` and
            `override.logits`, with random neurons of every layer changed, other ones in every row.
        neurons: how many activations were compared, layers x positions x neurons.
        type_flips: how many of them are active (above 0) in one and not in the other.
    """

    texts: int
    positions: int
    tolerance: float
    measurements: dict[str, Measurement]
    neurons: int
    type_flips: int


def verify(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    family: Family,
    facts: ModelFacts,
    folder: Path,
    texts: Sequence[str] = TEXTS,
) -> Verification:
    """Compare a bundle's graph with the model that it was made from.

    Args:
        model: of transformers, float32, in eval mode.
        tokenizer: its tokenizer.
        family: its family.
        facts: about the bundle.
        folder: of the bundle; graph, weights and tokenizer are read.
        texts: to compare on.

    Raises:
        VerificationError: something differs by more than the tolerance, or too many neurons change their type.
    """
    (component,) = facts.components
    rows = [row[: facts.max_positions] for row in _tokenize(tokenizer, folder, texts)]
    exported = ExportedGraph(folder, component)
    reference = Reference(model, family.ffns[0].layers(model.config), gated=component.gated)

    expected = [reference.run(row) for row in rows]
    computed = exported.run(rows)
    measurements = _compare(computed, expected)
    after_past = _compare(exported.run_last_after_past(rows), [seen.last_position() for seen in expected])
    measurements |= {f"past.{what}": measurement for what, measurement in after_past.items()}
    generator = np.random.default_rng(_SEED)
    for name, value in _OVERRIDES.items():
        interventions = [_random_intervention(generator, seen.activations.shape, value) for seen in expected]
        changed = [reference.run(row, change) for row, change in zip(rows, interventions, strict=True)]
        measurements[f"{name}.logits"] = _measure(
            [seen.logits for seen in exported.run(rows, interventions)],
            [seen.logits for seen in changed],
            [seen.logits for seen in expected],
        )
    verification = Verification(
        texts=len(texts),
        positions=sum(map(len, rows)),
        tolerance=TOLERANCE,
        measurements=measurements,
        neurons=sum(seen.activations.size for seen in expected),
        type_flips=sum(
            int(np.count_nonzero((one.activations > 0) != (other.activations > 0)))
            for one, other in zip(computed, expected, strict=True)
        ),
    )
    _refuse_differences(verification)
    return verification


def _tokenize(tokenizer: PreTrainedTokenizerFast, folder: Path, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of texts, from the bundle's own tokenizer.

    Raises:
        VerificationError: transformers tokenizes one of them otherwise.
    """
    own = Tokenizer.from_file(str(folder / TOKENIZER))
    rows = []
    for text in texts:
        token_ids, expected = own.encode(text).ids, tokenizer(text).input_ids
        if token_ids != expected:
            raise VerificationError(
                f"the bundle's tokenizer turns {text!r} into {token_ids}, transformers into {expected}"
            )
        rows.append(token_ids)
    return rows


def _random_intervention(generator: np.random.Generator, shape: tuple[int, ...], value: float) -> Intervention:
    """Sets random neurons of every layer to a value, the same at every position of `[layers, positions, neurons]`."""
    layers, _, neurons = shape
    chosen = generator.random((layers, 1, neurons)) < _SHARE_OF_NEURONS
    mask = np.broadcast_to(np.where(chosen, 0.0, 1.0), shape).astype(np.float32)
    return Intervention(mask, np.broadcast_to(np.where(chosen, value, 0.0), shape).astype(np.float32))


def _compare(computed: Sequence[Observation], expected: Sequence[Observation]) -> dict[str, Measurement]:
    return {
        tap: _measure([seen.taps()[tap] for seen in computed], [seen.taps()[tap] for seen in expected])
        for tap in expected[0].taps()
    }


def _measure(
    computed: Sequence[Floats], expected: Sequence[Floats], without: Sequence[Floats] | None = None
) -> Measurement:
    """Compare arrays one by one; `without` is what transformers computes without the intervention."""
    return Measurement(
        difference=_largest_difference(computed, expected),
        magnitude=float(max(np.abs(array).max() for array in expected)),
        effect=None if without is None else _largest_difference(without, expected),
    )


def _largest_difference(arrays: Sequence[Floats], others: Sequence[Floats]) -> float:
    return float(np.max([np.abs(array - other).max() for array, other in zip(arrays, others, strict=True)]))


def _refuse_differences(verification: Verification) -> None:
    failed = [
        f"{what} by {measured.difference:.2g} (values up to {measured.magnitude:.2g})"
        for what, measured in verification.measurements.items()
        if not measured.holds
    ]
    if failed:
        raise VerificationError(
            f"the exported graph differs from transformers: {', '.join(failed)}; allowed is {TOLERANCE:g}, relative "
            "where values exceed 1"
        )
    if verification.type_flips > MOST_TYPE_FLIPS * verification.neurons:
        raise VerificationError(
            f"{verification.type_flips} of {verification.neurons} neurons are active in the exported graph and not in "
            f"transformers, or the other way round; allowed is a share of {MOST_TYPE_FLIPS:g}"
        )
