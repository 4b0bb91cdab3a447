"""Raw activations match those of transformers, for every request and every batch size."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neuroglot_server.core import ANYONE, Capture, CapturedLayer, InvalidRequest, QueueFull, Row, Settings
from neuroglot_server.models.model import Model
from tests.checkpoints import CONFIGS, RandomModel
from tests.exporter.reference import TOLERANCE
from tests.server import reference
from tests.server.reference import ENCODER_DECODERS
from tests.server.serving import Recorder, served

PROMPT = tuple(4 + (11 * number) % 316 for number in range(40))
ROW = Row("en", PROMPT)


def captured(
    bundle: Path, capture: Capture, settings: Settings | None = None, recorder: Recorder | None = None
) -> list[CapturedLayer]:
    async def ask() -> list[CapturedLayer]:
        async with served(bundle, settings, recorder) as model:
            return [layer async for layer in model.capture(ROW, capture)]

    return asyncio.run(ask())


@pytest.mark.parametrize("coefficients", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_all_positions_are_those_of_transformers(
    family: str, coefficients: bool, random_model: Callable[[str], RandomModel]
) -> None:
    _, checkpoint, bundle = random_model(family)
    tap = "coefficient" if coefficients else "activation"
    watched = reference.watched(reference.load(checkpoint, family), PROMPT, tap)
    for component, expected in watched.items():
        layers = captured(bundle, Capture(component, coefficients=coefficients))
        assert [layer.layer for layer in layers] == list(range(len(expected)))
        for layer, values in zip(layers, expected, strict=True):
            assert layer.positions.tolist() == list(range(values.shape[0]))
            np.testing.assert_allclose(layer.values, values, atol=TOLERANCE, rtol=1e-5)


@pytest.mark.parametrize("family", [family for family in CONFIGS if family not in ENCODER_DECODERS])
@pytest.mark.parametrize("positions", [(), (-1,), (39, 3, -40, 3), (5, 6)])
def test_small_batches_do_not_change_the_values(
    family: str, positions: tuple[int, ...], random_model: Callable[[str], RandomModel]
) -> None:
    bundle = random_model(family).bundle
    some, every = Capture(layers=(0, 2), neurons=(1, 5, 60), positions=positions), Capture(positions=positions)
    cramped = Recorder()
    little, much = (captured(bundle, one, Settings(threads=1, batch_bytes=66_800), cramped) for one in (some, every))
    everything = captured(bundle, Capture())
    chosen = [position % len(PROMPT) for position in positions] or list(range(len(PROMPT)))
    assert [layer.layer for layer in little] == [0, 2]
    assert [layer.layer for layer in much] == [0, 1, 2]
    for layer in (*little, *much):
        assert layer.positions.tolist() == chosen
        neurons = [1, 5, 60] if layer.values.shape[1] == 3 else range(layer.values.shape[1])
        expected = everything[layer.layer].values[np.ix_(chosen, neurons)]
        np.testing.assert_allclose(layer.values, expected, atol=1e-5)
    all_fit = family == "xglm" and positions == (39, 3, -40, 3)  # each capture just fits into one chunk
    assert len(cramped.runs) > 2 or all_fit


def test_tokens_after_the_last_requested_position_are_not_run(bloom_bundle: Path) -> None:
    recorder = Recorder()
    captured(bloom_bundle, Capture(positions=(3, 7)), recorder=recorder)
    assert recorder.tokens == 8


def test_positions_outside_the_prompt_are_refused(bloom_bundle: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"it has 40 tokens \(0 to 39, or -40 to -1 from its end\)") as refusal:
        captured(bloom_bundle, Capture(positions=(0, 40, -41)))
    assert [violation.field for violation in refusal.value.violations] == ["positions[1]", "positions[2]"]


def test_the_encoder_of_an_encoder_decoder_must_be_named(random_model: Callable[[str], RandomModel]) -> None:
    with pytest.raises(InvalidRequest, match="name encoder or decoder"):
        captured(random_model("mt0").bundle, Capture())


def test_an_abandoned_capture_frees_its_capacity(bloom_bundle: Path) -> None:
    async def leave(model: Model) -> None:
        layers = model.capture(ROW, Capture(), ANYONE)
        await anext(layers)
        with pytest.raises(QueueFull):
            await anext(model.capture(ROW, Capture(), ANYONE))
        await layers.aclose()
        assert len([layer async for layer in model.capture(ROW, Capture(), ANYONE)]) == 3

    async def run() -> None:
        async with served(bloom_bundle, Settings(threads=1, queue_tokens=50)) as model:
            await leave(model)

    asyncio.run(run())
