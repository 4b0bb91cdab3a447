"""Streamed generation matches the analysis and transformers' greedy decoding; its text has only whole characters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from neuroglot.definitions.packing import pack_bits
from neuroglot_server.core import (
    ANYONE,
    Analysis,
    ByContribution,
    ByNeuron,
    ByType,
    Control,
    ControlKind,
    Deactivate,
    GeneratedToken,
    Group,
    Intervention,
    InvalidRequest,
    NeuronType,
    NotFinite,
    Override,
    Prediction,
    QueueFull,
    Row,
    Scope,
    Settings,
    Variant,
)
from neuroglot_server.intake.text import Text
from neuroglot_server.models.model import Model
from neuroglot_server.plan.generate import Spelling
from tests import definitions
from tests.checkpoints import CONFIGS, SENTENCES, RandomModel
from tests.exporter.reference import TOLERANCE
from tests.server import reference
from tests.server.reference import Change
from tests.server.serving import changed_bundle, served

ROW = Row("en", "The capital of France is")
EOS = 2


def generated(
    bundle: Path,
    interventions: tuple[Intervention, ...] = (),
    max_tokens: int = 12,
    past_newlines: bool = True,
    row: Row = ROW,
) -> list[GeneratedToken]:
    async def ask() -> list[GeneratedToken]:
        async with served(bundle) as model:
            return [token async for token in model.generate(row, interventions, 0.0, max_tokens, past_newlines)]

    return asyncio.run(ask())


@pytest.mark.parametrize("scope", [None, *Scope], ids=str)
@pytest.mark.parametrize("family", CONFIGS)
def test_generated_tokens_match_transformers_with_hooks(
    family: str, scope: Scope | None, random_model: Callable[[str], RandomModel]
) -> None:
    _, checkpoint, bundle = random_model(family)
    model = reference.load(checkpoint, family)
    prompt = Tokenizer.from_file(str(bundle / "tokenizer.json")).encode(str(ROW.prompt)).ids
    interventions: tuple[Intervention, ...] = ()
    changes = []
    if scope is not None:
        neurons = np.random.default_rng(1).random(reference.watched(model, prompt)["decoder"].shape[::2]) < 0.5
        selection = ByNeuron("decoder", *neurons.shape, pack_bits(neurons))
        interventions = (Intervention(selection, Deactivate(), scope=scope),)
        changes = [Change(neurons, torch.zeros_like, scope.before_last, scope.generated)]
    streamed = generated(bundle, interventions)
    tokens = [token.id for token in streamed]
    assert tokens == reference.greedy(model, prompt, changes, 12, {EOS})
    logits = reference.logits(model, prompt, tokens[:-1], changes)
    expected = [definitions.log_probability(row, token) for row, token in zip(logits, tokens, strict=True)]
    assert [token.log_probability for token in streamed] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("family", ["bloom", "mt0"])
def test_generated_tokens_match_the_analysis(family: str, random_model: Callable[[str], RandomModel]) -> None:
    bundle = random_model(family).bundle
    top = ByContribution(top_fraction=0.5)
    changes = {
        "top": Intervention(top, Deactivate(), scope=Scope.LAST_PROMPT_TOKEN_AND_GENERATED),
        "control": Intervention(Control(top, ControlKind.RANDOM, seed=3), Deactivate()),
    }
    analysis = Analysis(
        prediction=Prediction(generate=True, max_tokens=9),
        variants=tuple(Variant(name, (change,)) for name, change in changes.items()),
    )

    async def both() -> None:
        async with served(bundle) as model:
            result = await model.analyze(Group("", (ROW,)), analysis)
            for variant in result.variants:
                parts = (changes[variant.name],) if variant.name in changes else ()
                streamed = [token async for token in model.generate(ROW, parts, 0.0, 9, past_newlines=False)]
                assert tuple(token.id for token in streamed) == variant.predictions[0].token_ids
                assert "".join(token.text for token in streamed).strip() == variant.predictions[0].text

    asyncio.run(both())


def test_eos_ends_generation_and_is_not_yielded(bloom_bundle: Path, tmp_path: Path) -> None:
    tokens = [token.id for token in generated(bloom_bundle)]
    index = next(index for index in range(1, len(tokens)) if tokens[index] not in tokens[:index])
    ended = changed_bundle(bloom_bundle, tmp_path / "bundle", eos=tokens[index])
    assert [token.id for token in generated(ended)] == tokens[:index]


def test_a_newline_ends_generation_unless_past_newlines(bloom_bundle: Path, tmp_path: Path) -> None:
    tokens = [token.id for token in generated(bloom_bundle)]
    index = next(index for index in range(1, len(tokens)) if tokens[index] not in tokens[:index])
    ended = changed_bundle(bloom_bundle, tmp_path / "bundle", newline=tokens[index])
    row = Row("en", tuple(Tokenizer.from_file(str(bloom_bundle / "tokenizer.json")).encode(str(ROW.prompt)).ids))
    assert [token.id for token in generated(ended, past_newlines=False, row=row)] == tokens[: index + 1]
    assert [token.id for token in generated(ended, row=row)] == tokens


def test_selections_by_type_are_refused_for_a_single_row(bloom_bundle: Path) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        generated(bloom_bundle, (Intervention(ByType((NeuronType.ALL_SHARED,)), Deactivate()),))
    assert refusal.value.violations[0].field.startswith("interventions[0].selection")


def test_a_generation_that_exceeds_the_row_limit_is_refused(bloom_bundle: Path) -> None:
    with pytest.raises(InvalidRequest, match="up to 100000 more for the answer") as refusal:
        generated(bloom_bundle, max_tokens=100_000)
    assert refusal.value.violations[0].field == "row.text"


def test_overflow_ends_generation_with_an_error(bloom_bundle: Path) -> None:
    everything = ByNeuron("", 3, 96, b"\xff" * 36)
    with pytest.raises(NotFinite, match="logits that are not finite after 0 tokens"):
        generated(bloom_bundle, (Intervention(everything, Override(3e38)),))


def test_an_abandoned_generation_frees_its_capacity(bloom_bundle: Path) -> None:
    async def leave(model: Model) -> None:
        tokens = model.generate(ROW, (), 0.0, 64, True, ANYONE)
        await anext(tokens)
        with pytest.raises(QueueFull):
            await anext(model.generate(ROW, (), 0.0, 64, True, ANYONE))
        await tokens.aclose()
        other = model.generate(Row("es", "La capital de Francia es"), (), 0.0, 64, True, ANYONE)
        waiting = asyncio.ensure_future(anext(other))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len([token async for token in model.generate(ROW, (), 0.0, 64, True, ANYONE)]) == 64

    async def run() -> None:
        async with served(bloom_bundle, Settings(threads=1, queue_tokens=120)) as model:
            await leave(model)

    asyncio.run(run())


@pytest.mark.parametrize("family", CONFIGS)
def test_streamed_texts_join_to_the_decoded_text_and_hold_whole_characters(
    family: str, random_model: Callable[[str], RandomModel]
) -> None:
    text = Text.load(random_model(family).bundle / "tokenizer.json", encoder_decoder=False)
    sentences = [*SENTENCES, "日本語のテキスト", "🙂🙂 ok"]

    async def encode() -> list[tuple[int, ...]]:
        encoded = await text.encode([(sentence, False) for sentence in sentences])
        await text.close()
        return [tokens.ids for tokens in encoded]

    for sentence, tokens in zip(sentences, asyncio.run(encode()), strict=True):
        for start in (0, 1):
            before = text.decode(tokens[:start]).rstrip("\N{REPLACEMENT CHARACTER}")
            spelling = Spelling(text, tokens[:start])
            parts = [spelling.added(token, last=token == tokens[-1]) for token in tokens[start:]]
            assert before + "".join(parts) == sentence
            assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)
