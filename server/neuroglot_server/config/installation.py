"""Detects the installed build of ONNX Runtime. Exactly one may be installed: both use the same import folder."""

from __future__ import annotations

import platform
from importlib import metadata

from neuroglot.errors import InstallationError

_BUILDS = {"onnxruntime": "CPUExecutionProvider", "onnxruntime-gpu": "CUDAExecutionProvider"}


def execution_provider() -> str:
    """Return the execution provider of the installed build: CPU or CUDA.

    Raises:
        InstallationError: no build is installed, or both are.
    """
    installed = [name for name in _BUILDS if _is_installed(name)]
    if not installed:
        raise InstallationError(
            "onnxruntime is not installed, and the server needs it: install neuroglot[cpu], or neuroglot[gpu] on a "
            "machine with CUDA"
        )
    if len(installed) > 1:
        raise InstallationError(
            "onnxruntime and onnxruntime-gpu are both installed, and one overwrites the other: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install neuroglot[cpu] or neuroglot[gpu]"
        )
    return _BUILDS[installed[0]]


def versions() -> dict[str, str]:
    """Versions of neuroglot (`version`), Python (`python`), ONNX Runtime (`onnxruntime`), and its `provider`.

    Raises:
        InstallationError: no build is installed, or both are.
    """
    provider = execution_provider()
    build = next(name for name, of_build in _BUILDS.items() if of_build == provider)
    return {
        "version": metadata.version("neuroglot"),
        "python": platform.python_version(),
        "onnxruntime": metadata.version(build),
        "provider": provider,
    }


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
