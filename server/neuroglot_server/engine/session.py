"""One ONNX Runtime session, and how a batch of steps is run through it."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from neuroglot.definitions.bundle import WEIGHTS, Component
from neuroglot_server.core import MemoryTooSmall
from neuroglot_server.engine.devices import Device, runtime, session_options, start_session
from neuroglot_server.engine.graph import Interface, read_signature
from neuroglot_server.engine.kv_device import DeviceMemory
from neuroglot_server.engine.kv_host import HostMemory
from neuroglot_server.engine.kv_memory import Memory
from neuroglot_server.engine.passes import inputs, output_names, results
from neuroglot_server.engine.prepacking import saved
from neuroglot_server.engine.process_memory import anonymous_bytes
from neuroglot_server.engine.steps import RowStep, StepResult

_logger = logging.getLogger(__name__)

_SILENT = 4
"""A pass that is stopped is no error, and one that fails raises."""
_NO_MEMORY = re.compile(r"allocate memory|bad[_ ]alloc|out of memory", re.IGNORECASE)
"""What ONNX Runtime, the system and CUDA say; none of it has an exception of its own."""
_SHRINKING = "memory.enable_memory_arena_shrinkage"
_GROWTH_BYTES = 2**30
"""How much a process may grow beyond the least that it held before the runtime's work space is given back.

Until then it is kept for the next pass: getting new pages takes longer than writing on them.
"""
_CHECK_SECONDS = 1.0
"""Least time between two checks of the process's memory: one takes as long as a tenth of a short pass."""

_MEGABYTES = 10**8
"""Weights smaller than this are given in MB."""


class Stopped(Exception):
    """A pass was ended by `Engine.stop`; none of its steps has a result."""


class Engine:
    """Runs batches of steps of one component; one at a time, on the thread that calls it.

    Attributes:
        signature: what the graph takes and gives.
        prepacked: whether the session runs the graph that `neuroglot prepare` saved, in ONNX Runtime's order of nodes.
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
        """Start a session. Blocks until it can run passes, which takes seconds for each GB of weights.

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
        session, self.prepacked = _start(graph, where, threads)
        taken = [*session.get_inputs(), *session.get_overridable_initializers()]
        self.signature = read_signature(graph, component, interface, taken, session.get_outputs())
        self._memory: Memory = (
            DeviceMemory(session, self.signature, device=where)
            if bound or where.kind != "cpu"
            else HostMemory(session, self.signature, threads=threads)
        )
        self._least_bytes = anonymous_bytes() if where.kind == "cpu" else None
        self._next_check = -math.inf
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
        self._limit_memory(options)
        self._running = options
        names = output_names(steps, self.signature)
        feeds = inputs(steps, self.signature)
        try:
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

    def stop(self) -> None:
        """End the pass that runs, within a layer; nothing happens where none runs. May be called from any thread."""
        running = self._running  # the worker may forget it at any moment; options of a pass that is over stop nothing
        if running is not None:
            running.terminate = True

    def _limit_memory(self, options: Any) -> None:
        """Have the pass give back the work space of the runtime if the process has grown too much."""
        now = monotonic()
        if self._least_bytes is None or now < self._next_check:
            return
        self._next_check = now + _CHECK_SECONDS
        held = anonymous_bytes() or 0
        self._least_bytes = min(self._least_bytes, held)  # while a model is replaced, both are in memory
        if held > self._least_bytes + _GROWTH_BYTES:
            options.add_run_config_entry(_SHRINKING, "cpu:0")
            self._memory.release()


def weights_size(bundle: Path) -> str:
    """How large a bundle's weights are, for people: `2.24 GB`."""
    size = (bundle / WEIGHTS).stat().st_size
    return f"{size / 1e9:.2f} GB" if size >= _MEGABYTES else f"{size / 1e6:.1f} MB"


def _start(graph: Path, device: Device, threads: int) -> tuple[Any, bool]:
    """Start the session of a graph, and log how long it took.

    Returns:
        The session, and whether it is that of saved prepacked weights.
    """
    began = monotonic()
    _logger.info("starting %s, whose bundle has %s of weights", graph, weights_size(graph.parent))
    session = _start_prepacked(graph, threads) if device.kind == "cpu" else None
    prepacked = session is not None
    if not prepacked:
        session = start_session(graph, device, session_options(device, threads))
    _logger.info("%s started in %.1f s", graph, monotonic() - began)
    return session, prepacked


def _start_prepacked(graph: Path, threads: int) -> Any:
    """A session with the prepacked weights that were saved; None where there are none that can be used."""
    file = saved(graph)
    if file is None:
        return None
    device = Device("cpu")
    try:
        return start_session(file, device, session_options(device, threads))
    except Exception:
        _logger.exception("%s cannot be used: remove it, and run `neuroglot prepare` again", file.parent)
        return None
