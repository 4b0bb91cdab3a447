"""XGLM: Unigram with `</s>` before every text, sinusoidal positions, GELU, a tied head."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PretrainedConfig, PreTrainedTokenizerFast, XGLMConfig, XGLMTokenizerFast

from neuroglot_exporter.embedded.family import Family
from neuroglot_exporter.embedded.pieces import unigram

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in XGLM


def tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn a Unigram tokenizer that begins every text with `</s>`."""
    return XGLMTokenizerFast(tokenizer_object=unigram(list(texts), SPECIAL_TOKENS, "</s> $A"), padding_side="left")


def config(tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    """Four layers of width 128 with 512 neurons each: 1.3 million parameters."""
    return XGLMConfig(
        vocab_size=len(tokenizer),
        d_model=128,
        ffn_dim=512,
        num_layers=4,
        attention_heads=4,
        max_position_embeddings=512,
        dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
    )


FAMILY = Family("xglm", tokenizer, config, steps=1920)
