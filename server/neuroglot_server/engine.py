"""One ONNX Runtime session, and how a batch of steps is run through it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from neuroglot.bundle import Component
from neuroglot_server.core import MemoryTooSmall
from neuroglot_server.device_memory import DeviceMemory
from neuroglot_server.devices import Device, runtime, session_options, start_session
from neuroglot_server.host_memory import HostMemory
from neuroglot_server.memory import Memory
from neuroglot_server.passes import inputs, output_names, results
from neuroglot_server.resident import resident
from neuroglot_server.signature import Interface, Signature, read_signature
from neuroglot_server.starting import Mapped, Packing, takes_long
from neuroglot_server.steps import RowStep, StepResult

_SILENT = 4
"""A pass that is stopped is no error, and one that fails raises."""
_NO_MEMORY = re.compile(r"allocate memory|bad[_ ]alloc|out of memory", re.IGNORECASE)
"""What ONNX Runtime, the system and CUDA say; none of it has an exception of its own."""
_SHRINKING = "memory.enable_memory_arena_shrinkage"
_ROOM_BYTES = 2**30
"""By how much a process may grow before the runtime's work space goes back to the system after a pass.

Until then it is kept for the next one: getting new pages takes longer than writing on them.
"""
_LOOK_SECONDS = 1.0
"""How often at most is looked whether it has: that takes as long as a tenth of a short pass."""

_ITS_OWN = nullcontext()
"""Nobody else wants the machine."""


class Stopped(Exception):
    """A pass was ended by `Engine.stop`; none of its steps has a result."""


class Engine:
    """Runs batches of steps of one component; one at a time, on the thread that calls it.

    Attributes:
        signature: what the graph takes and gives.
    """

    def __init__(
        self,
        graph: Path,
        component: Component,
        interface: Interface,
        threads: int,
        device: str = "cpu",
        *,
        bound: bool = False,
    ) -> None:
        """Start a session.

        The weights of a large graph are packed later: until then, passes take up to twice as long, and wait for it.
        Then another session takes over, whose results are equal to rounding.

        Args:
            graph: the ONNX file.
            component: what the manifest says about it.
            interface: what it takes and gives beside its neurons.
            threads: threads within one pass on the processor; 0 for one a core.
            device: where passes run: `cpu`, `cuda` or `cuda:1`.
            bound: whether keys and values stay in the device's memory, as they always do but on the processor, where
                nothing is gained by it.

        Raises:
            InstallationError: no usable ONNX Runtime, or it does not run the graph on the device.
            BundleError: the graph does not have the inputs and outputs that this server needs.
        """
        where = Device.parse(device)
        self._run_options = runtime(where).RunOptions
        later = takes_long(graph, where)
        session = start_session(graph, where, session_options(where, threads, pack=not later))
        taken = [*session.get_inputs(), *session.get_overridable_initializers()]
        self.signature = read_signature(graph, component, interface, taken, session.get_outputs())
        bind = bound or where.kind != "cpu"
        self._make_memory: Callable[[Any, Signature], Memory] = (
            partial(DeviceMemory, device=where) if bind else partial(HostMemory, threads=threads)
        )
        self._memory: Memory = self._make_memory(session, self.signature)
        self._packing = Packing(graph, threads, self) if later else None
        self._most_bytes = _room() if where.kind == "cpu" else math.inf
        self._mapped = Mapped()
        self._looked = -math.inf
        self._running: Any = None

    def run(self, steps: Sequence[RowStep]) -> list[StepResult]:
        """Run one batch.

        Args:
            steps: at least one. The result of each depends on it alone.

        Returns:
            One result a step, in their order.

        Raises:
            Stopped: `stop` was called meanwhile.
            MemoryTooSmall: there is not enough for so many rows.
        """
        options = self._run_options()
        options.log_severity_level = _SILENT
        self._give_back(options)
        self._running = options
        names = output_names(steps, self.signature)
        feeds = inputs(steps, self.signature)
        try:
            with _ITS_OWN if self._packing is None else self._machine(self._packing, options):
                outputs, kept = self._memory.run(steps, feeds, names, options)
        except Exception as error:
            if options.terminate:
                raise Stopped("the pass was ended: nobody waits for it any more") from error
            if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
                raise MemoryTooSmall from error
            raise
        finally:
            self._running = None
        return results(steps, outputs, kept, self.signature)

    def _give_back(self, options: Any) -> None:
        """Let go of what a pass can do without, where it is time to look and the process has more than it may keep."""
        now = monotonic()
        if now < self._looked + _LOOK_SECONDS:
            return
        self._looked = now
        held = resident()
        if held is None:
            return
        self._mapped.trim(held.mapped)
        if held.own > self._most_bytes:
            options.add_run_config_entry(_SHRINKING, "cpu:0")
            self._memory.let_go()

    @contextmanager
    def _machine(self, packing: Packing, options: Any) -> Iterator[None]:
        """Have the machine for a pass while weights are to be packed, and go over to them once they are."""
        with packing.beside_a_pass(lambda: bool(options.terminate)):
            if packing.over:
                self._take_packed(packing)
            yield

    def _take_packed(self, packing: Packing) -> None:
        """Go over to the session with packed weights, if they could be packed."""
        if packing.session is not None:
            self._memory = self._make_memory(packing.session, self.signature)
            self._mapped = Mapped(packing.files, packing.mapped_bytes)
        self._packing = None
        self._most_bytes = _room()

    def stop(self) -> None:
        """End the pass that runs, within a layer; nothing happens where none runs. May be called from any thread."""
        running = self._running  # the worker may forget it at any moment; options of a pass that is over stop nothing
        if running is not None:
            running.terminate = True


def _room() -> float:
    """What the process may have of its own from now on; without end where that is not known."""
    held = resident()
    return held.own + _ROOM_BYTES if held else math.inf
