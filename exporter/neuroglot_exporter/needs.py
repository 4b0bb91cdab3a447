"""Estimates the memory and disk space of an export before any weights are read."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]  # no type information in the package

from neuroglot_exporter.checkpoints import Checkpoint
from neuroglot_exporter.errors import ExportError
from neuroglot_exporter.skeleton import parameter_count, skeleton

_BYTES = {"float32": 4, "float16": 2}
_MEMORY_FACTOR = 2.0  # measured on the geometry of BLOOM-560m: 5.1 GB for 2.24 GB of parameters
_MEMORY_BASE = 0.7e9  # torch, transformers and optimum themselves
_DISK_FACTOR = 1.03
_DISK_BASE = 50e6  # tokenizer, graph, norms

_LOGGER = logging.getLogger(__name__)


class Needs(NamedTuple):
    """Memory and disk space of an export.

    Attributes:
        parameters: number of parameters, tied ones once.
        memory: approximate peak, in bytes.
        disk: maximum size of the bundle, in bytes.
    """

    parameters: int
    memory: float
    disk: float

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:,.1f} million parameters: needs about {self.memory / 1e9:.1f} GB of memory and "
            f"{self.disk / 1e9:.1f} GB of disk"
        )


def estimate(checkpoint: Checkpoint, dtype: str) -> Needs:
    """Estimate the needs of an export from the checkpoint's config.

    Args:
        checkpoint: may still be on the Hub.
        dtype: dtype of the bundle; that of the checkpoint does not matter.
    """
    parameters = parameter_count(skeleton(checkpoint))
    # The verification holds the model in float32, whatever the bundle's type is.
    memory = parameters * _BYTES["float32"] * _MEMORY_FACTOR + _MEMORY_BASE
    return Needs(parameters, memory, parameters * _BYTES[dtype] * _DISK_FACTOR + _DISK_BASE)


def check(needs: Needs, folder: Path) -> None:
    """Raise if disk space is insufficient; warn if memory is, since other processes may still release some.

    Args:
        needs: needs of the export.
        folder: existing folder that the bundle will be written to.

    Raises:
        ExportError: the disk has too little free space.
    """
    free = shutil.disk_usage(folder).free
    if free < needs.disk:
        raise ExportError(
            f"the bundle will take {needs.disk / 1e9:.1f} GB, and the disk of {folder.parent} has {free / 1e9:.1f} GB "
            "free: make room, or choose another disk"
        )
    available = psutil.virtual_memory().available
    if available < needs.memory:
        _LOGGER.warning(
            "the export needs about %.1f GB of memory and %.1f GB are available: it may be slow, or be killed",
            needs.memory / 1e9,
            available / 1e9,
        )
