"""The embedded models: one tiny trained model a family, so that the service can be tried without a checkpoint.

    embedded.path("bloom")                      the stored checkpoint, a folder that transformers loads
    python -m neuroglot_exporter.embedded.train bloom       trains it again
    python -m neuroglot_exporter.embedded.evaluate bloom    measures it and writes its card

They know the capitals of 130 states in ten languages and little else: stand-ins, no evidence about large models. The
checkpoints are in a separate distribution, `neuroglot-models`, so that clients do not install them.

Raises:
    InstallationError: on import, that distribution is not installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from neuroglot.definitions.bundle import hash_file
from neuroglot.errors import InstallationError


def _stored_models() -> Path:
    package = find_spec("neuroglot_models")
    if package is None or package.origin is None:
        raise InstallationError(
            "the embedded models are not installed: pip install neuroglot-models (in a checkout: pip install ./models)"
        )
    return Path(package.origin).parent


MODELS = _stored_models()
"""Folder of the stored checkpoints, with a folder for each family."""


def families() -> list[str]:
    """Families with a stored model."""
    return sorted(folder.parent.name for folder in MODELS.glob("*/config.json"))


def path(family: str) -> Path:
    """The folder of a family's stored checkpoint.

    >>> path("bloom").name
    'bloom'

    Raises:
        LookupError: no model of this family is embedded.
    """
    stored = families()
    if family not in stored:
        raise LookupError(f"no embedded model {family!r}: there is {', '.join(stored) or 'none'}")
    return MODELS / family


def revision(family: str) -> str:
    """The revision of a stored checkpoint: the first 12 digits of its weights' hash.

    Raises:
        LookupError: no model of this family is embedded.
    """
    return hash_file(path(family) / "model.safetensors")[:12]
