"""Random checkpoints of every family, as transformers writes them. They know nothing, but every weight matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    LlamaConfig,
    MT5Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
    XGLMConfig,
)

SENTENCES = (
    "The capital of France is Paris.",
    "Die Hauptstadt von Frankreich ist Paris.",
    "La capital de Francia es París.",
    "La capitale de la France est Paris.",
    "A capital da França é Paris.",
    "Столица Франции — Париж.",
    "เมืองหลวงของฝรั่งเศสคือปารีส",
    "Türkiye'nin başkenti Ankara.",
    "Thủ đô của Pháp là Paris.",
    "法国的首都是巴黎。",
)
"""What the tokenizers are trained on, in ten languages."""

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
VOCABULARY = 320


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE without BOS, as BLOOM's, with a vocabulary of 320."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _bloom(tokenizer: PreTrainedTokenizerFast, **geometry: Any) -> PretrainedConfig:
    shape = {"vocab_size": len(tokenizer), "hidden_size": 24, "n_layer": 3, "n_head": 3} | geometry
    return BloomConfig(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=3)


def _llama(tokenizer: PreTrainedTokenizerFast, **geometry: Any) -> PretrainedConfig:
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "intermediate_size": 70,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 200,
    } | geometry
    return LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=3)


def _xglm(tokenizer: PreTrainedTokenizerFast, **geometry: Any) -> PretrainedConfig:
    shape = {
        "vocab_size": len(tokenizer),
        "d_model": 24,
        "ffn_dim": 70,
        "num_layers": 3,
        "attention_heads": 3,
        "max_position_embeddings": 200,
    } | geometry
    return XGLMConfig(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=3, decoder_start_token_id=2)


def _t5(tokenizer: PreTrainedTokenizerFast, **geometry: Any) -> PretrainedConfig:
    return T5Config(**_T5_SHAPE | {"vocab_size": len(tokenizer)} | geometry, **_T5_TOKENS)


def _mt0(tokenizer: PreTrainedTokenizerFast, **geometry: Any) -> PretrainedConfig:
    return MT5Config(**_T5_SHAPE | {"vocab_size": len(tokenizer)} | geometry, **_T5_TOKENS)


_T5_SHAPE = {"d_model": 24, "d_kv": 7, "d_ff": 70, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 3}
_T5_TOKENS = {"eos_token_id": 2, "pad_token_id": 3, "decoder_start_token_id": 3}

CONFIGS = {"bloom": _bloom, "llama": _llama, "xglm": _xglm, "mt0": _mt0, "t5": _t5}
"""By family: makes a config of odd geometry for a tokenizer; keywords of the family's config change it."""


def random_checkpoint(
    folder: Path, family: str = "bloom", *, seed: int = 0, gain: float = 1.5, **geometry: Any
) -> Path:
    """Write config, safetensors and tokenizer of a random model.

    With transformers' own initial weights an intervention on the FFN hardly moves the logits; so matrices are drawn
    such that every layer's output is about as large as its input, and biases and norms are drawn, too.

    Args:
        folder: is made; a checkpoint's folder.
        family: a key of `CONFIGS`.
        seed: of the weights.
        gain: how much larger a matrix makes what it is multiplied with; 4 gives pre-activations between -15 and 15.
        geometry: keywords of the family's config: `n_layer=2`.

    Returns:
        `folder`.
    """
    tokenizer = byte_level_tokenizer()
    config = CONFIGS[family](tokenizer, **geometry)
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                # T5 does not divide its scores by the square root of the head's width.
                fan_in = parameter.shape[1] * (config.d_kv if name.endswith(".q.weight") else 1)
                parameter.copy_(noise * gain / fan_in**0.5)
            elif name.endswith("bias"):
                parameter.copy_(noise * 0.2)
            else:
                parameter.copy_(1 + noise * 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class RandomModel(NamedTuple):
    """A random checkpoint and its bundle. Neither is ever changed: copy it to damage it."""

    family: str
    checkpoint: Path
    bundle: Path
