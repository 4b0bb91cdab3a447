"""Where keys and values lie between passes, and how those of several rows come together for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.engine.passes import Outputs
from neuroglot_server.engine.steps import KeyValues, RowStep


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
            Those outputs, and the keys and values of the new tokens of each step that keeps them. The next pass may
            write on the outputs.
        """

    def release(self) -> None:
        """Give back what is kept for the next pass alone."""
