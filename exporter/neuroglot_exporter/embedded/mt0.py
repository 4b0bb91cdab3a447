"""mT0: the mT5 encoder-decoder, Unigram with `</s>` after every text, gated GELU, an untied head."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import MT5Config, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, T5TokenizerFast

from neuroglot_exporter.embedded.family import Family
from neuroglot_exporter.embedded.pieces import unigram

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")  # ids 0 to 2, as in mT5


def tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn a Unigram tokenizer that ends every text with `</s>`."""
    return T5TokenizerFast(tokenizer_object=unigram(list(texts), SPECIAL_TOKENS, "$A </s>"), extra_ids=0)


def config(tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    """Four encoder and two decoder layers of width 128 with 384 neurons each: 2.5 million parameters."""
    return MT5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=384,
        num_layers=4,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )


def shrink_embeddings(model: PreTrainedModel) -> None:
    """mT5 draws both embeddings with a standard deviation of 1, for an optimizer that steps in proportion to it.

    AdamW's steps would leave them where they are, and the first logits would be far too large.
    """
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        embeddings.weight.data *= model.config.d_model**-0.5


FAMILY = Family("mt0", tokenizer, config, steps=3840, learning_rate=1e-3, prepare=shrink_embeddings)
