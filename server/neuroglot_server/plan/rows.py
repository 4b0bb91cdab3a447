"""Row runs: a row in the baseline or under a variant, and its state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.engine.steps import NO_TOKENS, KeyValues, StepResult
from neuroglot_server.intake.text import EncodedRow
from neuroglot_server.neurons.interventions import NO_ROW_EDITS, RowEdits
from neuroglot_server.plan.greedy import Continuation


@dataclass(eq=False)
class RowRun:
    """A row in the baseline or under a variant, with its KV cache and results so far.

    Attributes:
        row: the row.
        edits: the edits of its activations.
        past: the decoder's keys and values of the tokens before the one from which the answer begins.
        blocks: the cached results that `past` is made of. The reference keeps them available to other requests even
            after their eviction.
        cross: keys and values of the prompt, if an encoder ran it.
        results: step results by component. The decoder's is for the token from which the answer begins and, with a
            prediction, the gold tokens but the last; an encoder's is for the prompt.
        ever: by component, whether each neuron exceeds each of the analysis' thresholds at any prefilled token, bool
            `[thresholds, layers, neurons]`; empty unless requested. A decoder's last prompt token, from which the
            answer begins, is not included.
        choices: the result of each of the row's choices, scored like the gold tokens.
        continuation: the answer being generated; None if none is requested, or the first step was not finite.
    """

    row: EncodedRow
    edits: RowEdits = NO_ROW_EDITS
    past: KeyValues = NO_TOKENS
    blocks: Sequence[StepResult] = ()
    cross: KeyValues = NO_TOKENS
    results: dict[str, StepResult] = field(default_factory=dict)
    ever: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    choices: Sequence[StepResult] = ()
    continuation: Continuation | None = None

    @property
    def prompt(self) -> tuple[int, ...] | None:
        """The prompt if results may be cached by it; None under interventions, whose results are not cached."""
        return None if self.edits.anywhere else self.row.prompt

    def under(self, edits: RowEdits) -> RowRun:
        """A new run of the row under other edits, forked from the token from which its answer begins."""
        return RowRun(self.row, edits, self.past, self.blocks, self.cross)
