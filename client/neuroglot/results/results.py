"""Results: analyses of groups, predictions, captured layers and generated tokens.

A `GroupResult` wraps the protobuf message and decodes its parts on access. Access to a part that was not requested
raises NotInResultError, which names the argument that requests it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from neuroglot import arguments
from neuroglot.errors import ModelChangedError, NotInResultError, ServerError
from neuroglot.frames import frame
from neuroglot.results.type_maps import Types
from neuroglot.v1 import model_pb2, result_pb2, service_pb2

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "baseline"
"""The name of the variant without interventions."""

_Item = TypeVar("_Item")


class _Named(dict[str, _Item]):
    """A dictionary whose error for an unknown name lists the known ones."""

    def __init__(self, what: str, items: Mapping[str, _Item]) -> None:
        super().__init__(items)
        self._what = what

    def __missing__(self, name: str) -> _Item:
        raise NotInResultError(f"there is no {self._what} {name!r} in this result: it has {', '.join(map(repr, self))}")


@dataclass(frozen=True, repr=False)
class RowPrediction:
    """The model's prediction for one prompt under one variant.

    Attributes:
        error: why there is no prediction (an intervention made the numbers overflow); empty if there is one.
        exact: whether every gold token is the most likely one given those before it; None without an answer.
        gold_log_probability: sum of the gold tokens' log-probabilities, in nats; None without an answer.
        token_ids: the generated tokens without EOS; empty unless generation was requested.
        text: the text of `token_ids`, without leading and trailing white space.
        matches: whether the normalised text equals any normalised answer; None without an answer or generation.
        starts_with_answer: whether the normalised text starts with any normalised answer; None without an answer or
            generation.
        selected_neurons: number of neurons that the interventions selected in this row, over all layers and components.
        selected_active_neurons: how many of them were active in the baseline.
        choice_log_probabilities: log-probability of each of the row's choices, summed over its tokens, in nats, in the
            order of the choices; empty without choices.
    """

    error: str
    exact: bool | None
    gold_log_probability: float | None
    token_ids: tuple[int, ...]
    text: str
    matches: bool | None
    starts_with_answer: bool | None
    selected_neurons: int
    selected_active_neurons: int
    choice_log_probabilities: tuple[float, ...] = ()

    def __repr__(self) -> str:
        if self.error:
            return f"<RowPrediction: none, {arguments.shown(self.error)}>"
        facts = [arguments.shown(self.text)] if self.token_ids else []
        facts += [f"{name} {value}" for name in ("exact", "matches") if (value := getattr(self, name)) is not None]
        if self.gold_log_probability is not None:
            facts.append(f"gold {self.gold_log_probability:.3f} nats")
        if self.choice is not None:
            facts.append(f"choice {self.choice} of {len(self.choice_log_probabilities)}")
        return f"<RowPrediction: {', '.join(facts) or 'nothing'}>"

    @property
    def choice(self) -> int | None:
        """Index of the row's most likely choice, counted from 0; None without choices."""
        likelihoods = self.choice_log_probabilities
        return max(range(len(likelihoods)), key=likelihoods.__getitem__) if likelihoods else None

    @classmethod
    def from_message(cls, message: result_pb2.RowPrediction) -> RowPrediction:
        """Decode the message. Unset fields become None, where protobuf's getters would give False or 0."""
        return cls(
            error=message.error,
            exact=message.exact if message.HasField("exact") else None,
            gold_log_probability=message.gold_log_probability if message.HasField("gold_log_probability") else None,
            token_ids=tuple(message.token_ids),
            text=message.text,
            matches=message.matches if message.HasField("matches") else None,
            starts_with_answer=message.starts_with_answer if message.HasField("starts_with_answer") else None,
            selected_neurons=message.selected_neurons,
            selected_active_neurons=message.selected_active_neurons,
            choice_log_probabilities=tuple(message.choice_log_probabilities),
        )


@dataclass(frozen=True, eq=False, repr=False)
class ComponentResult:
    """The neurons of one component.

    Attributes:
        name: `decoder` or `encoder`.
        layers: number of layers.
        neurons: number of neurons per layer.
        thresholds: types at each requested threshold, in the order of the request.
    """

    name: str
    layers: int
    neurons: int
    thresholds: tuple[Types, ...]

    def __repr__(self) -> str:
        thresholds = ", ".join(f"{types.threshold:g}" for types in self.thresholds)
        return f"<ComponentResult {self.name}: {self.layers} x {self.neurons}, thresholds {thresholds}>"


@dataclass(frozen=True, eq=False, repr=False)
class CapturedLayer:
    """Raw activations of one layer.

    Attributes:
        layer: index of the layer, counted from 0.
        positions: token positions in the prompt, counted from 0.
        values: activations `[positions, neurons]`, float32 or float16 as in the model.
    """

    layer: int
    positions: tuple[int, ...]
    values: NDArray[np.float32 | np.float16]

    def __repr__(self) -> str:
        positions, neurons = self.values.shape
        return f"<CapturedLayer {self.layer}: {positions} positions x {neurons} neurons, {self.values.dtype}>"

    @classmethod
    def from_message(cls, message: service_pb2.CaptureActivationsResponse) -> CapturedLayer:
        """Decode the message; its values are little-endian on every platform."""
        dtype = np.dtype(message.values.dtype).newbyteorder("<")
        values = np.frombuffer(message.values.data, dtype=dtype).reshape(message.values.shape)
        return cls(message.layer, tuple(message.positions), values.astype(dtype.newbyteorder("=")))


