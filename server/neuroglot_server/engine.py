"""One ONNX Runtime session, and how a batch of steps is run through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from neuroglot.bundle import Component
from neuroglot_server.device_memory import DeviceMemory
from neuroglot_server.devices import Device, runtime, session_options, start_session
from neuroglot_server.host_memory import HostMemory
from neuroglot_server.memory import Memory
from neuroglot_server.passes import inputs, output_names, results
from neuroglot_server.signature import Interface, Signature, read_signature
from neuroglot_server.starting import starting, takes_long
from neuroglot_server.steps import RowStep, StepResult

_SILENT = 4
"""A pass that is stopped is no error, and one that fails raises."""


class Stopped(Exception):
    """A pass was ended by `Engine.stop`; none of its steps has a result."""


class Engine:
    """Runs batches of steps of one component; one at a time, on the thread that calls it."""

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
        """Start a session. That of a large graph goes on in the background, and the first pass waits for it.

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
            partial(DeviceMemory, device=where) if bind else HostMemory
        )
        self._started: Future[Any] | None = starting(graph, threads) if later else None
        self._memory: Memory | None = None if later else self._make_memory(session, self.signature)
        self._running: Any = None

    def run(self, steps: Sequence[RowStep]) -> list[StepResult]:
        """Run one batch.

        Args:
            steps: at least one. The result of each depends on it alone.

        Returns:
            One result a step, in their order.

        Raises:
            Stopped: `stop` was called meanwhile.
        """
        options = self._run_options()
        options.log_severity_level = _SILENT
        self._running = options
        names = output_names(steps, self.signature)
        try:
            outputs, kept = self._ready().run(steps, inputs(steps, self.signature), names, options)
        except Exception as error:
            if options.terminate:
                raise Stopped("the pass was ended: nobody waits for it any more") from error
            raise
        finally:
            self._running = None
        return results(steps, outputs, kept, self.signature)

    def _ready(self) -> Memory:
        """What runs passes; the first one waits until the session has started."""
        if self._memory is None:
            assert self._started is not None
            self._memory = self._make_memory(self._started.result(), self.signature)
            self._started = None
        return self._memory

    def stop(self) -> None:
        """End the pass that runs, within a layer; nothing happens where none runs. May be called from any thread."""
        running = self._running  # the worker may forget it at any moment; options of a pass that is over stop nothing
        if running is not None:
            running.terminate = True
