"""The analyses of predictions and attributions, asked of a real server, against transformers with hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

import neuroglot as ng
from neuroglot.analyses.base.ablations import ABLATED
from neuroglot.analyses.base.context import Context
from neuroglot.analyses.base.conversions import CONVERTED
from neuroglot.analyses.study import Study
from neuroglot.runs.settings import Options
from tests import definitions
from tests.checkpoints import RandomModel
from tests.exporter.reference import TOLERANCE, Transformers
from tests.server.reference import Change, Model, gold_log_probability, load, of_type, watched

LANGUAGES = ("en", "es", "th")
SUBJECTS = {"Peru": "Lima", "Laos": "Vientiane", "Fiji": "Suva"}
PROMPTS = {"en": "The capital of {} is", "es": "La capital de {} es", "th": "{}คือ"}
CHOICES = tuple(SUBJECTS.values())
GROUPS = [
    ng.Group(
        {one: text.format(name) for one, text in PROMPTS.items()},
        answers=dict.fromkeys(LANGUAGES, capital),
        choices=dict.fromkeys(LANGUAGES, CHOICES),
        separators=dict.fromkeys(LANGUAGES, " "),
        id=name,
    )
    for name, capital in SUBJECTS.items()
]
VALUE = 1.5
CONTEXT = Context(LANGUAGES, Options(draws=1, convert_to=VALUE, replicates=20)).about(GROUPS)

Activations = Mapping[str, NDArray[np.float32]]
"""Of a group `[languages, layers, neurons]`, by component."""


@dataclass(frozen=True)
class Asked:
    """A model that was asked: the tables, the answers, and what transformers is asked in their place."""

    tables: Mapping[str, pd.DataFrame]
    results: Mapping[str, ng.GroupResult]
    model: Model
    tokenizer: Tokenizer
    norms: Mapping[str, NDArray[np.float32]]

    def prompt(self, group: ng.Group, language: str) -> list[int]:
        tokens: list[int] = self.tokenizer.encode(group.prompts[language]).ids
        return tokens

    def at_last_token(self, group: ng.Group, tap: str = "activation") -> Activations:
        rows = [watched(self.model, self.prompt(group, language), tap) for language in LANGUAGES]
        return {component: np.stack([row[component][:, -1] for row in rows]) for component in rows[0]}

    def choices(self, group: ng.Group, language: str) -> list[list[int]]:
        """Tokens of the choices, as they follow the prompt."""
        if not isinstance(self.model, Transformers):
            return [self.tokenizer.encode(one, add_special_tokens=False).ids for one in CHOICES]
        frozen = len(self.prompt(group, language))
        return [self.tokenizer.encode(f"{group.prompts[language]} {one}").ids[frozen:] for one in CHOICES]


@pytest.fixture(scope="module", params=["bloom", "mt0"])
def asked(request: pytest.FixtureRequest, random_model: Callable[[str], RandomModel]) -> Asked:
    random = random_model(request.param)
    study = Study(CONTEXT, ("effects", "accuracy", "conversions", "contributions", "effective_scores"))
    with ng.connect(random.bundle) as client:
        results = [
            one for one in client.model().analyze_many(GROUPS, **study.keywords()) if isinstance(one, ng.GroupResult)
        ]
    for result in results:
        study.add(result)
    assert study.groups == len(GROUPS)
    return Asked(
        {name: table for fold in study.folds.values() for name, table in fold.tables().items()},
        {result.group_id: result for result in results},
        load(random.checkpoint, request.param),
        Tokenizer.from_file(str(random.bundle / "tokenizer.json")),
        {name: np.load(random.bundle / f"{name}.norms.npy") for name in study.folds["effects"].geometry},
    )


def ablated(activations: Activations, row: int, kinds: Sequence[ng.NeuronType]) -> list[Change]:
    del row
    return [
        Change(_of_types(of_component, kinds), torch.zeros_like, component=name)
        for name, of_component in activations.items()
    ]


def converted(activations: Activations, row: int, kinds: Sequence[ng.NeuronType], value: float) -> list[Change]:
    return [
        Change(
            _of_types(of_component, kinds) & (of_component[row] <= 0),
            lambda a: torch.full_like(a, value),
            component=name,
        )
        for name, of_component in activations.items()
    ]


def _of_types(activations: NDArray[np.float32], kinds: Sequence[ng.NeuronType]) -> NDArray[np.bool_]:
    return np.any([of_type(activations, kind.label.replace("-", "_")) for kind in kinds], axis=0)


def variants(activations: Activations, row: int) -> dict[str, list[Change]]:
    changes: dict[str, list[Change]] = {"baseline": []}
    for kind in ABLATED:
        changes[f"w/o {kind.label}"] = ablated(activations, row, [kind])
    for name, kinds in CONVERTED.items():
        changes[f"convert {name}"] = converted(activations, row, kinds, VALUE)
        changes[f"zero inactive {name}"] = converted(activations, row, kinds, 0.0)
    return changes


def test_accuracy_of_ablations_and_conversions(asked: Asked) -> None:
    expected: dict[tuple[str, str], list[list[float]]] = {}
    for group in GROUPS:
        activations = asked.at_last_token(group)
        for row, language in enumerate(LANGUAGES):
            prompt, choices = asked.prompt(group, language), asked.choices(group, language)
            for name, changes in variants(activations, row).items():
                scores = [gold_log_probability(asked.model, prompt, one, changes) for one in choices]
                expected.setdefault((name, language), []).append(scores)
    found = pd.concat([asked.tables["accuracy"], asked.tables["conversions"]]).drop_duplicates(["variant", "language"])
    found = found.set_index(["variant", "language"])
    gold = [CHOICES.index(one) for one in SUBJECTS.values()]
    for key, scores in expected.items():
        of_gold = [of_group[place] for of_group, place in zip(scores, gold, strict=True)]
        right = [int(np.argmax(of_group)) == place for of_group, place in zip(scores, gold, strict=True)]
        assert found.loc[key, "mean_gold_log_probability"] == pytest.approx(np.mean(of_gold), abs=TOLERANCE)
        assert found.loc[key, "choice_percent"] == pytest.approx(100 * np.mean(right))
        assert found.loc[key, "rows"] == len(GROUPS)
    effects = asked.tables["effects"].set_index(["metric", "type", "against"])
    for kind in ABLATED:
        difference = [
            np.diagonal(np.array(expected[f"w/o {kind.label}", one]) - np.array(expected["baseline", one]))
            for one in LANGUAGES
        ]
        effect = effects.loc[("gold_log_probability", kind.label, "baseline")]
        assert effect["difference"] == pytest.approx(np.mean(difference), abs=TOLERANCE)
        assert abs(effect["difference"]) > 10 * TOLERANCE
    changes = asked.tables["conversion_effects"].set_index(["metric", "converted", "against", "language"])
    for name, language in product(CONVERTED, LANGUAGES):
        for against, reference in (("baseline", "baseline"), ("zeroed", f"zero inactive {name}")):
            scores = np.array(expected[f"convert {name}", language]) - np.array(expected[reference, language])
            change = changes.loc[("gold_log_probability", name, against, language)]
            assert change["difference"] == pytest.approx(np.mean(np.diagonal(scores)), abs=TOLERANCE)
            assert change["rows"] == len(GROUPS)
    assert changes["difference"].abs().max() > 10 * TOLERANCE


def test_exact_matches_and_generated_texts_are_counted_as_they_were_answered(asked: Asked) -> None:
    table = pd.concat([asked.tables["accuracy"], asked.tables["conversions"].query("variant != 'baseline'")])
    table = table.set_index(["variant", "language"])
    for variant, language in product(("baseline", "w/o specific", "convert both", "zero inactive both"), LANGUAGES):
        predictions = [result.predictions[variant][language] for result in asked.results.values()]
        texts = [definitions.normalised(one.text) for one in predictions]
        labels = tuple(map(definitions.normalised, CHOICES))
        found = table.loc[(variant, language)]
        assert found["exact_percent"] == pytest.approx(100 * np.mean([one.exact for one in predictions]))
        assert found["no_label_percent"] == pytest.approx(100 * np.mean([not one.startswith(labels) for one in texts]))


def test_types_are_paired_with_their_controls(asked: Asked) -> None:
    effects = asked.tables["effects"].set_index(["metric", "type", "against"])
    for kind in ABLATED:
        (control,) = CONTEXT.ablations.controls(kind)
        without, with_control = (
            [
                result.predictions[variant][language].gold_log_probability
                for result, language in product(asked.results.values(), LANGUAGES)
            ]
            for variant in (f"w/o {kind.label}", control)
        )
        effect = effects.loc[("gold_log_probability", kind.label, "random_active")]
        assert effect["difference"] == pytest.approx(np.mean(np.subtract(without, with_control)))
        assert effect["reference"] == pytest.approx(np.mean(with_control))


def test_contributions(asked: Asked) -> None:
    table = asked.tables["contributions"].set_index(["component", "layer"])
    for component, norms in asked.norms.items():
        for layer in range(len(norms)):
            sums, counts = np.zeros(4), np.zeros(4)
            for group in GROUPS:
                codes = definitions.type_codes(asked.at_last_token(group)[component])[layer]
                for coefficients in asked.at_last_token(group, "coefficient")[component]:
                    written = np.abs(coefficients[layer]) * norms[layer]
                    sums += np.bincount(codes, written / written.sum(), 4)
                    counts += np.bincount(codes, minlength=4)
            found = table.loc[(component, layer)]
            rows = len(GROUPS) * len(LANGUAGES)
            np.testing.assert_allclose(found["sum_percent"], 100 * sums / rows, rtol=1e-4)
            np.testing.assert_allclose(found["mean_percent"], 100 * sums / counts, rtol=1e-4)


def test_effective_scores(asked: Asked) -> None:
    if isinstance(asked.model, Transformers):
        path = asked.model.modules.down_projection
    else:
        path = "decoder.block.{i}.layer.2.DenseReluDense.wo"
    torch_model = asked.model.model
    layers = len(asked.norms["decoder"])
    values = [torch_model.get_submodule(path.format(i=i)).weight.detach().numpy() for i in range(layers)]
    embedding = torch_model.lm_head.weight.detach().numpy()
    by_layer, by_language = np.zeros((layers, 4, 3)), np.zeros((len(LANGUAGES), 4, 3))
    for group in GROUPS:
        codes = definitions.type_codes(asked.at_last_token(group)["decoder"])
        for row, coefficients in enumerate(asked.at_last_token(group, "coefficient")["decoder"]):
            encoded = asked.results[group.id].rows[row]
            token = embedding[encoded.gold_token_ids[encoded.r_index]]
            scores = np.stack([coefficients[layer] * (token @ values[layer]) for layer in range(layers)])
            for code in range(4):
                for layer in range(layers):
                    by_layer[layer, code] += extremes_and_mean(scores[layer][codes[layer] == code])
                by_language[row, code] += extremes_and_mean(scores[codes == code])
    columns = ["maximum", "minimum", "mean"]
    found = asked.tables["effective_scores"][columns].to_numpy().reshape(layers, 4, 3)
    np.testing.assert_allclose(found, by_layer / len(GROUPS) / len(LANGUAGES), atol=2e-4)
    found = asked.tables["effective_scores_by_language"][columns].to_numpy().reshape(len(LANGUAGES), 4, 3)
    np.testing.assert_allclose(found, by_language / len(GROUPS), atol=2e-4)


def extremes_and_mean(scores: NDArray[np.float32]) -> tuple[float, float, float]:
    """Largest, smallest and mean; 0 of no neurons."""
    return (scores.max(), scores.min(), scores.mean()) if len(scores) else (0, 0, 0)