class GeneratedToken(NamedTuple):
    """A generated token.

    Attributes:
        token_id: id of the token.
        text: text that the token adds; empty while a character still lacks some of its tokens.
        log_probability: log-probability of the token, in nats.
    """

    token_id: int
    text: str
    log_probability: float


@dataclass(frozen=True)
class GroupFailure:
    """A group of `Model.analyze_many` that failed; the other groups continue.

    Attributes:
        group_id: id of the group.
        error: the error that `Model.analyze` would have raised.
    """

    group_id: str
    error: ServerError


class GroupResult:
    """The result of analysing one group.

    Attributes:
        message: the protobuf message `neuroglot.v1.GroupResult`, which all other attributes are decoded from.
    """

    def __init__(self, message: result_pb2.GroupResult) -> None:
        self.message = message

    @classmethod
    def from_bytes(cls, data: bytes) -> GroupResult:
        """Decode a result that `to_bytes` encoded.

        Raises:
            ValueError: the bytes are not an encoded result.
        """
        if not isinstance(data, bytes):
            raise arguments.refuse("data", data, "the bytes that `GroupResult.to_bytes` wrote", ValueError)
        try:
            return cls(result_pb2.GroupResult.FromString(data))
        except DecodeError as error:
            raise ValueError(f"these {len(data)} bytes are no result that `to_bytes` wrote: {error}") from None

    def to_bytes(self) -> bytes:
        """Encode the result as bytes, for storage; equal results give equal bytes."""
        return self.message.SerializeToString(deterministic=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupResult) and self.message == other.message

    def __reduce__(self) -> tuple[Callable[[bytes], GroupResult], tuple[bytes]]:
        """Pickle the result as its bytes."""
        return type(self).from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        components = [f"{one.component} {one.layers} x {one.neurons}" for one in self.message.components]
        variants = [variant.name for variant in self.message.variants]
        facts = [", ".join(self.labels), *components, *([f"variants {', '.join(variants)}"] if variants else [])]
        return f"<GroupResult {self.group_id!r} by {self.provenance.model}: {'; '.join(facts)}>"

    def to_frame(self) -> pd.DataFrame:
        """Return the predictions as a table: a row for each variant and label, a column for each `RowPrediction` field.

        Raises:
            NotInResultError: predictions were not requested.
            InstallationError: pandas is not installed.
        """
        rows = [(variant, label, row) for variant, named in self.predictions.items() for label, row in named.items()]
        return frame(
            {
                "group_id": [self.group_id for _ in rows],
                "variant": [variant for variant, _, _ in rows],
                "label": [label for _, label, _ in rows],
                **{one.name: [getattr(row, one.name) for _, _, row in rows] for one in fields(RowPrediction)},
            }
        )

    @property
    def group_id(self) -> str:
        """The id of the group."""
        return self.message.group_id

    @property
    def rows(self) -> tuple[result_pb2.RowResult, ...]:
        """The tokens of each row: protobuf messages `neuroglot.v1.RowResult`.

        Their fields are `label`, `prompt_tokens`, `last_token_id`, `gold_token_ids`, `gold_is_joint` and `r_index`.
        """
        return tuple(self.message.rows)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the rows: the group's languages."""
        return tuple(row.label for row in self.message.rows)

    @property
    def provenance(self) -> result_pb2.Provenance:
        """Where the result comes from: model, source, bundle identity, server version, timings in milliseconds."""
        return self.message.provenance

    @cached_property
    def components(self) -> Mapping[str, ComponentResult]:
        """The neurons, by component; an unknown name raises NotInResultError."""
        source = self.provenance.source
        components = {
            component.component: ComponentResult(
                name=component.component,
                layers=component.layers,
                neurons=component.neurons,
                thresholds=tuple(Types(one, component, self.labels, source) for one in component.thresholds),
            )
            for component in self.message.components
        }
        return _Named("component", components)

    @property
    def types(self) -> Types:
        """The types in the only component, at the first threshold.

        Raises:
            NotInResultError: the model has several components.
        """
        if len(self.components) != 1:
            names = list(self.components)
            raise NotInResultError(
                f"the model has the components {' and '.join(names)}: say which, "
                f"`result.components[{names[-1]!r}].thresholds[0]`"
            )
        (component,) = self.components.values()
        return component.thresholds[0]

    @cached_property
    def predictions(self) -> Mapping[str, Mapping[str, RowPrediction]]:
        """Predictions by variant (`baseline` first), then by label; an unknown name raises NotInResultError.

        Raises:
            NotInResultError: predictions were not requested.
        """
        if not self.message.variants:
            raise NotInResultError("predictions were not asked for: analyze with predict=True")
        variants = {
            variant.name: _Named(
                "row", dict(zip(self.labels, map(RowPrediction.from_message, variant.predictions), strict=True))
            )
            for variant in self.message.variants
        }
        return _Named("variant", variants)


def require_same_bundle(made_by: result_pb2.Provenance, model: model_pb2.Model) -> None:
    """Check that a result was made by the bundle that the caller's `Model` refers to.

    Raises:
        ModelChangedError: it was made by another bundle.
    """
    if made_by.bundle_identity != model.bundle_identity:
        raise ModelChangedError(
            f"the server has another bundle under the name {model.name!r} now, {made_by.bundle_identity[:12]} in place "
            f"of {model.bundle_identity[:12]}, and results of both do not mix: ask the client for the model again"
        )
