"""Records the probe of a bundle: a fixed request, and its results computed independently of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from neuroglot.definitions.bundle import TOKENIZER, ModelFacts
from neuroglot.definitions.packing import pack_bits, pack_codes
from neuroglot.definitions.probe import MIN_ROWS
from neuroglot.v1 import analysis_pb2, group_pb2, result_pb2
from neuroglot.v1.probe_pb2 import Probe, UncertainNeurons
from neuroglot_exporter.errors import VerificationError
from neuroglot_exporter.verification.exported import ExportedModel
from neuroglot_exporter.verification.measurement import TOLERANCES
from neuroglot_exporter.verification.observation import DECODER, ENCODER, Floats, Intervention, Observation
from neuroglot_exporter.verification.rows import LOGIT_POSITIONS, Row

Run: TypeAlias = Callable[[Row, Intervention | None], Observation]
"""Computes one row, optionally under an intervention."""

_PROMPTS = {
    "en": ("The capital of France is", 3),
    "de": ("Die Hauptstadt von Frankreich ist", 5),
    "es": ("La capital de Francia es", 8),
}
"""By label: a text, and the number of its first tokens that make the prompt. Lengths differ, to have padded rows."""

_ANSWERS = ("Paris", "7", "a", "Madrid")
"""Candidates: the first two of a valid number of tokens are the answer and the choice of each row."""

_SEPARATOR = " "
_ADDED = 0.125


class _Variant(NamedTuple):
    """An intervention of the probe: `kind` is `deactivate`, of all-shared neurons, or `add`, to every neuron."""

    kind: str
    component: str

    @property
    def name(self) -> str:
        return f"{self.kind}.{self.component}"

    @property
    def message(self) -> analysis_pb2.Variant:
        """The variant as a message."""
        every = (
            analysis_pb2.NEURON_TYPE_NON_ACTIVATED,
            analysis_pb2.NEURON_TYPE_SPECIFIC,
            analysis_pb2.NEURON_TYPE_PARTIAL_SHARED,
            analysis_pb2.NEURON_TYPE_ALL_SHARED,
        )
        types = every[-1:] if self.kind == "deactivate" else every
        intervention = analysis_pb2.Intervention(
            selection=analysis_pb2.Selection(types=analysis_pb2.TypeSelection(types=types)),
            component=self.component,
            scope=analysis_pb2.SCOPE_LAST_PROMPT_TOKEN,
        )
        if self.kind == "deactivate":
            intervention.deactivate.SetInParent()
        else:
            intervention.add.value = _ADDED
        return analysis_pb2.Variant(name=self.name, interventions=[intervention])

    def on(self, tokens: int, position: int, all_shared: NDArray[np.bool_]) -> Intervention:
        """The intervention at one position of a row of `tokens` tokens; `all_shared` is `[layers, neurons]`."""
        layers, neurons = all_shared.shape
        mask = np.ones((layers, tokens, neurons), np.float32)
        override = np.zeros_like(mask)
        if self.kind == "deactivate":
            mask[:, position][all_shared] = 0
        else:
            override[:, position] = _ADDED
        return Intervention(self.component, mask, override)


class _ProbeRow(NamedTuple):
    """A row of the request.

    Attributes:
        label: its label.
        prompt: its token ids.
        targets: token ids of the answer and of the choice.
    """

    label: str
    prompt: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]

    def tokens(self, target: Sequence[int], start: int | None) -> Row:
        """The row with a target's tokens but the last; `start` is the decoder's start token."""
        if start is None:
            return {DECODER: (*self.prompt, *target[:-1])}
        return {ENCODER: self.prompt, DECODER: (start, *target[:-1])}

    def last_prompt_position(self, component: str, start: int | None) -> int:
        """Position of a component's last prompt token, or of the start token in the decoder of an encoder-decoder."""
        return 0 if start is not None and component == DECODER else len(self.prompt) - 1


def record_of_graphs(bundle: Path, facts: ModelFacts) -> Probe:
    """Record the results of the bundle's graphs in plain ONNX Runtime.

    Raises:
        VerificationError: as `record`.
    """
    return record(ExportedModel(bundle, facts).run_row, bundle, facts, "onnxruntime")


