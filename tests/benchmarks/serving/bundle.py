"""The models that are served: random weights, mostly in BLOOM-560m's geometry."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from neuroglot_exporter import export
from tests.checkpoints import random_checkpoint

BLOOM_560M = {"hidden_size": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250_880}
MEDIUM = {"hidden_size": 256, "n_layer": 8, "n_head": 8, "vocab_size": 8000}
"""A group takes tens of milliseconds: what surrounds its passes is seen, and a minute has a thousand of them."""
SMALL = {"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 2000}


def bundle(folder: Path, *, small: bool) -> Path:
    """The bundle, made in a folder unless it stands there from an earlier run; `small` to try a benchmark itself."""
    return _made(folder / "small", SMALL) if small else _made(folder / "bloom-560m", BLOOM_560M)


def medium_bundle(folder: Path) -> Path:
    """One of a model between the two, likewise."""
    return _made(folder / "medium", MEDIUM)


def _made(target: Path, geometry: dict[str, int]) -> Path:
    folder = target.parent
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as workshop:  # not in /tmp, which may be memory
            checkpoint = random_checkpoint(Path(workshop) / "checkpoint", "bloom", **geometry)
            export(str(checkpoint), target, verify=False)
    return target
