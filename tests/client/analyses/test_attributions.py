"""Contributions and effective scores by type against a plain reading of their definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise, product
from typing import TypeVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroglot.analyses.attribution.contributions import Contributions
from neuroglot.analyses.attribution.effective_scores import EffectiveScores
from neuroglot.analyses.base.ablations import Ablations
from neuroglot.analyses.base.bootstrap import weights
from neuroglot.analyses.base.context import Context
from neuroglot.analyses.base.fold import Fold
from neuroglot.errors import NotInResultError
from neuroglot.results.results import GroupResult
from neuroglot.runs.settings import Options, ScoreReduction
from neuroglot.v1 import result_pb2
from tests.client.random_results import Example, random_examples, two_components, type_code

LANGUAGES = ("en", "ru", "zh")
LAYERS, NEURONS, COUNT, REPLICATES = 3, 9, 14, 200  # so few neurons that some types are empty in some groups
EXAMPLES = random_examples(0, LANGUAGES, COUNT, Ablations(draws=1), LAYERS, NEURONS)
CLUSTERS = {example.result.group_id: example.result.group_id.split("/")[0] for example in EXAMPLES}
TYPES = ("non-activated", "specific", "partial-shared", "all-shared")
WITHIN, OF_MEANS = (
    Context(LANGUAGES, Options(replicates=REPLICATES, score_reduction=reduction), CLUSTERS)
    for reduction in ScoreReduction
)


Folded = TypeVar("Folded", bound=Fold)


def folded(fold: Folded, results: Iterable[GroupResult]) -> Folded:
    for result in results:
        fold.add(result)
    return fold


def of_type(example: Example, layer: int, code: int) -> list[int]:
    """The neurons of a type."""
    active = example.activations[:, layer] > 0
    return [neuron for neuron in range(NEURONS) if type_code(active[:, neuron].tolist()) == code]


def contributions(example: Example, row: int, layer: int) -> np.ndarray:
    magnitudes = np.abs(example.activations[row, layer]) * example.norms[layer]
    return magnitudes / magnitudes.sum()


def scores(example: Example, row: int, layer: int, code: int) -> list[float]:
    products = example.activations[row, layer] * example.directions[row, layer]
    return [products[neuron] for neuron in of_type(example, layer, code)]


def replicated(estimate: Callable[[list[float]], float]) -> tuple[float, float]:
    """The percentile interval of an estimate that is given a weight for each example."""
    names = sorted(set(CLUSTERS.values()))
    drawn = weights(0, tuple(names), REPLICATES)
    places = [names.index(CLUSTERS[example.result.group_id]) for example in EXAMPLES]
    estimates = [estimate(of_clusters[places].tolist()) for of_clusters in drawn if of_clusters.any()]
    low, high = np.percentile(estimates, [2.5, 97.5])
    return float(low), float(high)


def test_contributions_are_summed_over_a_type_and_averaged_over_its_neurons() -> None:
    table = folded(Contributions(WITHIN), (one.result for one in EXAMPLES)).table()
    assert len(table) == LAYERS * 4
    assert table.groupby("layer")["sum_percent"].sum().tolist() == pytest.approx([100] * LAYERS)
    table = table.set_index(["component", "layer", "type"])
    for layer, (code, label) in product(range(LAYERS), enumerate(TYPES)):
        of_neurons = [
            [
                contributions(one, row, layer)[neuron]
                for row in range(len(LANGUAGES))
                for neuron in of_type(one, layer, code)
            ]
            for one in EXAMPLES
        ]
        found = table.loc[("decoder", layer, label)]
        every = [value for values in of_neurons for value in values]
        assert found["mean_percent"] == pytest.approx(100 * np.mean(every), rel=1e-5)
        assert found["sum_percent"] == pytest.approx(100 * sum(every) / COUNT / len(LANGUAGES), rel=1e-5)
        assert found["mean_neurons"] == pytest.approx(len(every) / len(LANGUAGES) / COUNT)
        sums = [100 * sum(one) / len(LANGUAGES) for one in of_neurons]
        total = replicated(lambda w, sums=sums: np.dot(w, sums) / sum(w))
        assert (found["sum_low"], found["sum_high"]) == pytest.approx(total, rel=1e-5)
    assert any(not of_type(one, layer, 3) for one in EXAMPLES for layer in range(LAYERS))


def test_the_mean_contribution_has_the_interval_of_a_mean_over_neurons() -> None:
    found = folded(Contributions(WITHIN), (one.result for one in EXAMPLES)).table().iloc[0]  # non-activated in layer 0
    sums = [
        sum(contributions(one, row, 0)[of_type(one, 0, 0)].sum() for row in range(len(LANGUAGES))) for one in EXAMPLES
    ]
    counts = [len(of_type(one, 0, 0)) * len(LANGUAGES) for one in EXAMPLES]
    interval = replicated(lambda w: 100 * np.dot(w, sums) / np.dot(w, counts))
    assert (found["mean_low"], found["mean_high"]) == pytest.approx(interval, rel=1e-5)


def test_a_type_without_any_neurons_has_no_mean_contribution() -> None:
    message = result_pb2.GroupResult()
    message.CopyFrom(EXAMPLES[0].result.message)
    threshold = message.components[0].thresholds[0]
    threshold.type_counts[:4] = [NEURONS, 0, 0, 0]
    for row in range(len(LANGUAGES)):
        threshold.contribution.sums[row * LAYERS * 4 : row * LAYERS * 4 + 4] = [1, 0, 0, 0]
    table = folded(Contributions(WITHIN), [GroupResult(message)]).table().set_index(["layer", "type"])
    assert table.loc[(0, "non-activated"), "mean_percent"] == pytest.approx(100 / NEURONS)
    assert table.loc[(0, "specific"), ["mean_percent", "mean_low"]].isna().all()
    assert table.loc[(0, "specific"), "sum_percent"] == 0


def test_contributions_of_encoder_and_decoder_are_apart() -> None:
    encoders = random_examples(1, LANGUAGES, COUNT, Ablations(draws=1), 2, 6, component="encoder")
    both = [two_components(*pair) for pair in zip(EXAMPLES, encoders, strict=True)]
    table = folded(Contributions(WITHIN), both).table()
    assert table.groupby("component")["layer"].nunique().to_dict() == {"decoder": LAYERS, "encoder": 2}
    alone = folded(Contributions(WITHIN), (one.result for one in EXAMPLES)).table()
    pd.testing.assert_frame_equal(table[table["component"] == "decoder"].reset_index(drop=True), alone)


def test_effective_scores_by_layer_are_means_over_groups_and_languages() -> None:
    table = folded(EffectiveScores(WITHIN), (one.result for one in EXAMPLES)).table().set_index(["layer", "type"])
    for layer, (code, label) in product(range(LAYERS), enumerate(TYPES)):
        rows = [[scores(one, row, layer, code) for row in range(len(LANGUAGES))] for one in EXAMPLES]
        found = table.loc[(layer, label)]
        for name, reduce in (("maximum", max), ("minimum", min), ("mean", np.mean)):
            values = [[reduce(one) if one else 0.0 for one in of_group] for of_group in rows]
            assert found[name] == pytest.approx(np.mean(values), rel=1e-5, abs=1e-7)
            interval = replicated(lambda w, values=values: np.dot(w, np.mean(values, axis=1)) / sum(w))
            assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx(interval, rel=1e-5, abs=1e-7)
        assert found["mean_neurons"] == np.mean([len(of_group[0]) for of_group in rows])


def test_effective_scores_by_language_reduce_over_the_layers_of_each_group() -> None:
    tables = folded(EffectiveScores(WITHIN), (one.result for one in EXAMPLES)).tables()
    table = tables["effective_scores_by_language"].set_index(["language", "type"])
    for (row, language), (code, label) in product(enumerate(LANGUAGES), enumerate(TYPES)):
        groups = [[value for layer in range(LAYERS) for value in scores(one, row, layer, code)] for one in EXAMPLES]
        found = table.loc[(language, label)]
        for name, reduce in (("maximum", max), ("minimum", min), ("mean", np.mean)):
            values = [reduce(one) if one else 0.0 for one in groups]
            assert found[name] == pytest.approx(np.mean(values), rel=1e-5, abs=1e-7)
            interval = replicated(lambda w, values=values: np.dot(w, values) / sum(w))
            assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx(interval, rel=1e-5, abs=1e-7)
        assert found["mean_neurons"] == pytest.approx(np.mean([len(one) for one in groups]))
        assert found["reduction"] == "within_groups"


def test_effective_scores_by_language_reduce_over_the_layers_means() -> None:
    tables = folded(EffectiveScores(OF_MEANS), (one.result for one in EXAMPLES)).tables()
    table = tables["effective_scores_by_language"].set_index(["language", "type"])
    within = folded(EffectiveScores(WITHIN), (one.result for one in EXAMPLES)).tables()["effective_scores_by_language"]
    for (row, language), (code, label) in product(enumerate(LANGUAGES), enumerate(TYPES)):
        found = table.loc[(language, label)]
        for name, reduce in (("maximum", max), ("minimum", min)):
            values = np.array(
                [[reduce(scores(one, row, layer, code), default=0) for layer in range(LAYERS)] for one in EXAMPLES]
            )
            assert found[name] == pytest.approx(reduce(values.mean(axis=0)), rel=1e-5)
            interval = replicated(lambda w, reduce=reduce, values=values: reduce(np.dot(w, values) / sum(w)))
            assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx(interval, rel=1e-5)
    assert list(table["mean"]) == list(within["mean"])
    assert set(table["reduction"]) == {"of_means"}


def test_layers_without_neurons_of_a_type_do_not_hide_that_all_its_scores_are_negative() -> None:
    message = result_pb2.GroupResult()
    message.CopyFrom(EXAMPLES[0].result.message)
    threshold = message.components[0].thresholds[0]
    threshold.type_counts[:] = [NEURONS, 0, 0, 0, NEURONS - 1, 1, 0, 0, NEURONS, 0, 0, 0]
    for values in (threshold.effective_score.maxima, threshold.effective_score.minima, threshold.effective_score.sums):
        values[:] = [0.0, 0, 0, 0, 0, -0.5, 0, 0, 0, 0, 0, 0] * len(LANGUAGES)
    for context in (WITHIN, OF_MEANS):
        table = folded(EffectiveScores(context), [GroupResult(message)]).tables()["effective_scores_by_language"]
        found = table.set_index(["language", "type"])
        assert found.loc[("ru", "specific"), ["maximum", "minimum", "mean"]].tolist() == [-0.5, -0.5, -0.5]
        columns = ["maximum", "minimum", "mean", "mean_neurons"]
        assert found.loc[("ru", "all-shared"), columns].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("context", [WITHIN, OF_MEANS])
def test_rows_without_an_answer_have_no_scores(context: Context) -> None:
    message = result_pb2.GroupResult()
    message.CopyFrom(EXAMPLES[0].result.message)
    message.group_id = "without a Russian answer"
    scored = message.components[0].thresholds[0].effective_score
    for values in (scored.maxima, scored.minima, scored.sums):
        values[LAYERS * 4 : 2 * LAYERS * 4] = [np.nan] * LAYERS * 4
    fold = folded(EffectiveScores(context), [*(one.result for one in EXAMPLES[:3]), GroupResult(message)])
    table = fold.tables()["effective_scores_by_language"].set_index(["language", "type"])
    expected = folded(EffectiveScores(context), (one.result for one in EXAMPLES[:3])).tables()
    russian = expected["effective_scores_by_language"].set_index(["language", "type"]).loc["ru"]
    columns = ["maximum", "minimum", "mean", "rows"]
    if context is WITHIN:  # the other takes the empty types of a layer from all groups
        pd.testing.assert_frame_equal(table.loc["ru"][columns], russian[columns])
    assert table["rows"].groupby("language").first().to_dict() == {"en": 4, "ru": 3, "zh": 4}
    answered = [(one, row) for one in EXAMPLES[:3] for row in range(3)] + [(EXAMPLES[0], 0), (EXAMPLES[0], 2)]
    first = [max(scores(one, row, 0, 0)) for one, row in answered]  # of the non-activated in layer 0
    assert fold.table()["maximum"].iloc[0] == pytest.approx(np.mean(first), rel=1e-5)
    assert fold.table()["rows"].unique().tolist() == [11]
    assert "11 of these prompts have an answer" in fold.caption()


def test_only_decoders_have_effective_scores() -> None:
    encoders = random_examples(1, LANGUAGES, COUNT, Ablations(draws=1), 2, 6, component="encoder")
    both = [two_components(*pair) for pair in zip(EXAMPLES, encoders, strict=True)]
    fold, alone = (
        folded(EffectiveScores(WITHIN), both),
        folded(EffectiveScores(WITHIN), (one.result for one in EXAMPLES)),
    )
    for name, table in fold.tables().items():
        pd.testing.assert_frame_equal(table, alone.tables()[name])
    assert len(fold.figure().axes) == 1
    assert "The encoder has no effective scores" in fold.caption()


@pytest.mark.parametrize(("fold", "field"), [(Contributions, "contribution"), (EffectiveScores, "effective_score")])
def test_what_was_not_asked_for_is_an_error(fold: type[Fold], field: str) -> None:
    message = result_pb2.GroupResult()
    message.CopyFrom(EXAMPLES[0].result.message)
    message.components[0].thresholds[0].ClearField(field)
    with pytest.raises(NotInResultError, match=f"analyze with {field}=True"):
        fold(WITHIN).add(GroupResult(message))


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(COUNT)), st.lists(st.integers(0, COUNT), max_size=3), st.sampled_from([WITHIN, OF_MEANS]))
def test_any_split_in_any_order_gives_the_same_tables(order: list[int], cuts: list[int], context: Context) -> None:
    for kind in (Contributions, EffectiveScores):
        merged = kind(context)
        for start, end in pairwise([0, *sorted(cuts), COUNT]):
            merged.merge(folded(kind(context), (EXAMPLES[place].result for place in order[start:end])))
        whole = folded(kind(context), (one.result for one in EXAMPLES))
        for name, table in merged.tables().items():
            pd.testing.assert_frame_equal(table, whole.tables()[name], rtol=1e-9, atol=1e-9)
