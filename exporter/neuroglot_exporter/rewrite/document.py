"""Documents inputs and outputs in the graph itself."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx
from onnx import helper

from neuroglot.definitions.bundle import FORMAT_VERSION

_ROWS = "rows are padded on the left"
_DOCUMENTATION = {
    r"input_ids": "token ids; padding may be any id",
    r"attention_mask": f"1 for tokens, 0 for padding; over past positions, too, where there are any; {_ROWS}",
    r"position_ids": "positions of the new tokens among their row's real tokens, counted from 0",
    r"decoder_attention_mask": f"1 for the decoder's tokens, 0 for padding, over past and new positions; {_ROWS}",
    r"encoder_attention_mask": "attention_mask as the encoder got it",
    r"past_key_values\.(\d+)\.(?:decoder\.)?(key|value)": (
        r"layer \1's self-attention \2s for past positions; there may be none"
    ),
    r"past_key_values\.(\d+)\.encoder\.(key|value)": (
        r"layer \1's cross-attention \2s: what the encoder gave as present.\1.encoder.\2"
    ),
    r"present\.(\d+)\.((?:decoder\.)?(?:key|value))": (
        r"for past and new positions, or the trailing ones of them: to be fed as past_key_values.\1.\2"
    ),
    r"present\.(\d+)\.encoder\.(key|value)": (
        r"decoder layer \1's cross-attention \2s: to be fed as past_key_values.\1.encoder.\2"
    ),
    r"logits": "scores of the next token after each kept position",
}
_OPTIONAL = {
    r"ffn\.\d+\.mask": ("ffn.i.mask", "multiplies ffn.i.activation; optional, 1"),
    r"ffn\.\d+\.override": ("ffn.i.override", "is added after the mask; optional, 0"),
    r"activations_from": ("activations_from", "first kept position of the taps; optional, -1"),
    r"logits_from": ("logits_from", "first kept position of the logits; optional, -1"),
    r"past_rows": ("past_rows", "which row of past_key_values each row goes on from; optional, -1: its own"),
    r"cross_rows": ("cross_rows", "the same of the encoder's keys and values; optional, -1: its own"),
    r"present_from": ("present_from", "first kept position of present keys and values; optional, 0: all"),
}
"""Also written to the metadata: viewers do not list inputs that have a default."""


def document(model: onnx.ModelProto, component: str, summary: str, metadata: Mapping[str, str]) -> None:
    """Name the graph and its maker, and give every input and output a doc string.

    Before: the graph has all its inputs and outputs; those of the taps, masks and overrides have doc strings already.
    After: all have doc strings; the metadata hold the optional inputs and `metadata`.

    Args:
        model: changed in place.
        component: the graph's name.
        summary: one line about it.
        metadata: further metadata for readers of the graph, by key.
    """
    graph = model.graph
    model.producer_name, model.producer_version = "neuroglot", ""  # a version would change the bundle's identity
    model.model_version, model.doc_string = FORMAT_VERSION, summary
    graph.name = component
    for info in (*graph.input, *graph.output):
        for pattern, documentation in _DOCUMENTATION.items():
            if found := re.fullmatch(pattern, info.name):
                info.doc_string = found.expand(documentation)
    optional = {}
    for info in graph.input:
        for pattern, (key, documentation) in _OPTIONAL.items():
            if re.fullmatch(pattern, info.name):
                optional[key] = documentation
    helper.set_model_props(model, {**optional, **metadata})
