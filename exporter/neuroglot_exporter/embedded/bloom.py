"""BLOOM: byte-level BPE without BOS, ALiBi, GELU, a tied head."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import BloomConfig, BloomTokenizerFast, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from neuroglot_exporter.embedded.family import VOCABULARY, Family

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")  # ids 0 to 3, as in BLOOM

# BLOOM's split, brackets and all: the inner `[` and `(` are members of the class, as they are upstream.
_SPLIT = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"


def tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE whose parts are those of BLOOM's `tokenizer.json`; it adds no special tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return BloomTokenizerFast(tokenizer_object=backend, padding_side="left")


def config(tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    """Four layers of width 128 with 512 neurons each: 1.3 million parameters."""
    return BloomConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        n_layer=4,
        n_head=4,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def use_fused_gelu(model: PreTrainedModel) -> None:
    """BLOOM's GELU is the tanh approximation written out in Python; PyTorch's own is one pass over memory."""
    for block in model.get_submodule("transformer.h").children():
        block.get_submodule("mlp").gelu_impl = nn.GELU(approximate="tanh")


FAMILY = Family("bloom", tokenizer, config, steps=3520, prepare=use_fused_gelu)
