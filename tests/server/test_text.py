from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from neuroglot_server.core import Row
from neuroglot_server.text import Text
from tests.checkpoints import SENTENCES


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of T5's form: pieces that begin with `▁`, and `</s>` at the end."""
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
def text(file: Path) -> Text:
    return Text.load(file, encoder_decoder=True)


PROMPT = "The capital of France is"
END = 1


def test_neither_truncation_nor_padding_of_the_file_is_done(text: Text) -> None:
    ids = text.encode(PROMPT * 3)
    assert len(ids) > 8
    assert ids[-1] == END
    assert 0 not in ids


@pytest.mark.parametrize("times", [1, 200])
def test_texts_are_encoded_together_as_they_are_alone(file: Path, times: int) -> None:
    text = Text.load(file, encoder_decoder=False)
    rows = [Row(label, f"{label} {PROMPT} " * times, ("Paris",)) for label in ("en", "fr")]
    encode = text.together(rows)
    for row in rows:
        assert isinstance(row.prompt, str)
        for one in (row.prompt, f"{row.prompt} Paris"):
            assert encode(one) == text.encode(one)


@pytest.mark.parametrize("separator", [None, "", " "])
@pytest.mark.parametrize("label", ["en", "th"])
def test_the_gold_tokens_of_an_encoder_decoder_are_those_of_the_answer_alone(
    text: Text, label: str, separator: str | None
) -> None:
    row = text.encode_row(Row(label, PROMPT, ("Paris", "Lutetia"), separator))
    assert row.prompt == text.encode(PROMPT)
    assert row.prompt[-1] == END
    assert row.gold == text.encode("Paris")[:-1]
    assert text.tokenize(["Paris"])[0].tokens[0].startswith("▁")
    assert row.joint


def test_token_ids_are_taken_as_they_are_and_the_answer_is_encoded_the_same(text: Text) -> None:
    row = text.encode_row(Row("en", (5, 6, 7), ("Paris",)))
    assert (row.prompt, row.gold, row.joint) == ((5, 6, 7), text.encode("Paris")[:-1], True)


def test_a_causal_answer_goes_on_from_its_prompt(file: Path) -> None:
    """With the same tokenizer, less what it puts behind every text."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    causal = Text(tokenizer, encoder_decoder=False)
    row = causal.encode_row(Row("en", PROMPT, ("Paris",)))
    assert (*row.prompt, *row.gold) == causal.encode(f"{PROMPT} Paris")
    assert row.joint
    apart = causal.encode_row(Row("en", causal.encode(PROMPT), ("Paris",)))
    assert apart.gold == causal.encode(" Paris")
    assert not apart.joint


@pytest.mark.parametrize("encoder_decoder", [True, False])
def test_an_answer_without_tokens_is_an_error(file: Path, encoder_decoder: bool) -> None:
    text = Text.load(file, encoder_decoder=encoder_decoder)
    with pytest.raises(ValueError, match="the answer '' has no tokens"):
        text.encode_row(Row("en", (5,), ("",), ""))


@pytest.mark.parametrize(("answer", "r"), [("Paris", 0), ("巴黎", 1)])
def test_a_distractor_begins_where_r_is_in_a_gold_answer(text: Text, file: Path, answer: str, r: int) -> None:
    row = text.encode_row(Row("zh", PROMPT, (answer,), distractor=answer))
    assert row.r_index == r
    assert row.distractor == row.gold[r:]
    assert text.encode_row(Row("zh", PROMPT, (), distractor=answer)).distractor == row.distractor
    assert text.encode_row(Row("zh", PROMPT, (answer,))).distractor == ()
    causal = Text.load(file, encoder_decoder=False)
    row = causal.encode_row(Row("en", (5,), (answer,), distractor=answer))
    assert row.distractor == row.gold
