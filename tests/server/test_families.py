"""Results of a served causal model of each family, against the definitions and transformers with hooks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tokenizers import Tokenizer

from neuroglot.definitions.packing import unpack_bits, unpack_codes
from neuroglot_server.core import (
    Analysis,
    ByType,
    Contribution,
    GroupResult,
    Intervention,
    NeuronType,
    Prediction,
    Scope,
    Variant,
)
from tests import definitions
from tests.checkpoints import RandomModel
from tests.exporter.reference import TOLERANCE, Transformers
from tests.server import reference
from tests.server.reference import ACTIONS, CAUSAL, Change
from tests.server.serving import CAPITALS, analyze

EOS = 2
PARTIAL = ByType((NeuronType.PARTIAL_SHARED,))
CHANGES = {f"{action}, {scope}": (action, scope) for action, scope in product(ACTIONS, Scope)}
ANALYSIS = Analysis(
    thresholds=(0.0, 0.5),
    type_map=True,
    active_bitmaps=True,
    contribution=Contribution(),
    prediction=Prediction(generate=True),
    variants=tuple(
        Variant(name, (Intervention(PARTIAL, ACTIONS[action][0], scope=scope),))
        for name, (action, scope) in CHANGES.items()
    ),
)


class Served(NamedTuple):
    bundle: Path
    result: GroupResult
    transformers: Transformers
    prompts: list[list[int]]
    newlines: set[int]
    """Tokens that end a generation like EOS, but are included in it."""
    taps: dict[str, np.ndarray]
    """Activations at the last prompt tokens, `[rows, layers, neurons]`."""


@pytest.fixture(scope="module", params=CAUSAL)
def served(request: pytest.FixtureRequest, random_model: Callable[[str], RandomModel]) -> Served:
    family, checkpoint, bundle = random_model(request.param)
    transformers = Transformers(checkpoint, family)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    prompts = [tokenizer.encode(row.prompt).ids for row in CAPITALS.rows]
    runs = [transformers.run(prompt) for prompt in prompts]
    taps = {tap: np.stack([run[tap][:, -1] for run in runs]) for tap in ("activation", "coefficient")}
    newlines = {token for token in range(tokenizer.get_vocab_size()) if "\n" in tokenizer.decode([token])}
    return Served(bundle, analyze(bundle, CAPITALS, ANALYSIS), transformers, prompts, newlines, taps)


def test_types_and_active_neurons_are_those_of_transformers(served: Served) -> None:
    activations = served.taps["activation"]
    _, layers, neurons = activations.shape
    (component,) = served.result.components
    for result in component.thresholds:
        codes = definitions.type_codes(activations, result.threshold)
        assert len(np.unique(codes)) >= 3
        assert (unpack_codes(result.type_map, (layers, neurons)) == codes).all()
        for packed, of_row in zip(result.active_bitmaps, activations > result.threshold, strict=True):
            assert (unpack_bits(packed, (layers, neurons)) == of_row).all()


def test_contributions_use_the_coefficients(served: Served) -> None:
    result = served.result.components[0].thresholds[0].contribution
    assert result is not None
    coefficients, activations = served.taps["coefficient"], served.taps["activation"]
    for layer, sets in enumerate(definitions.types(activations)):
        path = served.transformers.modules.down_projection.format(i=layer)
        values = served.transformers.model.get_submodule(path).weight.detach().numpy().T
        for row in range(len(coefficients)):
            shares = definitions.contributions(coefficients[row, layer].tolist(), values)
            top = definitions.top_neurons(shares, 5)
            assert result.top_counts[row, layer].tolist() == [len(top & members) for members in sets.values()]
            expected = [sum(shares[neuron] for neuron in members) for members in sets.values()]
            np.testing.assert_allclose(result.sums[row, layer], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["baseline", *CHANGES])
def test_predictions_match_transformers_with_hooks(served: Served, name: str) -> None:
    variant = next(variant for variant in served.result.variants if variant.name == name)
    members = reference.of_type(served.taps["activation"], "partial_shared")
    effects = []
    for index, prompt in enumerate(served.prompts):
        changes = []
        if name != "baseline":
            action, scope = CHANGES[name]
            # Only neurons that are inactive in this very row can be converted.
            chosen = members & (served.taps["activation"][index] <= 0) if action == "convert" else members
            changes = [Change(chosen, ACTIONS[action][1], scope.before_last, scope.generated)]
        prediction, gold = variant.predictions[index], served.result.rows[index].gold_token_ids
        expected = reference.gold_log_probability(served.transformers, prompt, gold, changes)
        assert prediction.gold_log_probability == pytest.approx(expected, abs=TOLERANCE)
        greedy = reference.greedy(served.transformers, prompt, changes, len(gold) + 4, {EOS})
        end = next((index + 1 for index, token in enumerate(greedy) if token in served.newlines), len(greedy))
        assert list(prediction.token_ids) == greedy[:end]
        effects.append(abs(expected - reference.gold_log_probability(served.transformers, prompt, gold)))
    assert name == "baseline" or max(effects) >= 100 * TOLERANCE
