"""A row in the baseline or under a variant, on its way through the model."""

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
    """A row in the baseline or under a variant, and how far it has come.

    Attributes:
        row: the row.
        edits: what is done to it.
        past: keys and values of what the decoder has read before the token from which the answer begins.
        blocks: the results that the past is made of, where others may need them, too: they find what a case holds.
        cross: keys and values of the prompt, where an encoder read it.
        results: what came out, by component: of the decoder, for the token from which the answer begins and, where
            predictions are wanted, the gold tokens but the last; of an encoder, for the prompt.
        ever: by component: whether each neuron exceeds each of the analysis' thresholds at any token of the prompt that
            was read, bool `[thresholds, layers, neurons]`; empty unless asked for. A decoder's last prompt token, from
            which the answer begins, is not among them.
        choices: scores of each of the row's choices, as those of the gold tokens are.
        continuation: the answer that is being generated, where one is wanted and could be begun.
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
        """What others may share what comes out by: the prompt; None where interventions make the case one by itself."""
        return None if self.edits.anywhere else self.row.prompt

    def under(self, edits: RowEdits) -> RowRun:
        """The row under other interventions, forked where its answer begins."""
        return RowRun(self.row, edits, self.past, self.blocks, self.cross)
