"""Traces the two graphs of T5 and mT5, which do more than those of optimum.

optimum's decoder has no mask for its own positions, so that rows of different lengths cannot share a batch, and comes
in two forms, for the first step and for later ones. Here

- the encoder also gives the cross-attention's keys and values, so that one decoder graph serves every step;
- the decoder takes a mask over its past and new positions, and counts distances over the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from neuroglot_exporter.families.t5 import output_scale
from neuroglot_exporter.tracing import Axes, TracedGraph, trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ENCODER_POSITIONS = "encoder_sequence_length"
_ROWS, _PROMPT, _NEW, _PAST = 2, 5, 3, 4  # sizes of the examples; all differ, so that dimensions are not confused


def trace_encoder(model: PreTrainedModel) -> TracedGraph:
    """Trace the encoder: token ids and mask to the cross-attention's keys and values, a pair a decoder layer."""
    module = _Encoder(model).eval()
    positions = {0: "batch_size", 1: _ENCODER_POSITIONS}
    examples = (torch.ones(_ROWS, _PROMPT, dtype=torch.int64), _mask(_PROMPT))
    outputs = _keys_and_values("present", module.layers, "encoder", _ENCODER_POSITIONS)
    return trace(module, examples, {"input_ids": positions, "attention_mask": positions}, outputs)


def trace_decoder(model: PreTrainedModel) -> TracedGraph:
    """Trace the decoder: new token ids, both masks, past and cross-attention's keys and values to logits and keys."""
    module = _Decoder(model).eval()
    config: Any = model.config

    def zeros(positions: int) -> list[Tensor]:
        shape = (_ROWS, config.num_heads, positions, config.d_kv)
        return [torch.zeros(shape, dtype=model.dtype) for _ in range(2 * module.layers)]

    new, past = "decoder_sequence_length", "past_decoder_sequence_length"
    total = f"{past} + sequence_length"
    inputs: Axes = {
        "input_ids": {0: "batch_size", 1: new},
        "decoder_attention_mask": {0: "batch_size", 1: total},
        "encoder_attention_mask": {0: "batch_size", 1: _ENCODER_POSITIONS},
        **_keys_and_values("past_key_values", module.layers, "decoder", past),
        **_keys_and_values("past_key_values", module.layers, "encoder", _ENCODER_POSITIONS),
    }
    outputs: Axes = {
        "logits": {0: "batch_size", 1: new},
        **_keys_and_values("present", module.layers, "decoder", total),
    }
    tokens = torch.ones(_ROWS, _NEW, dtype=torch.int64)
    examples = (tokens, _mask(_PAST + _NEW), _mask(_PROMPT), *zeros(_PAST), *zeros(_PROMPT))
    return trace(module, examples, inputs, outputs)


def _keys_and_values(kind: str, layers: int, part: str, positions: str) -> Axes:
    """Names, as in optimum, and dynamic axes of the keys and values of all layers."""
    names = [f"{kind}.{layer}.{part}.{what}" for layer in range(layers) for what in ("key", "value")]
    return {name: {0: "batch_size", 2: positions} for name in names}


def _mask(positions: int) -> Tensor:
    return torch.ones(_ROWS, positions, dtype=torch.int64)


class _Encoder(nn.Module):
    """The encoder, followed by the key and value projections of the decoder's cross-attention."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.cross_attention: Any = nn.ModuleList(block.layer[1].EncDecAttention for block in model.decoder.block)
        self.layers = len(self.cross_attention)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        positions = torch.arange(input_ids.shape[1]).unsqueeze(0)
        with _distances(self.encoder, positions, positions):
            hidden = self.encoder(input_ids, attention_mask).last_hidden_state
        return tuple(
            projection(hidden).view(*input_ids.shape, attention.n_heads, attention.key_value_proj_dim).transpose(1, 2)
            for attention in self.cross_attention
            for projection in (attention.k, attention.v)
        )


class _Decoder(nn.Module):
    """The decoder and its head, with the past and the cross-attention's keys and values as flat arguments."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.lm_head = model.lm_head
        self.layers = len(model.decoder.block)
        self.scale = output_scale(model.config)

    def forward(
        self, input_ids: Tensor, mask: Tensor, encoder_mask: Tensor, *keys_and_values: Tensor
    ) -> tuple[Tensor, ...]:
        of_self, of_cross = keys_and_values[: 2 * self.layers], keys_and_values[2 * self.layers :]
        cache = EncoderDecoderCache(_cache(of_self), _cache(of_cross))
        new = input_ids.shape[1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with _distances(self.decoder, positions[:, -new:], positions):
            output = self.decoder(
                input_ids,
                attention_mask=_visible(mask, new, self.lm_head.weight.dtype),
                # Unused: its keys and values are in the cache already.
                encoder_hidden_states=of_cross[0].flatten(2),
                encoder_attention_mask=encoder_mask,
                past_key_values=cache,
                use_cache=True,
            )
        hidden = output.last_hidden_state
        if self.scale != 1.0:
            hidden = hidden * self.scale
        present = [tensor for layer in cache.self_attention_cache.layers for tensor in (layer.keys, layer.values)]
        return self.lm_head(hidden), *present


def _cache(tensors: tuple[Tensor, ...]) -> DynamicCache:
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(tensors[::2], tensors[1::2], strict=True)):
        cache.update(keys, values, layer)
    return cache


def _visible(mask: Tensor, new: int, dtype: torch.dtype) -> Tensor:
    """Additive attention mask of the new positions, `[rows, 1, new, past + new]`.

    Padding attends to itself: with nothing to attend to, its scores could all be minus infinity, and its keys and
    values NaN.
    """
    columns = torch.arange(mask.shape[1])
    own = columns[-new:, None]
    visible = ((columns <= own) & (mask[:, None, :] > 0)) | (columns == own)
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype)
    return torch.where(visible, torch.zeros((), dtype=dtype), hidden).unsqueeze(1)


@contextmanager
def _distances(stack: Any, queries: Tensor, keys: Tensor) -> Iterator[None]:
    """Make a stack compute its position bias from these positions, `[rows or 1, new]` and `[rows or 1, past + new]`.

    The bucket of a distance is a logarithm, rounded down; at powers of two another runtime's logarithm may fall on the
    other side, so the buckets are a constant table.
    """
    attention = stack.block[0].layer[0].SelfAttention
    farthest = attention.relative_attention_max_distance
    buckets = attention._relative_position_bucket(
        torch.arange(-farthest, farthest + 1),
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=farthest,
    )

    def bias(*_lengths: Any, **_positions: Any) -> Tensor:
        distances = keys[:, None, :] - queries[:, :, None]
        of_distances = buckets[distances.clamp(-farthest, farthest) + farthest]
        values: Tensor = attention.relative_attention_bias(of_distances)
        return values.permute(0, 3, 1, 2)

    attention.compute_bias = bias
    try:
        yield
    finally:
        del attention.compute_bias
