"""Pieces of words that begin with `▁`, as SentencePiece cuts them: the tokenizers of LLaMA, XGLM and mT0."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from neuroglot_exporter.embedded.family import VOCABULARY


def learn_merges(texts: Iterable[str], first_tokens: Sequence[str]) -> Tokenizer:
    """Learn a BPE within words: no piece has a `▁` but at its start.

    Args:
        texts: what to learn from, cut at its spaces.
        first_tokens: the tokens before the learned ones, in the order of their ids.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=1, special_tokens=list(first_tokens), show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    return learner


def bpe_parts(learner: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges of a learned BPE."""
    model: dict[str, Any] = json.loads(learner.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def unigram(texts: Sequence[str], first_tokens: Sequence[str], template: str) -> Tokenizer:
    """A Unigram tokenizer whose pieces are those of a BPE, each with its log-probability in the texts.

    The usual Unigram training is made for millions of sentences: on these few it drops common short words and keeps
    half of the vocabulary unused.

    Args:
        texts: what to learn from.
        first_tokens: the special tokens, in the order of their ids; `<unk>` and `</s>` are among them.
        template: where `</s>` goes around a text, `$A`.
    """
    learner = learn_merges(texts, first_tokens)
    counts = Counter(token for encoding in learner.encode_batch(list(texts)) for token in encoding.tokens)
    total = math.log(counts.total())
    vocabulary, _ = bpe_parts(learner)
    pieces = [
        (piece, 0.0 if piece in first_tokens else math.log(counts[piece] or 0.5) - total)
        for piece in sorted(vocabulary, key=vocabulary.__getitem__)
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=vocabulary["<unk>"], byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=[("</s>", vocabulary["</s>"])])
    return tokenizer
