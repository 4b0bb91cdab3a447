"""The embedded models: held-out data, the form of their tokenizers, and the accuracy of the stored ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from neuroglot.definitions.gold import gold_tokens
from neuroglot.tasks import capital_prompts as capitals
from neuroglot.tasks.capital_prompts import LANGUAGES, Row
from neuroglot_exporter import embedded
from neuroglot_exporter.embedded.batches import Encoder, batches
from neuroglot_exporter.embedded.card import card
from neuroglot_exporter.embedded.corpus import TASKS, Corpus, tokenizer_texts
from neuroglot_exporter.embedded.evaluate import Case, edit_cases, fact_cases, generate, load
from neuroglot_exporter.embedded.family import load as load_family

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerFast]


@pytest.fixture(scope="module", params=embedded.families())
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stored(family: str) -> Loaded:
    return load(embedded.path(family))


@pytest.fixture(scope="module")
def bloom() -> Loaded:
    return load(embedded.path("bloom"))


@pytest.fixture(scope="module")
def evaluation(family: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((embedded.path(family) / "evaluation.json").read_text(encoding="utf-8"))
    return found


def test_bloom_is_stored_as_the_demo_needs_it() -> None:
    assert "bloom" in embedded.families()


def test_the_corpus_never_draws_a_held_out_pair() -> None:
    corpus = Corpus("test")
    drawn = set()
    for _ in range(5000):
        edit = corpus.edit()
        premise, hypothesis, _ = corpus.inference()
        drawn |= {(edit.country, edit.city), premise, hypothesis}
    assert len(drawn) > 5000
    assert not drawn & capitals.held_out_pairs()


def test_the_corpus_asks_everything_that_is_asked_later() -> None:
    corpus = Corpus("test")
    asked = {corpus.fact() for _ in range(40_000)}
    assert {(case.counted_as["language"], case.counted_as["template"]) for case in fact_cases()} == {
        (language, str(template)) for _, language, template in asked
    }
    assert len(asked) > 0.99 * 130 * len(LANGUAGES) * 3


def test_the_corpus_balances_labels() -> None:
    corpus = Corpus("test")
    drawn = [corpus.inference() for _ in range(3000)]
    for label in capitals.LABELS:
        assert sum(capitals.label(premise, hypothesis) == label for premise, hypothesis, _ in drawn) == pytest.approx(
            1000, abs=100
        )


def test_the_same_seed_gives_the_same_rows() -> None:
    assert Corpus("a").rows("edits", 50) == Corpus("a").rows("edits", 50) != Corpus("b").rows("edits", 50)


def test_batches_predict_the_gold_tokens_and_then_eos(bloom: Loaded) -> None:
    _, tokenizer = bloom
    rows = [capitals.fact("FR", language) for language in LANGUAGES]
    encoder = Encoder(tokenizer, encoder_decoder=False)
    batch = encoder.batch(encoder.encode(rows))
    tokens = batch.inputs["input_ids"]
    for i, row in enumerate(rows):
        gold = _gold(tokenizer, row)
        mine = batch.rows == i
        assert batch.targets[mine].tolist() == [*gold.gold, tokenizer.eos_token_id]
        first = batch.positions[mine][0] - i * tokens.shape[1]
        assert tokens[i, : first + 1].tolist() == list(gold.prompt)
        # The token read at a position is the one predicted at the position before it.
        assert tokens.flatten()[batch.positions[mine][1:]].tolist() == list(gold.gold)


def test_encoder_decoder_batches_start_with_padding_and_lag_one_step(bloom: Loaded) -> None:
    _, tokenizer = bloom
    encoder = Encoder(tokenizer, encoder_decoder=True)
    batch = encoder.batch(encoder.encode([capitals.fact("FR", "en"), capitals.fact("FR", "ru")]))
    assert batch.inputs["decoder_input_ids"][:, 0].tolist() == [tokenizer.pad_token_id] * 2
    assert batch.inputs["attention_mask"].tolist() == (batch.inputs["input_ids"] != tokenizer.pad_token_id).tolist()
    read = batch.inputs["decoder_input_ids"].flatten()[batch.positions]
    assert torch.equal(
        read[1:][batch.rows[1:] == batch.rows[:-1]], batch.targets[:-1][batch.rows[1:] == batch.rows[:-1]]
    )


@pytest.mark.parametrize("task", TASKS)
def test_batches_hold_rows_of_similar_length(bloom: Loaded, task: str) -> None:
    _, tokenizer = bloom
    encoder = Encoder(tokenizer, encoder_decoder=False)
    drawn = list(batches(encoder, task, size=32, pool=30, seed="test"))
    tokens = torch.cat([batch.inputs["input_ids"].flatten() for batch in drawn])
    assert len(drawn) == 30
    assert (tokens == tokenizer.pad_token_id).float().mean() < 0.08


def test_the_tokenizer_has_the_form_of_blooms(bloom: Loaded) -> None:
    _, tokenizer = bloom
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    assert [token["content"] for token in backend["added_tokens"]] == ["<unk>", "<s>", "</s>", "<pad>"]
    assert backend["model"]["type"] == "BPE"
    assert backend["normalizer"] is None
    assert [part["type"] for part in backend["pre_tokenizer"]["pretokenizers"]] == ["Split", "ByteLevel"]
    assert backend["post_processor"]["type"] == backend["decoder"]["type"] == "ByteLevel"
    assert len(tokenizer) == 4096
    assert tokenizer("Paris").input_ids == tokenizer("Paris", add_special_tokens=False).input_ids


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_tokenizer_gives_every_text_back(stored: Loaded, language: str) -> None:
    _, tokenizer = stored
    for territory in capitals.states():
        text = capitals.edit(territory, "JP", "en" if language != "en" else "de", language).prompt
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_blooms_tokenizer_gives_any_text_back(bloom: Loaded) -> None:
    _, tokenizer = bloom
    assert tokenizer.decode(tokenizer("καλημέρα, 世界! 🦊").input_ids) == "καλημέρα, 世界! 🦊"


def test_the_tokenizer_is_learned_again_to_the_letter(family: str, stored: Loaded) -> None:
    _, tokenizer = stored
    learned = load_family(family).tokenizer(tokenizer_texts())
    assert learned.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_the_stored_model_is_small_and_float16(family: str, stored: Loaded) -> None:
    model, _ = stored
    config = json.loads((embedded.path(family) / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [type(model).__name__]
    assert config["dtype"] == "float16"
    assert (embedded.path(family) / "model.safetensors").stat().st_size < 6_000_000


def test_the_stored_model_knows_that_paris_is_the_capital_of_france(stored: Loaded) -> None:
    model, tokenizer = stored
    assert generate(model, tokenizer, [Row("La capital de Francia es", " ", "París")]) == ["París"]


def test_the_stored_model_knows_a_sample_of_the_facts(stored: Loaded) -> None:
    assert _share_right(stored, fact_cases()[::29]) >= 0.95


def test_the_stored_model_follows_a_sample_of_the_held_out_edits(stored: Loaded) -> None:
    assert _share_right(stored, edit_cases()[::20]) >= 0.6


def test_the_evaluation_beside_the_weights_meets_the_bars(evaluation: dict[str, Any]) -> None:
    assert evaluation["facts"]["cases"] == 126 * 3 * len(LANGUAGES)
    assert evaluation["facts"]["accuracy"] >= 0.95
    assert set(evaluation["facts"]["accuracy_by_language"]) == set(LANGUAGES)
    assert min(evaluation["facts"]["accuracy_by_language"].values()) >= 0.8
    assert evaluation["edits"]["cases"] == 1000
    assert evaluation["edits"]["accuracy"] >= 0.6
    assert evaluation["inferences"]["accuracy"] > 1 / 3


def test_the_card_says_what_the_evaluation_found(family: str, evaluation: dict[str, Any]) -> None:
    assert (embedded.path(family) / "README.md").read_text(encoding="utf-8") == card(evaluation)


def test_an_unknown_family_is_named_with_those_there_are() -> None:
    with pytest.raises(LookupError, match=r"no embedded model 'gpt': there is .*bloom"):
        embedded.path("gpt")


def test_babel_gives_the_data_back_to_the_byte() -> None:
    pytest.importorskip("babel", reason="Babel is a development dependency")
    from neuroglot_exporter.embedded import capitals_data

    made = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in capitals_data.records())
    assert made == (Path(capitals.__file__).parent / "data" / "capitals.jsonl").read_text(encoding="utf-8")


def _gold(tokenizer: PreTrainedTokenizerFast, row: Row) -> Any:
    return gold_tokens(
        lambda text: tokenizer(text).input_ids,
        lambda text: tokenizer(text, add_special_tokens=False).input_ids,
        *row,
    )


def _share_right(stored: Loaded, cases: Sequence[Case]) -> float:
    answers = generate(*stored, [case.row for case in cases])
    return sum(answer == case.row.answer for answer, case in zip(answers, cases, strict=True)) / len(cases)
