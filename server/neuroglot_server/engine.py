"""One ONNX Runtime session, and how a batch of steps is run through it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neuroglot.bundle import Component
from neuroglot.errors import BundleError, InstallationError
from neuroglot_server.installation import execution_provider
from neuroglot_server.passes import Signature, inputs, output_names, results
from neuroglot_server.steps import RowStep, StepResult

_QUIET = 3
"""Log errors only: ONNX Runtime warns once for every overridable input, two a layer."""

_FLOATS: dict[str, np.dtype[np.floating]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}


class Engine:
    """Runs batches of steps of a causal decoder; one at a time, on the thread that calls it."""

    def __init__(self, graph: Path, component: Component, threads: int) -> None:
        """Start a session.

        Args:
            graph: the ONNX file.
            component: what the manifest says about it.
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
        self.signature = self._read_signature(graph, component)

    def _read_signature(self, graph: Path, component: Component) -> Signature:
        required = {node.name: node for node in self._session.get_inputs()}
        optional = {node.name for node in self._session.get_overridable_initializers()}
        given = {node.name for node in self._session.get_outputs()}
        key = required.get("past_key_values.0.key")
        if key is None:
            raise BundleError(f"{graph} takes no keys and values: it is no causal decoder; export the model again")
        signature = Signature(
            layers=component.layers,
            neurons=component.neurons,
            heads=key.shape[1],
            head_size=key.shape[3],
            dtype=_FLOATS[key.type],
            position_ids="position_ids" in required,
            coefficients=component.gated,
        )
        taken = {"input_ids", "attention_mask", "activations_from", "logits_from", *signature.past_names}
        taken |= {f"ffn.{layer}.{part}" for layer in range(component.layers) for part in ("mask", "override")}
        wanted = {"logits", *signature.present_names, *signature.activation_names, *signature.coefficient_names}
        missing = sorted((taken - required.keys() - optional) | (wanted - given))
        if missing:
            raise BundleError(f"{graph} lacks {', '.join(missing)}: export the model again with this version")
        return signature

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
