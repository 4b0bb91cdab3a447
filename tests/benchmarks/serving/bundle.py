"""The model that is served: random weights in BLOOM-560m's geometry."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from neuroglot_exporter import export
from tests.checkpoints import random_checkpoint

BLOOM_560M = {"hidden_size": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250_880}
SMALL = {"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 2000}


def bundle(folder: Path, *, small: bool) -> Path:
    """The bundle, made in a folder unless it stands there from an earlier run; `small` to try a benchmark itself."""
    target = folder / ("small" if small else "bloom-560m")
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as workshop:  # not in /tmp, which may be memory
            checkpoint = random_checkpoint(Path(workshop) / "checkpoint", "bloom", **(SMALL if small else BLOOM_560M))
            export(str(checkpoint), target, verify=False)
    return target
