"""LLaMA: BPE over `▁` with byte fallback and BOS, gated SiLU, grouped-query attention, an untied head."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaTokenizerFast, PretrainedConfig, PreTrainedTokenizerFast

from neuroglot_exporter.embedded.family import Family
from neuroglot_exporter.embedded.pieces import bpe_parts, learn_merges

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")  # ids 0 to 2, as in Llama 2; the 256 bytes follow
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn a BPE whose parts are those of Llama 2's `tokenizer.json`; it begins every text with `<s>`."""
    # Merges within words need no splitting into words afterwards: the finished tokenizer has no pre-tokenizer.
    vocabulary, merges = bpe_parts(learn_merges(texts, SPECIAL_TOKENS + _BYTES))
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=SPECIAL_TOKENS[0], fuse_unk=True, byte_fallback=True))
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # Llama 2 has no padding token either; transformers pads it with <unk>.
    return LlamaTokenizerFast(tokenizer_object=backend, pad_token=SPECIAL_TOKENS[0], padding_side="left", legacy=False)


def config(tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    """Four layers of width 128 with 384 neurons, four heads over two of keys and values: 1.8 million parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


FAMILY = Family("llama", tokenizer, config, steps=1920)
