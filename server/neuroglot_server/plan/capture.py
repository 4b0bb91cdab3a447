"""Raw activations of one row, layer by layer.

Activations are large: those of a long prompt may be larger than the model. So the prompt is run in chunks that fit into
a batch, and only the requested values of each chunk are held. If these are too large for all layers at once, the layers
are split into groups, and the prompt is run again for each group once the caller has taken the one before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from neuroglot.errors import Violation
from neuroglot_server.cache.prefix_cache import Prefix, joined
from neuroglot_server.core import DECODER, ENCODER, Caller, Capture, CapturedLayer, ComponentDescription, NotFinite
from neuroglot_server.engine.steps import NO_TOKENS, KeyValues, RowStep
from neuroglot_server.intake.admission import Cost
from neuroglot_server.intake.text import EncodedRow
from neuroglot_server.intake.validation import refuse
from neuroglot_server.plan.rows import RowRun
from neuroglot_server.plan.runner import Runner
from neuroglot_server.scheduler.batcher import Batcher, Timing
from neuroglot_server.scheduler.budget import Budget, Extent

LARGEST_LAYER_BYTES = 60 * 2**20
"""Maximum size of the captured values of one layer, which are sent in one message of at most 64 MiB."""

_POSITION_BYTES = 4
"""Size of a position's number in the message, in addition to its values."""


@dataclass(frozen=True, eq=False)
class CapturePlan:
    """The plan of a capture.

    Attributes:
        row: the row.
        component: the component's name.
        tokens: the component's input tokens. A causal decoder's end at the last requested position.
        positions: the requested positions, in the order of the request.
        neurons: the requested neurons; None for all.
        coefficients: whether coefficients are captured in place of activations.
        layers: the requested layers, in groups that are held in memory together.
        cost: the cost of the whole capture.
    """

    row: EncodedRow
    component: str
    tokens: tuple[int, ...]
    positions: NDArray[np.int64]
    neurons: NDArray[np.int64] | None
    coefficients: bool
    layers: Sequence[Sequence[int]]
    cost: Cost


