"""Where passes run: on the processor, or on a CUDA device. What was asked for is what runs them, or nothing does."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroglot.errors import InstallationError
from neuroglot_server.config.installation import execution_provider

_QUIET = 3
"""Log errors only: ONNX Runtime warns once for every overridable input, two a layer."""
RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulNBits"})
"""Where the work is. Arithmetic on shapes may run on the processor, and ONNX Runtime puts it there on purpose, so
`session.disable_cpu_ep_fallback` would refuse every exported transformer."""


@dataclass(frozen=True)
class Device:
    """Where passes run.

    Attributes:
        kind: `cpu` or `cuda`, as ONNX Runtime calls it.
        index: which of them.
    """

    kind: str
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """Read `cpu`, `cuda` or `cuda:1`.

        Raises:
            InstallationError: it is none of these.
        """
        found = re.fullmatch(r"(cpu|cuda(?::([0-9]+))?)", text)
        if found is None:
            raise InstallationError(f"device {text!r} is unknown: give cpu, cuda, or cuda:1 for the second one")
        return cls("cpu") if text == "cpu" else cls("cuda", int(found[2] or 0))

    @property
    def provider(self) -> tuple[str, dict[str, Any]]:
        """ONNX Runtime's execution provider, and its options."""
        if self.kind == "cpu":
            return "CPUExecutionProvider", {}
        return "CUDAExecutionProvider", {
            "device_id": self.index,
            "arena_extend_strategy": "kSameAsRequested",
            # Ten bits of mantissa in every product of float32 are not what float32 promises: neurons change types.
            "use_tf32": 0,
        }


def runtime(device: Device) -> Any:
    """Import ONNX Runtime.

    Raises:
        InstallationError: no build is installed, both are, or it is one that cannot use the device.
    """
    built_for = execution_provider()
    if device.kind == "cuda" and built_for != device.provider[0]:
        raise InstallationError(
            "a CUDA device was asked for, and onnxruntime is installed, which has no CUDA: pip uninstall onnxruntime, "
            "then install neuroglot[gpu]; or run with --device cpu"
        )
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at the import: what is asked here is nobody else's
    import onnxruntime  # after the check: without a build there is nothing to import

    if device.kind == "cuda":
        onnxruntime.preload_dlls()  # CUDA's and cuDNN's libraries lie where pip put them, which no loader searches
    return onnxruntime


def session_options(device: Device, threads: int) -> Any:
    """Options of a session.

    Args:
        device: where it runs.
        threads: threads within one pass on the processor; 0 for one a core.

    Raises:
        InstallationError: no usable ONNX Runtime.
    """
    onnxruntime = runtime(device)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads
    # In the graph's own order. By default all that only an output depends on comes last, and so a pass would hold the
    # keys and values of past and new tokens, put together, of all layers at once until the new ones are cut off them.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if device.kind != "cpu":
        options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    return options


def start_session(graph: Path | bytes, device: Device, options: Any) -> Any:
    """Start a session of ONNX Runtime.

    Args:
        graph: an ONNX file, or what would be in one.
        device: where it runs.
        options: see `session_options`.

    Raises:
        InstallationError: no usable ONNX Runtime, or it does not run the graph on the device.
    """
    onnxruntime = runtime(device)
    name, _ = device.provider
    if name not in onnxruntime.get_available_providers():
        raise InstallationError(_missing(name, onnxruntime.get_available_providers()))
    # Unless it is told not to, ONNX Runtime goes on without a provider that fails, at the start and in a pass.
    session = onnxruntime.InferenceSession(graph, options, providers=[device.provider], enable_fallback=False)
    if name not in session.get_providers():
        raise InstallationError(_missing(name, session.get_providers()))
    if device.kind != "cpu":
        require_products_on(name, session)
    return session


def require_products_on(provider: str, session: Any) -> None:
    """Make sure that all matrix products of a session run on a provider.

    Raises:
        InstallationError: some do not; the message names one of them.
    """
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            if part.ep_name != provider and node.op_type in _PRODUCTS:
                raise InstallationError(
                    f"ONNX Runtime runs {node.op_type} {node.name!r} on {part.ep_name} instead of {provider}: install "
                    "another version of onnxruntime-gpu, or run with --device cpu"
                )


def _missing(provider: str, there: Iterable[str]) -> str:
    return (
        f"onnxruntime-gpu is installed but gives no {provider} on this machine (only {', '.join(there)}): it needs an "
        "NVIDIA driver, and CUDA and cuDNN as neuroglot[gpu] installs them; or run with --device cpu"
    )
