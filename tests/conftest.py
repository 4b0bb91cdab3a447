"""Shared fixtures: random checkpoints, and their bundles, made once a session."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from neuroglot_exporter import export
from tests.checkpoints import RandomModel, random_checkpoint

# On tiny models threads only wait for each other; here, and in the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# A shell that runs the tests in the background has them ignore Ctrl-C, and with them all that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def deployed_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that a test starts give memory back as they do where `deploy/` runs them."""
    image = (Path(__file__).parents[1] / "deploy" / "cpu.Dockerfile").read_text(encoding="utf-8")
    settings = dict(re.findall(r"(MALLOC_[A-Z_]+)=(\d+)", image))
    assert settings
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RandomModel]:
    """By family: a random model of 3 layers, hidden size 24 and vocabulary 320, exported when first asked for."""

    @cache
    def exported(family: str) -> RandomModel:
        checkpoint = random_checkpoint(tmp_path_factory.mktemp("checkpoints") / f"random-{family}", family)
        bundle = tmp_path_factory.mktemp("bundles") / f"random-{family}"
        export(str(checkpoint), bundle, verify=family == "bloom")  # a process of its own, and a second load
        return RandomModel(family, checkpoint, bundle)

    return exported


@pytest.fixture(scope="session")
def bloom_checkpoint(random_model: Callable[[str], RandomModel]) -> Path:
    """A random BLOOM of 3 layers, 96 neurons each, hidden size 24, 3 heads, vocabulary 320."""
    return random_model("bloom").checkpoint


@pytest.fixture(scope="session")
def bloom_bundle(random_model: Callable[[str], RandomModel]) -> Path:
    """Its bundle. Bundles are never changed: copy it to damage it."""
    return random_model("bloom").bundle