def record(run: Run, bundle: Path, facts: ModelFacts, computed_by: str) -> Probe:
    """Record the request and its results.

    Args:
        run: computes a row.
        bundle: its folder, whose tokenizer is read.
        facts: facts about the model.
        computed_by: name of what computes `run`, for the probe.

    Raises:
        VerificationError: the tokenizer has too few tokens for a request.
    """
    texts, rows = _rows(Tokenizer.from_file(str(bundle / TOKENIZER)), facts)
    variants = [_Variant(kind, one.name) for one in facts.components for kind in ("deactivate", "add")]
    start = facts.decoder_start_token_id
    tolerance = TOLERANCES[facts.dtype]
    baseline = [[run(row.tokens(target, start), None) for target in row.targets] for row in rows]
    expected = result_pb2.GroupResult(
        rows=[result_pb2.RowResult(label=row.label, gold_token_ids=row.targets[0]) for row in rows]
    )
    uncertain = []
    all_shared: dict[str, NDArray[np.bool_]] = {}
    for component in facts.components:
        name = component.name
        last = np.stack(
            [
                seen[0].activations[name][:, row.last_prompt_position(name, start)]
                for row, seen in zip(rows, baseline, strict=True)
            ]
        )
        active = last > 0
        allowed = tolerance.difference * max(tolerance.floor, float(np.abs(last).max()))
        all_shared[name] = np.logical_and.reduce(active)
        threshold = result_pb2.ThresholdResult(
            type_map=pack_codes(_types(active)), active_bitmaps=map(pack_bits, active)
        )
        expected.components.append(
            result_pb2.ComponentResult(
                component=name, layers=component.layers, neurons=component.neurons, thresholds=[threshold]
            )
        )
        uncertain.append(UncertainNeurons(component=name, bitmaps=map(pack_bits, np.abs(last) <= allowed)))
    expected.variants.append(
        result_pb2.VariantResult(
            name="baseline",
            predictions=[_prediction(row.targets, seen) for row, seen in zip(rows, baseline, strict=True)],
        )
    )
    for variant, predictions in _under_variants(run, rows, variants, all_shared, start):
        expected.variants.append(result_pb2.VariantResult(name=variant.name, predictions=predictions))
    largest = max(float(np.abs(seen.logits).max()) for of_row in baseline for seen in of_row)
    longest = max(len(target) for row in rows for target in row.targets)
    return Probe(
        group=_group(texts, rows),
        analysis=analysis_pb2.Analysis(
            type_map=True,
            active_bitmaps=True,
            prediction=analysis_pb2.Prediction(),
            variants=[variant.message for variant in variants],
        ),
        expected=expected,
        uncertain=uncertain,
        # The log-probability of a token is a difference of two numbers, each as far off as a logit.
        log_probability_tolerance=2 * longest * tolerance.difference * max(tolerance.floor, largest),
        type_flips_tolerance=tolerance.type_flips,
        computed_by=computed_by,
    )


def _under_variants(
    run: Run,
    rows: Sequence[_ProbeRow],
    variants: Sequence[_Variant],
    all_shared: Mapping[str, NDArray[np.bool_]],
    start: int | None,
) -> Iterator[tuple[_Variant, list[result_pb2.RowPrediction]]]:
    for variant in variants:
        predictions = []
        for row in rows:
            position = row.last_prompt_position(variant.component, start)
            seen = []
            for target in row.targets:
                tokens = row.tokens(target, start)
                change = variant.on(len(tokens[variant.component]), position, all_shared[variant.component])
                seen.append(run(tokens, change))
            predictions.append(_prediction(row.targets, seen))
        yield variant, predictions


def _rows(tokenizer: Tokenizer, facts: ModelFacts) -> tuple[list[str], list[_ProbeRow]]:
    """The texts of answer and choice, and the rows."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    before = "" if facts.decoder_start_token_id is not None else _SEPARATOR
    longest_target = LOGIT_POSITIONS if facts.max_positions is None else min(LOGIT_POSITIONS, facts.max_positions)

    targets: dict[str, tuple[int, ...]] = {}
    for text in _ANSWERS:
        tokens = tuple(tokenizer.encode(before + text, add_special_tokens=False).ids)
        if 0 < len(tokens) <= longest_target and len(targets) < 2:
            targets[text] = tokens
    if not targets:
        raise VerificationError(
            f"the tokenizer reads none of {', '.join(_ANSWERS)} as 1 to {longest_target} tokens, so that the probe has "
            "no answer"
        )
    longest = max(map(len, targets.values()))
    rows = []
    for label, (text, length) in _PROMPTS.items():
        if facts.max_positions is not None:
            length = max(1, min(length, facts.max_positions - longest))
        if prompt := tuple(tokenizer.encode(text).ids)[:length]:
            rows.append(_ProbeRow(label, prompt, tuple(targets.values())))
    if len(rows) < MIN_ROWS:
        raise VerificationError(
            f"the tokenizer has tokens for {len(rows)} of {len(_PROMPTS)} prompts of the probe, expected at least "
            f"{MIN_ROWS}"
        )
    return list(targets), rows


def _group(texts: Sequence[str], rows: Sequence[_ProbeRow]) -> group_pb2.Group:
    answer, *choices = texts
    return group_pb2.Group(
        id="probe",
        rows=[
            group_pb2.Row(
                label=row.label,
                token_ids=group_pb2.TokenIds(ids=row.prompt),
                answers=[answer],
                separator=_SEPARATOR,
                choices=choices,
            )
            for row in rows
        ],
    )


def _types(active: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Type codes, `[layers, neurons]`, of active neurons, `[rows, layers, neurons]`."""
    count = active.sum(axis=0)
    return np.select([count == 0, count == len(active), count == 1], [0, 3, 1], 2).astype(np.uint8)


def _prediction(targets: Sequence[Sequence[int]], seen: Sequence[Observation]) -> result_pb2.RowPrediction:
    """Log-probabilities of a row's answer and choice, from the logits of each."""
    answer, *choices = [_log_probability(one.logits, target) for target, one in zip(targets, seen, strict=True)]
    return result_pb2.RowPrediction(gold_log_probability=answer, choice_log_probabilities=choices)


def _log_probability(logits: Floats, target: Sequence[int]) -> float:
    """Of all tokens of a target, which the last logits `[positions, vocabulary]` predict; in nats."""
    last = logits[-len(target) :].astype(np.float64)
    last -= last.max(axis=-1, keepdims=True)
    log_probabilities = last - np.log(np.exp(last).sum(axis=-1, keepdims=True))
    return float(log_probabilities[np.arange(len(target)), list(target)].sum())
