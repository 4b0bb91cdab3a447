"""Dead neurons: inactive at every token of a prompt, by transformers' own activations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from neuroglot.definitions.packing import unpack_bits
from neuroglot_server.core import Analysis, Group, GroupResult, Prediction, Row
from tests.checkpoints import CONFIGS, RandomModel
from tests.server import reference
from tests.server.serving import CAPITALS, served

DEAD = Analysis(thresholds=(0.0, 0.5), dead=True, active_bitmaps=True, prediction=Prediction(generate=True))
GROUP = Group("FR", (*CAPITALS.rows, Row("one", (17,)), Row("two", (17, 23), ("Paris",))))


def after_others(bundle: Path) -> GroupResult:
    """The result of a model that has the prompts in its cache."""

    async def ask() -> GroupResult:
        async with served(bundle) as model:
            await model.analyze(GROUP, Analysis(prediction=Prediction()))
            return await model.analyze(GROUP, DEAD)

    return asyncio.run(ask())


@pytest.mark.parametrize("family", CONFIGS)
def test_neurons_are_dead_where_no_token_of_the_prompt_activates_them(
    family: str, random_model: Callable[[str], RandomModel]
) -> None:
    _, checkpoint, bundle = random_model(family)
    model = reference.load(checkpoint, family)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    result = after_others(bundle)
    for index, row in enumerate(GROUP.rows):
        prompt = tokenizer.encode(row.prompt).ids if isinstance(row.prompt, str) else list(row.prompt)
        activations = reference.watched(model, prompt)
        for component in result.components:
            for found in component.thresholds:
                dead = ~(activations[component.component] > found.threshold).any(axis=1)
                assert found.dead_counts is not None
                assert found.dead_counts[:, index].tolist() == dead.sum(axis=-1).tolist()
                bits = unpack_bits(found.dead_bitmaps[index], (component.layers, component.neurons))
                np.testing.assert_array_equal(bits, dead)


def test_dead_neurons_are_not_computed_by_default(bloom_bundle: Path) -> None:
    async def ask() -> GroupResult:
        async with served(bloom_bundle) as model:
            return await model.analyze(CAPITALS, Analysis())

    assert asyncio.run(ask()).components[0].thresholds[0].dead_counts is None
