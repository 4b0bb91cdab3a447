"""Where keys and values lie between passes, and how those of several rows come together for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.passes import Outputs
from neuroglot_server.steps import KeyValues, RowStep

Content = TypeVar("Content")


class Memory(Protocol):
    """Runs passes of one session, and keeps the keys and values that they give."""

    def run(
        self, steps: Sequence[RowStep], feeds: dict[str, NDArray[np.generic]], names: Sequence[str], options: Any
    ) -> tuple[Outputs, Sequence[KeyValues | None]]:
        """Run one pass.

        Args:
            steps: its rows.
            feeds: all inputs but keys and values.
            names: the outputs that are wanted beside keys and values.
            options: of the run.

        Returns:
            Those outputs, and the keys and values of the new tokens of each step that keeps them.
        """


class Last(NamedTuple, Generic[Content]):
    """Keys and values, of past and new tokens, that the last pass gave.

    They are kept after a pass of one new token a row, as in generation: the next one is likely to run the same rows,
    and this is then its past as it stands. (After passes of several tokens a row there would be padding in between.)

    Attributes:
        batch: stands for the pass in `Ending.batch`; what is kept of its rows does not hold on to the whole.
        rows: how many it had.
        longest: tokens of past and new of the longest.
        content: what it gave.
    """

    batch: object
    rows: int
    longest: int
    content: Content

    @classmethod
    def of(cls, steps: Sequence[RowStep], content: Content) -> Last[Content] | None:
        """After a pass; None where it was of another kind, or not all of its rows go on."""
        if not all(step.keep and len(step.tokens) == 1 for step in steps):
            return None
        return cls(object(), len(steps), max(step.past_length for step in steps) + 1, content)

    def is_past_of(self, steps: Sequence[RowStep]) -> bool:
        """Whether these steps go on where the pass ended: all of its rows, in their order."""
        endings = [step.past.ending for step in steps]
        rows = [ending.row for ending in endings if ending is not None and ending.batch is self.batch]
        return rows == [*range(self.rows)] and max(step.past_length for step in steps) == self.longest
