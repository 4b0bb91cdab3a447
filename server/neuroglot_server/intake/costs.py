"""What a group takes: tokens that it is charged for kernels, and bytes that it holds while it is in flight."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from neuroglot_server.core import Analysis, ComponentDescription, Deactivate, Intervention, Prediction, Scale
from neuroglot_server.intake.encoding import answer_tokens
from neuroglot_server.intake.text import EncodedRow
from neuroglot_server.kernels import cpu_cost
from neuroglot_server.scheduler.budget import Sizes

_TIMES_TAPS = 2
"""Activations are held as they came and stacked for the comparison, whose contributions take up as much again."""

_BITS_A_BYTE = 8


@dataclass(frozen=True)
class Costs:
    """Counts what rows hold, and says how variants are split so that it is bounded.

    Of a part of the variants all edits are held. Their rows run in parts again, and keys and values are held of one.

    Attributes:
        sizes: of each component.
        group_bytes: most that a group may hold, if it can be split so far.
        part_bytes: most that the edits of a part hold, and most that the keys and values of its rows do.
        components: of the model, whose geometry says what kernels take.
    """

    sizes: Collection[Sizes]
    group_bytes: int
    part_bytes: int
    components: Sequence[ComponentDescription]

    def kernel_tokens(self, rows: Sequence[EncodedRow], analysis: Analysis) -> int:
        """As how many tokens what the kernels do for a group counts, over all of its variants."""
        interventions = (one for variant in analysis.variants for one in variant.interventions)
        nanoseconds = self.baseline_nanoseconds(rows, analysis)
        return self.tokens_of(nanoseconds + self.interventions_nanoseconds(len(rows), interventions))

    def tokens_of(self, nanoseconds: float) -> int:
        """How many tokens take as long."""
        return int(nanoseconds / self._token_nanoseconds)

    def baseline_nanoseconds(self, rows: Sequence[EncodedRow], analysis: Analysis) -> float:
        """What the kernels do for a group's baseline; see `kernel_costs`."""
        prompts = sum(len(row.prompt) for row in rows)
        return cpu_cost.baseline_nanoseconds(self.components, len(rows), prompts, analysis)

    def interventions_nanoseconds(self, rows: int, interventions: Iterable[Intervention]) -> float:
        """What the kernels do for interventions on so many rows; see `kernel_costs`."""
        return cpu_cost.interventions_nanoseconds(self.components, rows, interventions)

    def bytes(self, rows: Sequence[EncodedRow], analysis: Analysis, anew: Sequence[bool]) -> int:
        """Most that a group holds at a time.

        Args:
            rows: of the group.
            analysis: what is wanted.
            anew: of each variant, whether prompts are read anew under it.
        """
        held = self._baseline(rows, analysis)
        if anew:
            part = self.variants(rows, analysis, len(anew))[0].stop
            of_rows = [self._row(row, analysis, any(anew)) for row in rows]
            held += part * len(rows) * self._edits(analysis) + min(
                part * sum(of_rows), max(self._room(rows, analysis), *of_rows)
            )
        return held

    def variants(self, rows: Sequence[EncodedRow], analysis: Analysis, count: int) -> list[slice]:
        """Which variants are run together, in their order, so that their edits stay within bounds.

        Returns:
            At least one part, which is empty where there are no variants.
        """
        at_once = max(1, self._room(rows, analysis) // (len(rows) * self._edits(analysis)))
        return [slice(start, min(start + at_once, count)) for start in range(0, max(count, 1), at_once)]

    def rows(
        self, rows: Sequence[EncodedRow], analysis: Analysis, changed: Sequence[tuple[EncodedRow, bool]]
    ) -> list[slice]:
        """Which rows of some variants are run together, in their order, so that what they hold stays within bounds.

        Args:
            rows: of the group.
            analysis: what is wanted.
            changed: rows under any of the variants, each with whether its prompt is read anew.

        Returns:
            At least one part, which is empty where there are no rows.
        """
        room = self._room(rows, analysis)
        parts, start, held = [], 0, 0
        for place, (row, anew) in enumerate(changed):
            size = self._row(row, analysis, anew)
            if place > start and held + size > room:
                parts.append(slice(start, place))
                start, held = place, 0
            held += size
        return [*parts, slice(start, len(changed))]

    def _room(self, rows: Sequence[EncodedRow], analysis: Analysis) -> int:
        """How much the edits of a part may hold, and its keys and values, beside the baseline."""
        return min(self.part_bytes, max(self.group_bytes - self._baseline(rows, analysis), 0) // 2)

    def _baseline(self, rows: Sequence[EncodedRow], analysis: Analysis) -> int:
        """Keys and values, activations, and what is told of each neuron."""
        taps = _TIMES_TAPS * sum(sizes.activations for sizes in self.sizes)
        bits = len(analysis.thresholds) * (analysis.active_bitmaps + analysis.type_map + 2 * analysis.dead)
        bits += analysis.active_bitmaps and analysis.contribution is not None  # the top contributors
        told = bits * sum(sizes.neurons for sizes in self.sizes) // _BITS_A_BYTE
        prompts = sum([len(row.prompt) for row in rows]) * self.key_values
        return prompts + self._answers(rows, analysis.prediction) + len(rows) * (taps + told)

    def _row(self, row: EncodedRow, analysis: Analysis, anew: bool) -> int:
        """Keys and values of a row that are not those of its baseline."""
        return self._answers([row], analysis.prediction) + anew * len(row.prompt) * self.key_values

    def _edits(self, analysis: Analysis) -> int:
        """Masks and overrides of a row; where values are kept, dropped or replaced, a switch a neuron is its mask."""
        actions = [one.action for variant in analysis.variants for one in variant.interventions]
        scales = any(isinstance(action, Scale) for action in actions)
        adds = any(not isinstance(action, Scale | Deactivate) for action in actions)
        return sum((sizes.edits if scales else sizes.neurons) + adds * sizes.edits for sizes in self.sizes)

    def _answers(self, rows: Sequence[EncodedRow], prediction: Prediction | None) -> int:
        if prediction is None or not prediction.generate:
            return 0
        return sum([1 + answer_tokens(row, prediction) for row in rows]) * self.key_values

    @cached_property
    def _token_nanoseconds(self) -> float:
        return cpu_cost.token_nanoseconds(self.components)

    @cached_property
    def key_values(self) -> int:
        """Of one token, whether the decoder's own or one that an encoder read: both have the decoder's geometry."""
        return max(sizes.key_values for sizes in self.sizes)
