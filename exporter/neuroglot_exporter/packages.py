"""Checks that the required packages are installed."""

from __future__ import annotations

from importlib.util import find_spec

from neuroglot.errors import InstallationError
from neuroglot_exporter.checkpoints import GGUF_SUFFIX

_REQUIRED = {
    "torch": "exporter",
    "transformers": "exporter",
    "optimum": "exporter",
    "optimum.onnx": "exporter",
    "onnx": "exporter",
    "psutil": "exporter",
    "tokenizers": "exporter",
    "onnxruntime": "exporter,cpu",
}
_REQUIRED_FOR_GGUF = {"gguf": "exporter", "accelerate": "exporter"}  # by transformers


def require_packages(source: str, what: str) -> None:
    """Check that all required packages are installed.

    Args:
        source: the checkpoint; a GGUF file needs more packages.
        what: for the message: `exporting`.

    Raises:
        InstallationError: a package is missing; the message says what to install.
    """
    required = _REQUIRED | (_REQUIRED_FOR_GGUF if source.endswith(GGUF_SUFFIX) else {})
    for module, extras in required.items():
        if find_spec(module) is None:
            raise InstallationError(
                f"{what} needs the package {module}, which is not installed: pip install 'neuroglot[{extras}]'"
            )
