"""One ONNX Runtime session, and how a batch of steps is run through it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from neuroglot.bundle import Component
from neuroglot.errors import InstallationError
from neuroglot_server.installation import execution_provider
from neuroglot_server.passes import inputs, output_names, results
from neuroglot_server.signature import Interface, read_signature
from neuroglot_server.steps import RowStep, StepResult

_QUIET = 3
"""Log errors only: ONNX Runtime warns once for every overridable input, two a layer."""


class Engine:
    """Runs batches of steps of one component; one at a time, on the thread that calls it."""

    def __init__(self, graph: Path, component: Component, interface: Interface, threads: int) -> None:
        """Start a session.

        Args:
            graph: the ONNX file.
            component: what the manifest says about it.
            interface: what it takes and gives beside its neurons.
            threads: threads within one pass; 0 for one a core.

        Raises:
            InstallationError: no usable ONNX Runtime.
            BundleError: the graph does not have the inputs and outputs that this server needs.
        """
        provider = execution_provider()
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at the import: what is asked here is nobody else's
        import onnxruntime  # after the check: without a build there is nothing to import

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(graph, options, providers=[provider])
        if provider not in self._session.get_providers():
            raise InstallationError(
                f"onnxruntime-gpu is installed but gives no {provider} on this machine (only "
                f"{', '.join(self._session.get_providers())}): install neuroglot[cpu], or CUDA and a driver"
            )
        taken = [*self._session.get_inputs(), *self._session.get_overridable_initializers()]
        self.signature = read_signature(graph, component, interface, taken, self._session.get_outputs())

    def run(self, steps: Sequence[RowStep]) -> list[StepResult]:
        """Run one batch.

        Args:
            steps: at least one. The result of each depends on it alone.

        Returns:
            One result a step, in their order.
        """
        names = output_names(steps, self.signature)
        arrays = self._session.run(names, inputs(steps, self.signature))
        return results(steps, dict(zip(names, arrays, strict=True)), self.signature)
