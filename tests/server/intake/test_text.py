from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from neuroglot_server.core import Row
from neuroglot_server.intake.encoding import encode_rows
from neuroglot_server.intake.text import EncodedRow, NoTokens, Text
from tests.checkpoints import SENTENCES


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer like T5's: pieces that begin with `▁`, and `</s>` at the end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    path = tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def text(file: Path) -> Iterator[Text]:
    with loaded(file, encoder_decoder=True) as text:
        yield text


@contextmanager
def loaded(file: Path, *, encoder_decoder: bool) -> Iterator[Text]:
    text = Text.load(file, encoder_decoder=encoder_decoder)
    yield text
    asyncio.run(text.close())


def ids(text: Text, said: str) -> tuple[int, ...]:
    """Token ids of a text, with special tokens."""
    (tokens,) = asyncio.run(text.encode([(said, True)]))
    assert tokens.length == len(tokens.ids)
    return tokens.ids


def encoded(text: Text, row: Row) -> EncodedRow:
    (one,) = asyncio.run(encode_rows([row], None, text, 1000))
    return one


PROMPT = "The capital of France is"
END = 1


def test_truncation_and_padding_of_the_file_are_disabled(text: Text) -> None:
    found = ids(text, PROMPT * 3)
    assert len(found) > 8
    assert found[-1] == END
    assert 0 not in found


@pytest.mark.parametrize("times", [1, 20])
def test_rows_are_encoded_together_as_they_are_alone(file: Path, times: int) -> None:
    rows = [Row(label, f"{label} {PROMPT} " * times, ("Paris",), choices=("Rom", "Bern")) for label in ("en", "fr")]
    with loaded(file, encoder_decoder=False) as text:
        together = asyncio.run(encode_rows(rows * 10, None, text, 1000))
        assert together == [encoded(text, row) for row in rows] * 10


@pytest.mark.parametrize("separator", [None, "", " "])
@pytest.mark.parametrize("label", ["en", "th"])
def test_the_gold_tokens_of_an_encoder_decoder_are_those_of_the_answer_alone(
    text: Text, label: str, separator: str | None
) -> None:
    row = encoded(text, Row(label, PROMPT, ("Paris", "Lutetia"), separator))
    assert row.prompt == ids(text, PROMPT)
    assert row.prompt[-1] == END
    assert row.gold == ids(text, "Paris")[:-1]
    (spelled,) = asyncio.run(text.tokenize(["Paris"]))
    assert spelled.tokens[0].startswith("▁")
    assert row.joint


def test_token_ids_are_taken_as_they_are_and_the_answer_is_encoded_the_same(text: Text) -> None:
    row = encoded(text, Row("en", (5, 6, 7), ("Paris",)))
    assert (row.prompt, row.gold, row.joint) == ((5, 6, 7), ids(text, "Paris")[:-1], True)


def test_a_causal_answer_continues_its_prompt(file: Path, tmp_path: Path) -> None:
    """With the same tokenizer, without the `</s>` that it appends."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with loaded(tmp_path / "tokenizer.json", encoder_decoder=False) as causal:
        row = encoded(causal, Row("en", PROMPT, ("Paris",)))
        assert (*row.prompt, *row.gold) == ids(causal, f"{PROMPT} Paris")
        assert row.joint
        apart = encoded(causal, Row("en", ids(causal, PROMPT), ("Paris",)))
        assert apart.gold == ids(causal, " Paris")
        assert not apart.joint


@pytest.mark.parametrize("encoder_decoder", [True, False])
def test_an_answer_without_tokens_is_an_error(file: Path, encoder_decoder: bool) -> None:
    with (
        loaded(file, encoder_decoder=encoder_decoder) as text,
        pytest.raises(NoTokens, match="the answer 'x' has no tokens") as caught,
    ):
        text.encode_row(Row("en", (5,), ("x",), ""), lambda _: (), lambda _: ())
    assert caught.value.field == "answers[0]"


@pytest.mark.parametrize(("answer", "r"), [("Paris", 0), ("巴黎", 1)])
def test_a_distractor_begins_where_r_is_in_a_gold_answer(text: Text, file: Path, answer: str, r: int) -> None:
    row = encoded(text, Row("zh", PROMPT, (answer,), distractor=answer))
    assert row.r_index == r
    assert row.distractor == row.gold[r:]
    assert encoded(text, Row("zh", PROMPT, (), distractor=answer)).distractor == row.distractor
    assert encoded(text, Row("zh", PROMPT, (answer,))).distractor == ()
    with loaded(file, encoder_decoder=False) as causal:
        row = encoded(causal, Row("en", (5,), (answer,), distractor=answer))
        assert row.distractor == row.gold
