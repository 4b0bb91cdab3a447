"""Turns rows of text into tensors, with the gold tokens that the server scores as targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from neuroglot.definitions.gold import answer_tokens, gold_tokens
from neuroglot.tasks.capital_prompts import Row
from neuroglot_exporter.embedded.corpus import Corpus


class Encoded(NamedTuple):
    """A row as token ids: the answer ends with EOS."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Batch(NamedTuple):
    """Inputs and targets of one pass.

    Attributes:
        inputs: the model's arguments, padded on the right.
        positions: where the answer's tokens are predicted, as indices into `[rows * positions]`.
        targets: the token that each of them should predict.
        rows: the row that each of them belongs to.
    """

    inputs: dict[str, Tensor]
    positions: Tensor
    targets: Tensor
    rows: Tensor


class Encoder:
    """Turns rows into batches for one tokenizer, for a causal language model or an encoder-decoder."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, encoder_decoder: bool) -> None:
        """Create an encoder for a tokenizer."""
        self._backend = tokenizer.backend_tokenizer
        self._eos: int = tokenizer.eos_token_id
        self._pad: int = tokenizer.pad_token_id
        self._encoder_decoder = encoder_decoder
        self._bare = cache(self._encode_bare)

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Tokenize rows, all texts at once."""
        if self._encoder_decoder:
            prompts = self._backend.encode_batch([row.prompt for row in rows])
            return [
                Encoded(tuple(prompt.ids), (*answer_tokens(self._bare, row.answer), self._eos))
                for prompt, row in zip(prompts, rows, strict=True)
            ]
        texts = list({text for row in rows for text in (row.prompt, "".join(row))})
        ids = {text: found.ids for text, found in zip(texts, self._backend.encode_batch(texts), strict=True)}
        encoded = (gold_tokens(ids.__getitem__, self._bare, *row) for row in rows)
        return [Encoded(tokens.prompt, (*tokens.gold, self._eos)) for tokens in encoded]

    def batch(self, rows: Sequence[Encoded]) -> Batch:
        """Pad rows into one batch."""
        owner = [i for i, row in enumerate(rows) for _ in row.answer]
        targets = torch.tensor([token for row in rows for token in row.answer])
        if self._encoder_decoder:
            prompts = self._padded([row.prompt for row in rows])
            # The decoder starts with the padding token, as T5's does, and reads the answer one step behind.
            decoder = self._padded([(self._pad, *row.answer[:-1]) for row in rows])
            real = (prompts != self._pad).long()
            inputs = {"input_ids": prompts, "attention_mask": real, "decoder_input_ids": decoder}
            starts, width = [0] * len(rows), decoder.shape[1]
        else:
            tokens = self._padded([row.prompt + row.answer[:-1] for row in rows])
            inputs = {"input_ids": tokens}
            starts, width = [len(row.prompt) - 1 for row in rows], tokens.shape[1]
        positions = [
            i * width + start + step
            for i, (start, row) in enumerate(zip(starts, rows, strict=True))
            for step in range(len(row.answer))
        ]
        return Batch(inputs, torch.tensor(positions), targets, torch.tensor(owner))

    def _padded(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + (self._pad,) * (width - len(row)) for row in rows])

    def _encode_bare(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids


def batches(encoder: Encoder, task: str, size: int, pool: int, seed: str) -> Iterator[Batch]:
    """Yield the `pool` batches of one pool in random order, each with rows of similar length.

    Sorting a pool by length leaves 1.04 padded tokens for a real one; random batches hold 2.5.
    """
    rows = encoder.encode(Corpus(f"{seed}/{task}").rows(task, size * pool))
    rows.sort(key=lambda row: len(row.prompt) + len(row.answer))
    starts = list(range(0, len(rows), size))
    Random(seed).shuffle(starts)
    for start in starts:
        yield encoder.batch(rows[start : start + size])
