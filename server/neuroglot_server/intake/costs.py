"""The cost of a group: tokens that it is charged for kernels, and bytes that it holds while it is in flight."""

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
"""Captured activations are also held stacked for the kernels, whose contributions take up as much again."""

_BITS_A_BYTE = 8


@dataclass(frozen=True)
class Costs:
    """Computes the memory of groups, and splits variants and rows into parts so that it stays bounded.

    Variants run in parts, and the edits of one part are held at a time. The rows of a part run in parts again, and the
    keys and values of one of these are held at a time.

    Attributes:
        sizes: sizes of each component, in bytes per token or row.
        group_bytes: maximum bytes of a group, if it can be split far enough.
        part_bytes: maximum bytes of the edits of a part, and of the keys and values of its rows.
        components: components of the model, whose geometry determines the cost of kernels.
    """

    sizes: Collection[Sizes]
    group_bytes: int
    part_bytes: int
    components: Sequence[ComponentDescription]

    def kernel_tokens(self, rows: Sequence[EncodedRow], analysis: Analysis) -> int:
        """Return the tokens that the kernels of a group are charged, over all of its variants."""
        interventions = (part for variant in analysis.variants for part in variant.interventions)
        nanoseconds = self.baseline_nanoseconds(rows, analysis)
        return self.tokens_of(nanoseconds + self.interventions_nanoseconds(len(rows), interventions))

    def tokens_of(self, nanoseconds: float) -> int:
        """Convert a run time to the number of tokens that take as long."""
        return int(nanoseconds / self._token_nanoseconds)

    def baseline_nanoseconds(self, rows: Sequence[EncodedRow], analysis: Analysis) -> float:
        """Estimate the run time of the kernels for a group's baseline; see `kernels.cpu_cost`."""
        prompts = sum(len(row.prompt) for row in rows)
        return cpu_cost.baseline_nanoseconds(self.components, len(rows), prompts, analysis)

    def interventions_nanoseconds(self, rows: int, interventions: Iterable[Intervention]) -> float:
        """Estimate the run time of the kernels for interventions on a number of rows; see `kernels.cpu_cost`."""
        return cpu_cost.interventions_nanoseconds(self.components, rows, interventions)

    def bytes(self, rows: Sequence[EncodedRow], analysis: Analysis, reruns: Sequence[bool]) -> int:
        """Return the maximum bytes that a group holds at a time.

        Args:
            rows: rows of the group.
            analysis: options of the analysis.
            reruns: for each variant, whether it re-runs the prefill of prompts.
        """
        held = self._baseline(rows, analysis)
        if reruns:
            part = self.variants(rows, analysis, len(reruns))[0].stop
            of_rows = [self._row(row, analysis, any(reruns)) for row in rows]
            held += part * len(rows) * self._edits(analysis) + min(
                part * sum(of_rows), max(self._part_limit(rows, analysis), *of_rows)
            )
        return held

    def variants(self, rows: Sequence[EncodedRow], analysis: Analysis, count: int) -> list[slice]:
        """Split variants, in order, into parts that run together, so that their edits stay within `part_bytes`.

        Returns:
            At least one part, which is empty if there are no variants.
        """
        at_once = max(1, self._part_limit(rows, analysis) // (len(rows) * self._edits(analysis)))
        return [slice(start, min(start + at_once, count)) for start in range(0, max(count, 1), at_once)]

    def rows(
        self, rows: Sequence[EncodedRow], analysis: Analysis, changed: Sequence[tuple[EncodedRow, bool]]
    ) -> list[slice]:
        """Split row runs, in order, into parts that run together, whose keys and values stay within `part_bytes`.

        Args:
            rows: rows of the group.
            analysis: options of the analysis.
            changed: rows under any of the variants, each with whether it re-runs the prefill of its prompt.

        Returns:
            At least one part, which is empty if there are no row runs.
        """
        limit = self._part_limit(rows, analysis)
        parts, start, held = [], 0, 0
        for index, (row, rerun) in enumerate(changed):
            size = self._row(row, analysis, rerun)
            if index > start and held + size > limit:
                parts.append(slice(start, index))
                start, held = index, 0
            held += size
        return [*parts, slice(start, len(changed))]

    def _part_limit(self, rows: Sequence[EncodedRow], analysis: Analysis) -> int:
        """Return the maximum bytes of the edits of a part, and of its keys and values, beside those of the baseline."""
        return min(self.part_bytes, max(self.group_bytes - self._baseline(rows, analysis), 0) // 2)

    def _baseline(self, rows: Sequence[EncodedRow], analysis: Analysis) -> int:
        """Return the bytes of the baseline: keys and values, activations, and bitmaps and type maps of neurons."""
        taps = _TIMES_TAPS * sum(sizes.activations for sizes in self.sizes)
        bits = len(analysis.thresholds) * (analysis.active_bitmaps + analysis.type_map + 2 * analysis.dead)
        bits += analysis.active_bitmaps and analysis.contribution is not None  # the top contributors
        maps = bits * sum(sizes.neurons for sizes in self.sizes) // _BITS_A_BYTE
        prompts = sum([len(row.prompt) for row in rows]) * self.key_values
        return prompts + self._answers(rows, analysis.prediction) + len(rows) * (taps + maps)

    def _row(self, row: EncodedRow, analysis: Analysis, rerun: bool) -> int:
        """Return the bytes of a row run's keys and values, without those that it shares with its baseline."""
        return self._answers([row], analysis.prediction) + rerun * len(row.prompt) * self.key_values

    def _edits(self, analysis: Analysis) -> int:
        """Return the bytes of a row's masks and overrides; without scaling, a mask is one boolean per neuron."""
        actions = [part.action for variant in analysis.variants for part in variant.interventions]
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
        """Bytes of the keys and values of one token, of the decoder or encoded: both have the decoder's geometry."""
        return max(sizes.key_values for sizes in self.sizes)
