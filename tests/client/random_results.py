"""Group results made from random activations by a plain reading of the definitions, without a server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuroglot.analyses.base.ablations import ABLATED, Ablations
from neuroglot.analyses.base.conversions import Conversions
from neuroglot.analyses.registry import ANALYSES
from neuroglot.definitions.packing import pack_bits, pack_codes
from neuroglot.results.results import GroupResult
from neuroglot.runs.run import Run, Settings, data_hash, to_lines
from neuroglot.tasks import capital_prompts as capitals
from neuroglot.v1 import result_pb2

IDENTITY = "5e" * 32


@dataclass(frozen=True)
class Example:
    """A random group: its result, and the activations `[languages, layers, neurons]` that it was made from.

    Attributes:
        peaks: the largest activation at any token of the prompt, of that shape too.
        directions: products of the value rows with each row's output embedding of r, of that shape too.
    """

    result: GroupResult
    activations: NDArray[np.float64]
    norms: NDArray[np.float64]
    peaks: NDArray[np.float64]
    directions: NDArray[np.float64]


def random_examples(
    seed: int,
    languages: Sequence[str],
    count: int,
    ablations: Ablations,
    layers: int = 3,
    neurons: int = 41,
    component: str = "decoder",
    thresholds: Sequence[float] = (0.0,),
) -> list[Example]:
    """Groups `S0/0`, `S0/1`, `S0/2`, `S1/0`, ...: three wordings of one fact each, alike in difficulty."""
    rng, others = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    norms = rng.uniform(0.5, 2, size=(layers, neurons))
    easy = rng.uniform(-0.05, 0.05, size=count // 3 + 1)
    lean = rng.normal(-0.6, 0.6, size=(layers, neurons))
    examples = []
    for number in range(count):
        common = rng.normal(0, 0.7, size=(layers, neurons))
        activations = lean + common + rng.normal(0, 0.8, size=(len(languages), layers, neurons))
        message = result_pb2.GroupResult(group_id=f"S{number // 3}/{number % 3}")
        for language in languages:
            gold = rng.integers(0, 30, size=rng.integers(1, 4)).tolist()
            message.rows.add(
                label=language,
                prompt_tokens=5,
                last_token_id=int(others.integers(0, 3)),
                gold_token_ids=gold,
                gold_is_joint=bool(rng.random() < 0.8),
            )
        peaks = activations + others.exponential(0.5, size=activations.shape)
        directions = others.normal(size=activations.shape)
        message.components.append(_component(component, activations, norms, peaks, thresholds))
        if component == "decoder":
            message.components[0].thresholds[0].effective_score.CopyFrom(_effective_scores(activations, directions))
        _add_predictions(message, rng, easy[number // 3], activations, ablations)
        message.provenance.bundle_identity = IDENTITY
        message.provenance.model = "random"
        message.provenance.server_version = "0.1.0"
        examples.append(Example(GroupResult(message), activations, norms, peaks, directions))
    return examples


def two_components(decoder: Example, encoder: Example) -> GroupResult:
    """The first example's result, with the components of both, the encoder's first."""
    message = result_pb2.GroupResult()
    message.CopyFrom(decoder.result.message)
    message.components.insert(0, encoder.result.message.components[0])
    return GroupResult(message)


def type_code(active: Sequence[bool]) -> int:
    """Eq. 4 to 7: 0 non-activated, 1 specific, 2 partial-shared, 3 all-shared."""
    count = sum(active)
    if count == len(active):
        return 3
    return min(count, 2)


def top_contributors(magnitudes: NDArray[np.float64]) -> set[int]:
    """The ceil(5 %) neurons of a layer with the largest contribution."""
    k = math.ceil(0.05 * len(magnitudes))
    return set(sorted(range(len(magnitudes)), key=lambda neuron: -magnitudes[neuron])[:k])


def _component(
    name: str,
    activations: NDArray[np.float64],
    norms: NDArray[np.float64],
    peaks: NDArray[np.float64],
    thresholds: Sequence[float],
) -> result_pb2.ComponentResult:
    _, layers, neurons = activations.shape
    results = [_threshold(activations, norms, peaks, threshold) for threshold in thresholds]
    for result in results[1:]:
        del result.contribution.top_bitmaps[:]
    return result_pb2.ComponentResult(component=name, layers=layers, neurons=neurons, thresholds=results)


def _threshold(
    activations: NDArray[np.float64], norms: NDArray[np.float64], peaks: NDArray[np.float64], threshold: float
) -> result_pb2.ThresholdResult:
    rows, layers, neurons = activations.shape
    active, dead = activations > threshold, peaks <= threshold
    codes = [[type_code(active[:, layer, neuron].tolist()) for neuron in range(neurons)] for layer in range(layers)]
    counts = [[of_layer.count(code) for code in range(4)] for of_layer in codes]
    top = [[[0] * 4 for _ in range(layers)] for _ in range(rows)]
    sums = [[[0.0] * 4 for _ in range(layers)] for _ in range(rows)]
    is_top = np.zeros(activations.shape, dtype=np.bool_)
    for row in range(rows):
        for layer in range(layers):
            magnitudes = np.abs(activations[row, layer]) * norms[layer]
            best = top_contributors(magnitudes)
            is_top[row, layer, sorted(best)] = True
            for neuron, code in enumerate(codes[layer]):
                top[row][layer][code] += neuron in best
                sums[row][layer][code] += magnitudes[neuron] / magnitudes.sum()
    return result_pb2.ThresholdResult(
        threshold=threshold,
        type_counts=np.ravel(counts).tolist(),
        active_counts=active.sum(axis=2).T.ravel().tolist(),
        near_threshold=2,
        type_map=pack_codes(np.array(codes, dtype=np.uint8)),
        active_bitmaps=[pack_bits(of_row) for of_row in active],
        contribution=result_pb2.ContributionResult(
            top_k=math.ceil(0.05 * neurons),
            top_counts=np.ravel(top).tolist(),
            sums=np.ravel(sums).tolist(),
            top_bitmaps=[pack_bits(of_row) for of_row in is_top],
        ),
        dead_counts=dead.sum(axis=2).T.ravel().tolist(),
        dead_bitmaps=[pack_bits(of_row) for of_row in dead],
    )


def _effective_scores(
    activations: NDArray[np.float64], directions: NDArray[np.float64]
) -> result_pb2.EffectiveScoreResult:
    rows, layers, neurons = activations.shape
    message = result_pb2.EffectiveScoreResult()
    for row in range(rows):
        for layer in range(layers):
            by_type: list[list[float]] = [[], [], [], []]
            for neuron in range(neurons):
                score = activations[row, layer, neuron] * directions[row, layer, neuron]
                by_type[type_code((activations[:, layer, neuron] > 0).tolist())].append(score)
            message.maxima.extend(max(scores, default=0) for scores in by_type)
            message.minima.extend(min(scores, default=0) for scores in by_type)
            message.sums.extend(map(sum, by_type))
    return message


def _add_predictions(
    message: result_pb2.GroupResult,
    rng: np.random.Generator,
    easy: float,
    activations: NDArray[np.float64],
    ablations: Ablations,
) -> None:
    accuracies = {"baseline": 0.95}
    for kind, without, control in zip(ABLATED, (0.90, 0.93, 0.2), (0.91, 0.93, 0.7), strict=True):
        accuracies[ablations.without(kind)] = without
        for drawn in ablations.kinds:
            accuracies |= dict.fromkeys(ablations.controls(kind, drawn), control)
    accuracies |= dict.fromkeys(Conversions().variants(), 0.94)
    for name, accuracy in accuracies.items():
        variant = message.variants.add(name=name)
        for row in range(len(activations)):
            right = bool(rng.random() < accuracy + easy - 0.015 * row)
            chosen = int(rng.integers(5, 20)) if name != "baseline" else 0
            variant.predictions.add(
                exact=right,
                gold_log_probability=float(-rng.exponential(0.2 if right else 5)),
                token_ids=[1],
                text="right" if right else "wrong",
                matches=right,
                starts_with_answer=right or bool(rng.random() < 0.1),
                selected_neurons=chosen,
                selected_active_neurons=chosen // 2,
                choice_log_probabilities=(-rng.exponential(1 + (np.arange(3) != 0) * right, size=3)).tolist(),
            )


def random_run(
    folder: Path,
    count: int,
    answered: int | None = None,
    layers: int = 3,
    neurons: int = 41,
    encoder: tuple[int, int] | None = None,
    component: str | None = None,
    analyses: tuple[str, ...] = tuple(ANALYSES),
    thresholds: tuple[float, ...] = (0.0, 0.5),
) -> Run:
    """A run of `count` groups about capitals, of which the first `answered` (all by default) have random answers.

    With `encoder`, its layers and neurons, the model has two components; `component` is the only one that is ablated.
    """
    languages, ablations = capitals.LANGUAGES, Ablations(draws=3, seed=0, component=component)
    examples = random_examples(0, languages, count, ablations, layers, neurons, thresholds=thresholds)
    results = [example.result for example in examples]
    if encoder:
        encoders = random_examples(1, languages, count, ablations, *encoder, component="encoder", thresholds=thresholds)
        results = [two_components(*pair) for pair in zip(examples, encoders, strict=True)]
    asked = [
        replace(group, id=result.group_id) for group, result in zip(capitals.groups(languages), results, strict=False)
    ]
    settings = Settings(
        task="capitals",
        task_title="Capitals",
        task_kind="fact probing",
        task_data="Random answers.",
        data_sha256=data_hash(to_lines(asked)),
        groups=count,
        languages=languages,
        model="random",
        bundle_identity=IDENTITY,
        family="mt0" if encoder else "bloom",
        source="embedded:mt0" if encoder else "embedded:bloom",
        source_revision="",
        dtype="float32",
        variants=tuple(ablations.variants()),
        analyses=analyses,
        draws=ablations.draws,
        seed=ablations.seed,
        thresholds=thresholds,
        component=component,
        replicates=100,
    )
    run = Run.create(folder, settings, asked)
    with run.session("pytest", {"neuroglot": "0.1.0"}) as recorder:
        for result in results[:answered]:
            recorder.keep(result)
    return run
