"""What the graphs of a bundle take and give: a causal decoder, or an encoder and the decoder that reads what it kept.

graph            keys and values it takes              keys and values it gives
causal decoder   past_key_values.{i}.key               present.{i}.key
encoder                                                present.{j}.encoder.key, j being a layer of the decoder
its decoder      past_key_values.{i}.decoder.key       present.{i}.decoder.key
                 past_key_values.{i}.encoder.key

and `.value` beside each `.key`. The encoder gives no logits; all else is the same in the three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuroglot.definitions.bundle import Component, ModelFacts
from neuroglot.definitions.fields import shown
from neuroglot.errors import BundleError
from neuroglot_server.core import DECODER, ENCODER

_FLOATS: dict[str, np.dtype[np.floating]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}
_OPTIONAL = {"position_ids", "present_from", "past_rows", "cross_rows"}
"""Inputs that not every graph has."""
_TAP_RANK = 3
_MAX_LISTED = 5


@dataclass(frozen=True)
class Interface:
    """Names of what a graph takes and gives beside its neurons.

    Attributes:
        attention: input of the attention mask over past and new tokens.
        past: inputs of the past's keys and values, in the order of `KeyValues`; none for an encoder.
        cross: inputs of the encoder's keys and values, in the same order; none but for the decoder that reads them.
        present: outputs of keys and values, in the same order.
        logits: whether it gives logits.
    """

    attention: str
    past: tuple[str, ...]
    cross: tuple[str, ...]
    present: tuple[str, ...]
    logits: bool = True


def interfaces(facts: ModelFacts) -> dict[str, Interface]:
    """The interface of every component's graph, by the component's name.

    Raises:
        BundleError: the components are not those of a causal model or of an encoder-decoder.
    """
    layers = {component.name: component.layers for component in facts.components}
    names, start = tuple(layers), facts.decoder_start_token_id
    if names == (DECODER,) and start is None:
        past, present = _names("past_key_values.{}", layers[DECODER]), _names("present.{}", layers[DECODER])
        return {DECODER: Interface("attention_mask", past, (), present)}
    if names == (ENCODER, DECODER) and start is not None:
        past, cross, present, kept = (
            _names(pattern, layers[DECODER])
            for pattern in (
                "past_key_values.{}.decoder",
                "past_key_values.{}.encoder",
                "present.{}.decoder",
                "present.{}.encoder",
            )
        )
        return {
            ENCODER: Interface("attention_mask", (), (), kept, logits=False),
            DECODER: Interface("decoder_attention_mask", past, cross, present),
        }
    raise BundleError(
        f"the bundle has components {', '.join(names)} and decoder_start_token_id {start}, expected a decoder without "
        "or an encoder and a decoder with one: export the model again"
    )


def _names(pattern: str, layers: int) -> tuple[str, ...]:
    return tuple(f"{pattern.format(layer)}.{part}" for layer in range(layers) for part in ("key", "value"))


@dataclass(frozen=True)
class Signature:
    """What a component's graph takes and gives.

    Attributes:
        interface: how its inputs and outputs are called.
        layers: number of layers.
        neurons: FFN neurons a layer.
        dtype: of activations, keys and values.
        heads: heads of the keys and values that it takes and gives.
        head_size: width of a head.
        position_ids: whether the graph takes them (models whose positions do not follow from the attention mask).
        coefficients: whether coefficients are an output of their own (gated models).
        trailing: whether it gives keys and values from `present_from` on only, so that a long past does not come out
            again with every pass; graphs of older exports give all of them.
        vocabulary: how wide logits are; 0 where none are given.
        forks: whether rows may go on from keys and values that are fed once for several of them (`past_rows`,
            `cross_rows`); graphs of older exports are fed those of every row.
    """

    interface: Interface
    layers: int
    neurons: int
    dtype: np.dtype[np.floating]
    heads: int
    head_size: int
    position_ids: bool
    coefficients: bool
    trailing: bool
    forks: bool
    vocabulary: int

    @property
    def activation_names(self) -> list[str]:
        """Outputs of activations, by layer."""
        return [f"ffn.{layer}.activation" for layer in range(self.layers)]

    @property
    def coefficient_names(self) -> list[str]:
        """Outputs of coefficients, by layer; none where they are the activations."""
        return [f"ffn.{layer}.coefficient" for layer in range(self.layers)] if self.coefficients else []


def read_signature(
    graph: Path, component: Component, interface: Interface, inputs: Sequence[Any], outputs: Sequence[Any]
) -> Signature:
    """Compare a graph with what its component should take and give.

    Args:
        graph: the file, for the errors.
        component: what the manifest says of it.
        interface: see `interfaces`.
        inputs: all that it takes, as ONNX Runtime describes them: each has a `name`, a `type` and a `shape`.
        outputs: all that it gives, likewise.

    Raises:
        BundleError: something is missing, of another type or another shape, or there is an input that is never fed.
    """
    taken: Mapping[str, Any] = {node.name: node for node in inputs}
    wanted = {"input_ids", interface.attention, "activations_from", *interface.past, *interface.cross}
    floats = {f"ffn.{layer}.{part}" for layer in range(component.layers) for part in ("mask", "override")}
    wanted |= floats
    if interface.cross:
        wanted.add("encoder_attention_mask")
    results: Mapping[str, Any] = {node.name: node for node in outputs}
    taps = [f"ffn.{layer}.activation" for layer in range(component.layers)]
    if component.gated:
        taps += [f"ffn.{layer}.coefficient" for layer in range(component.layers)]
    given = {*taps, *interface.present}
    if interface.logits:
        wanted.add("logits_from")
        given.add("logits")
    missing = sorted((wanted - taken.keys()) | (given - results.keys()))
    if missing:
        raise BundleError(f"{graph} lacks {_listed(missing)}: export the model again with this version")
    unknown = sorted(taken.keys() - wanted - _OPTIONAL)
    if unknown:
        names = _listed([shown(name) for name in unknown])
        raise BundleError(f"{graph} takes {names}, which this server does not feed: upgrade neuroglot")
    kind = taken["ffn.0.mask"].type
    if kind not in _FLOATS:
        raise BundleError(f"{graph} computes in {kind}, expected {' or '.join(_FLOATS)}: export the model again")
    floats |= {*interface.past, *interface.cross}
    for name, node in taken.items():
        _check_type(graph, node, kind if name in floats else "tensor(int64)")
    for name in sorted(given):
        _check_type(graph, results[name], kind)
    heads, head_size = _heads(graph, results[interface.present[0]])
    for node in (*(results[name] for name in interface.present), *(taken[name] for name in interface.past)):
        if _heads(graph, node) != (heads, head_size):
            raise BundleError(f"{graph} has keys and values of different shapes: export the model again")
    for name in taps:
        if len(results[name].shape) != _TAP_RANK or results[name].shape[-1] != component.neurons:
            raise BundleError(
                f"{graph} gives {name} as {results[name].shape}, expected [rows, positions, {component.neurons}]: "
                "export the model again"
            )
    return Signature(
        interface=interface,
        layers=component.layers,
        neurons=component.neurons,
        dtype=_FLOATS[kind],
        heads=heads,
        head_size=head_size,
        position_ids="position_ids" in taken,
        coefficients=component.gated,
        trailing="present_from" in taken,
        forks="past_rows" in taken,
        vocabulary=_vocabulary(graph, results["logits"]) if interface.logits else 0,
    )


def check_facts(graph: Path, signature: Signature, facts: ModelFacts) -> None:
    """Compare a graph with what the manifest says of the whole model.

    Raises:
        BundleError: they differ in dtype or vocabulary.
    """
    if signature.dtype != np.dtype(facts.dtype):
        raise BundleError(f"{graph} computes in {signature.dtype}, the manifest says {facts.dtype}: export again")
    if signature.interface.logits and signature.vocabulary != facts.vocabulary_size:
        raise BundleError(
            f"{graph} gives logits of {signature.vocabulary} tokens, the manifest says {facts.vocabulary_size}: export "
            "the model again"
        )


def _listed(names: Sequence[str]) -> str:
    """The first few names."""
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _check_type(graph: Path, node: Any, expected: str) -> None:
    if node.type != expected:
        raise BundleError(f"{graph} has {shown(node.name)} of type {node.type}, expected {expected}: export again")


def _heads(graph: Path, node: Any) -> tuple[int, int]:
    """How many heads keys or values have, and how wide each is."""
    match node.shape:
        case [_, int(heads), _, int(head_size)] if heads > 0 and head_size > 0:
            return heads, head_size
    raise BundleError(f"{graph} has {node.name} as {node.shape}, expected [rows, heads, positions, head_size]")


def _vocabulary(graph: Path, logits: Any) -> int:
    match logits.shape:
        case [_, _, int(vocabulary)]:
            return vocabulary
    raise BundleError(f"{graph} gives logits as {logits.shape}, expected [rows, positions, vocabulary]: export again")