@dataclass(frozen=True, eq=False)
class CaptureRunner:
    """Captures rows.

    Attributes:
        runner: runs rows through the model.
        components: the model's components.
        batchers: run steps, by component.
        budgets: limits of their batches, by component.
        max_bytes: maximum size of a row's values held at a time; one layer is always held, whatever its size.
    """

    runner: Runner
    components: Sequence[ComponentDescription]
    batchers: Mapping[str, Batcher]
    budgets: Mapping[str, Budget]
    max_bytes: int

    def plan(self, row: EncodedRow, capture: Capture) -> CapturePlan:
        """Plan a capture, which has been validated except for its positions.

        Raises:
            InvalidRequest: the prompt does not have a position, or one layer does not fit into a message.
        """
        component = next(part for part in self.components if capture.component in ("", part.name))
        causal = len(self.components) == 1
        tokens = row.prompt if causal or component.name == ENCODER else (self.runner.prefill.start_token(row),)
        positions = _positions(capture.positions, len(tokens))
        if causal:
            tokens = tokens[: int(positions.max()) + 1]
        layers = capture.layers or tuple(range(component.layers))
        neurons = len(capture.neurons) or component.neurons
        layer_bytes = len(positions) * neurons * self.runner.dtype.itemsize
        refuse(_too_large(layer_bytes + len(positions) * _POSITION_BYTES, len(positions), neurons))
        layers_at_once = max(1, self.max_bytes // layer_bytes)
        groups = [layers[start : start + layers_at_once] for start in range(0, len(layers), layers_at_once)]
        encoded = row.prompt if component.name == DECODER and not causal else ()
        sizes = self.budgets[component.name].sizes
        held_bytes = max(map(len, groups)) * layer_bytes + len(row.prompt) * sizes.key_values
        held_bytes += self._chunk_length(component.name, len(tokens), len(tokens)) * sizes.activations
        return CapturePlan(
            row=row,
            component=component.name,
            tokens=tokens,
            positions=positions,
            neurons=np.array(capture.neurons) if capture.neurons else None,
            coefficients=capture.coefficients,
            layers=groups,
            cost=Cost(len(encoded) + len(groups) * len(tokens), held_bytes),
        )

    async def layers(self, plan: CapturePlan, caller: Caller) -> AsyncGenerator[CapturedLayer, None]:
        """Run the row, and yield its layers in the order of the plan.

        Raises:
            NotFinite: activations are not finite.
            ModelClosed: the model was closed meanwhile.
        """
        for group in plan.layers:
            values = await self._values(plan, group, caller)
            for index, layer in enumerate(group):
                yield CapturedLayer(layer, plan.positions, values[index])

    async def _values(self, plan: CapturePlan, layers: Sequence[int], caller: Caller) -> NDArray[np.floating]:
        """The requested values of some layers, `[layers, positions, neurons]`."""
        timing = Timing()
        positions = np.unique(plan.positions)
        start, past = 0, NO_TOKENS
        cross = await self._cross(plan, timing, caller)
        if plan.component == DECODER and not cross.length and positions[0]:
            # Nothing is captured before the first position, so the prefix cache may supply keys and values.
            prefix = Prefix(plan.tokens[: positions[0]])
            (blocks,) = await self.runner.step_cache.run([prefix], self.batchers[DECODER], timing, caller)
            start, past = int(positions[0]), joined(blocks)
        parts = []
        while start < len(plan.tokens):
            stop = start + self._chunk_length(plan.component, len(plan.tokens), len(plan.tokens) - start)
            step = RowStep(plan.tokens[start:stop], past=past, cross=cross, focus=stop - start, capture=True, keep=True)
            (result,) = await self.batchers[plan.component].run([step], timing, caller)
            if result.captured is None or result.kept is None:
                raise NotFinite(
                    f"row {plan.row.label!r} gives numbers that are not finite in the {plan.component}: the model "
                    f"overflows {self.runner.dtype} on this prompt"
                )
            in_chunk = positions[(positions >= start) & (positions < stop)] - start
            picked = partial(_picked, result.captured[plan.coefficients], layers, in_chunk, plan.neurons)
            parts.append(await asyncio.to_thread(picked))
            start, past = stop, past.extended(result.kept)
        return await asyncio.to_thread(_in_order, parts, positions, plan.positions)

    async def _cross(self, plan: CapturePlan, timing: Timing, caller: Caller) -> KeyValues:
        """Cross-attention keys and values for the decoder of an encoder-decoder; no tokens for other components."""
        if plan.component != DECODER or len(self.components) == 1:
            return NO_TOKENS
        run = RowRun(plan.row)
        await self.runner.prefill.run([run], timing, caller)
        return run.cross

    def _chunk_length(self, component: str, tokens: int, left: int) -> int:
        """How many of the `left` last tokens fit into one batch; an encoder must run all of them at once."""
        if component == ENCODER:
            return left
        budget = self.budgets[DECODER]
        return max(1, budget.longest_row(lambda new: Extent(new, past=tokens - new, tapped=new, kept=True), left))


def _picked(
    values: NDArray[np.floating],
    layers: Sequence[int],
    positions: NDArray[np.int64],
    neurons: NDArray[np.int64] | None,
) -> NDArray[np.floating]:
    """Copy some layers, positions and neurons of `[layers, positions, neurons]`; None for all neurons."""
    chosen = np.arange(values.shape[-1]) if neurons is None else neurons
    picked: NDArray[np.floating] = values[np.ix_(np.array(layers), positions, chosen)]
    return picked


def _in_order(
    parts: Sequence[NDArray[np.floating]], ascending: NDArray[np.int64], positions: NDArray[np.int64]
) -> NDArray[np.floating]:
    """Concatenate parts along ascending positions, and reorder them as requested."""
    values = np.concatenate(parts, axis=1)
    if np.array_equal(ascending, positions):
        return values
    return values[:, np.searchsorted(ascending, positions)]


def _too_large(size: int, positions: int, neurons: int) -> Iterator[Violation]:
    if size > LARGEST_LAYER_BYTES:
        yield Violation(
            "positions",
            f"make a layer of {size / 2**20:.0f} MiB ({positions} positions of {neurons} neurons), expected one of at "
            f"most {LARGEST_LAYER_BYTES // 2**20} MiB: ask for fewer positions, or for some of the neurons",
        )


def _positions(requested: Sequence[int], length: int) -> NDArray[np.int64]:
    """Convert requested positions, negative ones from the end, to indices from 0; all positions if none are requested.

    Raises:
        InvalidRequest: there is no such position.
    """
    refuse(
        Violation(
            f"positions[{index}]",
            f"is {position}, expected a position of the prompt: it has {length} tokens (0 to {length - 1}, or "
            f"{-length} to -1 from its end)",
        )
        for index, position in enumerate(requested)
        if not -length <= position < length
    )
    return np.array(requested) % length if requested else np.arange(length)
