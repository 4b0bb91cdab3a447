"""Raw activations of one row, layer by layer.

They are large: those of a long prompt may be larger than the model. So the prompt is run in pieces that fit into a
batch, of each piece only what is wanted is held, and where that is too much for all layers the prompt is run again for
the next ones, when the caller has taken the first.
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
"""Most that what is wanted of one layer takes up: it is sent in one message, of at most 64 MiB."""

_POSITION_BYTES = 4
"""What the number of a position takes up beside its values."""


@dataclass(frozen=True, eq=False)
class Wish:
    """What is captured of a row.

    Attributes:
        row: the row.
        component: in which component.
        tokens: what that component reads, up to the last position that is wanted and matters to it.
        positions: in the order in which they were asked for.
        neurons: which; None for all.
        coefficients: whether coefficients are wanted in the place of activations.
        layers: which, in groups that are held together.
        cost: what all of it takes.
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
class Capturing:
    """Captures rows.

    Attributes:
        answering: brings rows through the model.
        components: of the model.
        batchers: run steps, by component.
        budgets: how large their batches may be.
        most_bytes: most of a row's values that are held at a time, if they are of more than one layer.
    """

    answering: Runner
    components: Sequence[ComponentDescription]
    batchers: Mapping[str, Batcher]
    budgets: Mapping[str, Budget]
    most_bytes: int

    def wish(self, row: EncodedRow, capture: Capture) -> Wish:
        """Plan what has been validated, but for its positions.

        Raises:
            InvalidRequest: the prompt does not have a position, or one layer is more than a message holds.
        """
        component = next(part for part in self.components if capture.component in ("", part.name))
        alone = len(self.components) == 1
        tokens = row.prompt if alone or component.name == ENCODER else (self.answering.reader.start(row),)
        positions = _positions(capture.positions, len(tokens))
        if alone:
            tokens = tokens[: int(positions.max()) + 1]
        layers = capture.layers or tuple(range(component.layers))
        neurons = len(capture.neurons) or component.neurons
        of_layer = len(positions) * neurons * self.answering.dtype.itemsize
        refuse(_too_large(of_layer + len(positions) * _POSITION_BYTES, len(positions), neurons))
        at_once = max(1, self.most_bytes // of_layer)
        groups = [layers[start : start + at_once] for start in range(0, len(layers), at_once)]
        read = row.prompt if component.name == DECODER and not alone else ()
        sizes = self.budgets[component.name].sizes
        held = max(map(len, groups)) * of_layer + len(row.prompt) * sizes.key_values
        held += self._fitting(component.name, len(tokens), len(tokens)) * sizes.activations
        return Wish(
            row=row,
            component=component.name,
            tokens=tokens,
            positions=positions,
            neurons=np.array(capture.neurons) if capture.neurons else None,
            coefficients=capture.coefficients,
            layers=groups,
            cost=Cost(len(read) + len(groups) * len(tokens), held),
        )

    async def layers(self, wish: Wish, caller: Caller) -> AsyncGenerator[CapturedLayer, None]:
        """Run the row, and give its layers in their order.

        Raises:
            NotFinite: activations are not finite.
            ModelClosed: the model went down meanwhile.
        """
        for group in wish.layers:
            values = await self._values(wish, group, caller)
            for place, layer in enumerate(group):
                yield CapturedLayer(layer, wish.positions, values[place])

    async def _values(self, wish: Wish, layers: Sequence[int], caller: Caller) -> NDArray[np.floating]:
        """What is wanted of some layers, `[layers, positions, neurons]`."""
        timing = Timing()
        wanted = np.unique(wish.positions)
        start, past = 0, NO_TOKENS
        cross = await self._cross(wish, timing, caller)
        if wish.component == DECODER and not cross.length and wanted[0]:
            # Nothing is wanted of the tokens before the first position: their keys and values will do.
            prefix = Prefix(wish.tokens[: wanted[0]])
            (blocks,) = await self.answering.sharing.run([prefix], self.batchers[DECODER], timing, caller)
            start, past = int(wanted[0]), joined(blocks)
        parts = []
        while start < len(wish.tokens):
            stop = start + self._fitting(wish.component, len(wish.tokens), len(wish.tokens) - start)
            step = RowStep(wish.tokens[start:stop], past=past, cross=cross, focus=stop - start, capture=True, keep=True)
            (result,) = await self.batchers[wish.component].run([step], timing, caller)
            if result.captured is None or result.kept is None:
                raise NotFinite(
                    f"row {wish.row.label!r} gives numbers that are not finite in the {wish.component}: the model "
                    f"overflows {self.answering.dtype} on this prompt"
                )
            inside = wanted[(wanted >= start) & (wanted < stop)] - start
            picked = partial(_picked, result.captured[wish.coefficients], layers, inside, wish.neurons)
            parts.append(await asyncio.to_thread(picked))
            start, past = stop, past.extended(result.kept)
        return await asyncio.to_thread(_in_order, parts, wanted, wish.positions)

    async def _cross(self, wish: Wish, timing: Timing, caller: Caller) -> KeyValues:
        """What the decoder of an encoder-decoder reads of the prompt; nothing for anything else."""
        if wish.component != DECODER or len(self.components) == 1:
            return NO_TOKENS
        case = RowRun(wish.row)
        await self.answering.reader.read([case], timing, caller)
        return case.cross

    def _fitting(self, component: str, tokens: int, left: int) -> int:
        """How many of the last tokens are run at once: an encoder needs all of them together, a decoder does not."""
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
    """Some layers, positions and neurons of `[layers, positions, neurons]`; None for all neurons."""
    chosen = np.arange(values.shape[-1]) if neurons is None else neurons
    picked: NDArray[np.floating] = values[np.ix_(np.array(layers), positions, chosen)]
    return picked


def _in_order(
    parts: Sequence[NDArray[np.floating]], ascending: NDArray[np.int64], positions: NDArray[np.int64]
) -> NDArray[np.floating]:
    """Parts along ascending positions, put together in the order in which the positions were asked for."""
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


def _positions(asked: Sequence[int], length: int) -> NDArray[np.int64]:
    """Positions counted from the first token.

    Raises:
        InvalidRequest: there is no such position.
    """
    refuse(
        Violation(
            f"positions[{place}]",
            f"is {position}, expected a position of the prompt: it has {length} tokens (0 to {length - 1}, or "
            f"{-length} to -1 from its end)",
        )
        for place, position in enumerate(asked)
        if not -length <= position < length
    )
    return np.array(asked) % length if asked else np.arange(length)
