"""What runs on the device: tiny models of every family, and BLOOM-560m's geometry, in float32 and float16.

    python -m tests.benchmarks.gpu.bundles FOLDER

makes them where the exporter is installed, to be taken to a machine with a device and without it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

FAMILIES = ("bloom", "llama", "xglm", "mt0")
LARGE, SMALL = "bloom-560m", "bloom-small"
DTYPES = ("float32", "float16")


def make(folder: Path, *, small: bool) -> None:
    """Export all bundles that are not there, to `FOLDER/NAME/DTYPE`; `small` leaves the large geometry out."""
    from tests.benchmarks.serving.bundle import BLOOM_560M  # here: they need torch, and where bundles are there is none
    from tests.benchmarks.serving.bundle import SMALL as SMALL_BLOOM

    for family in FAMILIES:
        _make(folder / family, family, {})
    if small:
        _make(folder / SMALL, "bloom", SMALL_BLOOM)
    else:
        _make(folder / LARGE, "bloom", BLOOM_560M)


def _make(folder: Path, family: str, geometry: dict[str, int]) -> None:
    from neuroglot_exporter import export
    from tests.checkpoints import random_checkpoint

    missing = [dtype for dtype in DTYPES if not (folder / dtype).exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as workshop:  # not in /tmp, which may be memory
        checkpoint = random_checkpoint(Path(workshop) / "checkpoint", family, **geometry)
        for dtype in missing:
            export(str(checkpoint), folder / dtype, dtype=dtype, verify=False)


if __name__ == "__main__":
    make(Path(sys.argv[1]), small=False)
