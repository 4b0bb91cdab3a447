"""Effective scores m_i * (v_i . E_t) from a server, against the weights that transformers loads, in every family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from neuroglot.definitions.bundle import Component, ModelFacts, StoredMatrix
from neuroglot_server.core import (
    Analysis,
    EffectiveScore,
    Group,
    GroupResult,
    InvalidRequest,
    LeadingNeurons,
    Row,
    ScoreTarget,
)
from neuroglot_server.kernels.kernel_thread import completed
from neuroglot_server.neurons.value_matrices import Projections, ValueMatrices
from tests import definitions
from tests.checkpoints import CONFIGS, RandomModel
from tests.exporter.encoder_decoder import START
from tests.exporter.encoder_decoder import Row as Texts
from tests.exporter.encoder_decoder import Transformers as EncoderDecoder
from tests.exporter.reference import MODULES, Transformers
from tests.server.reference import ENCODER_DECODERS
from tests.server.serving import analyze

GROUP = Group(
    "FR",
    (
        Row("en", "The capital of France is", ("Paris",), distractor="Berlin"),
        Row("es", "La capital de Francia es", ("París", "Paris"), distractor="Madrid"),
        Row("th", "เมืองหลวงของฝรั่งเศสคือ", ()),
        Row("ru", "Столица Франции —", ("Париж",), distractor="Рим"),
    ),
)
UNANSWERED = 2
THRESHOLDS = (0.0, 0.4, -0.1)


class Decoder(NamedTuple):
    """Activations and weights of transformers: `[rows, layers, neurons]`, at the token from which the answer begins."""

    activations: np.ndarray
    coefficients: np.ndarray
    values: list[torch.Tensor]
    """The value matrix of each layer, `[neurons, hidden]`."""
    embedding: torch.Tensor
    """`[vocabulary, hidden]`."""
    scale: float
    tokens: Callable[[str], list[int]]


def decoder_of(random: RandomModel) -> Decoder:
    tokenizer = AutoTokenizer.from_pretrained(random.checkpoint)

    def tokens(text: str) -> list[int]:
        ids: list[int] = tokenizer(text).input_ids
        return ids

    prompts = [tokens(str(row.prompt)) for row in GROUP.rows]
    if random.family in ENCODER_DECODERS:
        seq2seq = EncoderDecoder(random.checkpoint)
        model, path = seq2seq.model, "decoder.block.{i}.layer.2.DenseReluDense.wo"
        runs = [seq2seq.run(Texts(prompt, [START]))["decoder"] for prompt in prompts]
    else:
        causal = Transformers(random.checkpoint, random.family)
        model, path = causal.model, MODULES[random.family].down_projection
        runs = [causal.run(prompt) for prompt in prompts]
    activations, coefficients = (np.stack([run[tap][:, -1] for run in runs]) for tap in ("activation", "coefficient"))
    return Decoder(
        activations,
        coefficients,
        [model.get_submodule(path.format(i=i)).weight.detach().T for i in range(activations.shape[1])],
        model.lm_head.weight.detach(),
        model.model_dim**-0.5 if random.family == "t5" else 1.0,
        tokens,
    )


def wrong_token(decoder: Decoder, family: str, row: Row) -> int:
    """The first token of a distractor after the prompt."""
    if family in ENCODER_DECODERS:
        return decoder.tokens(row.distractor)[0]
    prompt, whole = decoder.tokens(str(row.prompt)), decoder.tokens(f"{row.prompt} {row.distractor}")
    return whole[len(prompt)] if whole[: len(prompt)] == prompt else decoder.tokens(f" {row.distractor}")[0]


def expected_scores(decoder: Decoder, family: str, result: GroupResult, target: ScoreTarget) -> np.ndarray:
    """Effective scores `[rows, layers, neurons]`, summed one token at a time."""
    scores = np.full(decoder.coefficients.shape, np.nan)
    for index, (row, encoded) in enumerate(zip(GROUP.rows, result.rows, strict=True)):
        if not row.answers:
            continue
        weighted = [(encoded.gold_token_ids[encoded.r_index], 1)]
        if target is ScoreTarget.ALL_GOLD_TOKENS:
            weighted = [(token, 1) for token in encoded.gold_token_ids]
        elif target is ScoreTarget.GOLD_MINUS_DISTRACTOR:
            weighted.append((wrong_token(decoder, family, row), -1))
        for layer, values in enumerate(decoder.values):
            coefficients = torch.from_numpy(decoder.coefficients[index, layer])
            of_tokens = [sign * coefficients * (values @ decoder.embedding[token]) for token, sign in weighted]
            scores[index, layer] = sum(of_tokens).numpy() * decoder.scale
    return scores


def check_leading(leading: LeadingNeurons | None, scores: np.ndarray, codes: np.ndarray) -> None:
    assert leading is not None
    for row, layer in np.ndindex(scores.shape[:2]):
        if row == UNANSWERED:
            assert np.isnan(leading.values[row, layer]).all()
            continue
        neurons = leading.neurons[row, layer]
        assert len(set(neurons.tolist())) == 5
        np.testing.assert_allclose(leading.values[row, layer], np.sort(scores[row, layer])[::-1][:5], atol=1e-4)
        np.testing.assert_allclose(leading.values[row, layer], scores[row, layer, neurons], atol=1e-4)
        assert (leading.codes[row, layer] == codes[layer, neurons]).all()


@pytest.mark.parametrize("family", CONFIGS)
def test_scores_by_type_and_the_highest_ones_are_those_of_the_checkpoints_weights(
    family: str, random_model: Callable[[str], RandomModel]
) -> None:
    random = random_model(family)
    decoder = decoder_of(random)
    for target in ScoreTarget:
        result = analyze(random.bundle, GROUP, Analysis(THRESHOLDS, effective_score=EffectiveScore(target, neurons=5)))
        *_, component = result.components
        scores = expected_scores(decoder, family, result, target)
        assert np.nanstd(scores) > 0.05, "scores are large beside the tolerance"
        for threshold, found in zip(THRESHOLDS, component.thresholds, strict=True):
            by_type = found.effective_score
            assert by_type is not None
            check_leading(by_type.leading, scores, definitions.type_codes(decoder.activations, threshold))
            for layer, sets in enumerate(definitions.types(decoder.activations, threshold)):
                for code, members in enumerate(sets.values()):
                    of_type = scores[:, layer, sorted(members)]
                    empty = np.where(np.arange(len(scores)) == UNANSWERED, np.nan, 0.0)
                    for values, reduce in ((by_type.maxima, np.max), (by_type.minima, np.min), (by_type.sums, np.sum)):
                        expected = reduce(of_type, axis=-1) if members else empty
                        np.testing.assert_allclose(values[:, layer, code], expected, atol=2e-4)
        for encoder in result.components[:-1]:
            assert all(one.effective_score is None for one in encoder.thresholds)


def test_a_single_row_has_no_types_and_so_no_scores(bloom_bundle: Path) -> None:
    alone = analyze(bloom_bundle, Group("", GROUP.rows[:1]), Analysis(effective_score=EffectiveScore()))
    assert alone.components[0].thresholds[0].effective_score is None


def test_rows_without_the_needed_answers_are_refused(bloom_bundle: Path) -> None:
    bare = Group("", tuple(row._replace(answers=()) for row in GROUP.rows))
    with pytest.raises(InvalidRequest, match=r"analysis.effective_score: is requested, but no row has an answer"):
        analyze(bloom_bundle, bare, Analysis(effective_score=EffectiveScore()))
    without = Group("", tuple(row._replace(distractor="") for row in GROUP.rows))
    options = EffectiveScore(ScoreTarget.GOLD_MINUS_DISTRACTOR)
    with pytest.raises(InvalidRequest, match=r"group.rows\[0\].distractor: is empty.*and 2 more"):
        analyze(bloom_bundle, without, Analysis(effective_score=options))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("layers", "neurons", "hidden"), [(1, 1, 1), (2, 1027, 5), (3, 70, 24)])
def test_projections_use_the_matrices_of_the_manifest(
    tmp_path: Path, dtype: str, layers: int, neurons: int, hidden: int
) -> None:
    rng = np.random.default_rng(layers)
    values = rng.normal(size=(layers, neurons, hidden)).astype(dtype)
    embedding = rng.normal(size=(11, hidden)).astype(dtype)
    padding = bytes(64)
    (tmp_path / "weights.data").write_bytes(padding + embedding.tobytes() + padding + values.tobytes())
    start = 128 + embedding.nbytes
    stored = tuple(
        StoredMatrix("weights.data", start + layer * values[0].nbytes, neurons, hidden, dtype)
        for layer in range(layers)
    )
    decoder = Component("decoder", "", "", layers, neurons, hidden, "gelu", gated=False, values=stored)
    output = StoredMatrix("weights.data", 64, 11, hidden, dtype)
    facts = ModelFacts("bloom", dtype, 11, None, (), None, (decoder,), output, output_scale=0.5)
    found = completed(ValueMatrices.of_bundle(tmp_path, facts).projections([{3: 1}, {0: 2, 10: -1}]))
    exact = values.astype(np.float64), embedding.astype(np.float64)
    for row, direction in enumerate((exact[1][3] / 2, exact[1][0] - exact[1][10] / 2)):
        np.testing.assert_allclose(found[row], exact[0] @ direction, atol=1e-5)


def test_tenants_have_separate_projections_unless_shared() -> None:
    def is_hit(first: str, second: str, *, shared: bool, max_entries: int = 2) -> bool:
        """Whether the second tenant gets the cached projections of the first."""
        values = np.ones((1, 3, 2), dtype=np.float32)
        matrices = ValueMatrices(list(values), np.ones((4, 2), dtype=np.float32), 1.0)
        projections = Projections(matrices, max_entries * 3 * 4, shared=shared)
        rows: list[Mapping[int, float]] = [{0: 1}, {1: 1}]
        assert (completed(projections.of(rows, first)) == 2).all()
        values *= 5
        found = completed(projections.of(rows, second))
        assert found.shape == (2, 1, 3)
        return bool((found == 2).all())

    assert is_hit("ann", "ann", shared=False)
    assert not is_hit("ann", "bob", shared=False)
    assert is_hit("ann", "bob", shared=True)
    assert not is_hit("ann", "ann", shared=True, max_entries=1)


def test_the_least_recently_used_projections_are_evicted() -> None:
    values = np.ones((1, 3, 2), dtype=np.float32)
    matrices = ValueMatrices(list(values), np.ones((4, 2), dtype=np.float32), 1.0)
    projections = Projections(matrices, 2 * 3 * 4, shared=False)
    for token in (0, 1, 0, 2):
        completed(projections.of([{token: 1}], ""))
    values *= 5
    assert [completed(projections.of([{token: 1}], ""))[0, 0, 0] for token in (0, 2, 1)] == [2, 2, 10]
