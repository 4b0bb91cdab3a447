"""The analyses of types and activity against a plain reading of their definitions, and any split against the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neuroglot.analyses.base.ablations import Ablations
from neuroglot.analyses.base.activity import subset_weights, type_codes, type_counts
from neuroglot.analyses.base.bootstrap import weights
from neuroglot.analyses.base.context import Context
from neuroglot.analyses.base.fold import Analysis
from neuroglot.analyses.study import Study
from neuroglot.errors import AnalysisError, NotInResultError
from neuroglot.request.groups import Group
from neuroglot.results.results import GroupResult
from neuroglot.runs.settings import Options
from neuroglot.v1 import result_pb2
from tests.client.random_results import Example, random_examples, top_contributors, two_components, type_code

NAMES = (
    "types_by_layer",
    "active_by_language",
    "repeating",
    "dead",
    "top_contributors",
    "thresholds",
    "language_counts",
)
LANGUAGES = ("en", "ru", "th", "zh")
THRESHOLDS = (0.0, 0.4)
LAYERS, NEURONS, COUNT = 2, 23, 14
SUBSETS = (("ru", "en"), ("en", "th", "zh"))
EXAMPLES = random_examples(0, LANGUAGES, COUNT, Ablations(draws=1), LAYERS, NEURONS, thresholds=THRESHOLDS)
IDS = [example.result.group_id for example in EXAMPLES]
GROUPS = [Group({"en": "x"}, id=one, cluster=one.partition("/")[0]) for one in IDS]
CONTEXT = Context(LANGUAGES, Options(thresholds=THRESHOLDS, subsets=SUBSETS, replicates=200)).about(GROUPS)
TYPES = ("non-activated", "specific", "partial-shared", "all-shared")

# Mismatched groups, read plainly: examples S0/0, S1/0, ... S4/0, S0/1, ... in a ring, language j from j places on.
RING = sorted(range(COUNT), key=lambda place: IDS[place].split("/")[::-1])
MISMATCHED = [[RING[(place + step) % COUNT] for step in range(4)] for place in range(COUNT)]

Counts = Callable[[Sequence[int]], NDArray[np.float64]]
"""What is counted in a group whose languages have these examples."""


def study_of(examples: Iterable[Example], context: Context = CONTEXT) -> Study:
    study = Study(context, NAMES)
    for example in examples:
        study.add(example.result)
    return study


@pytest.fixture(scope="module")
def study() -> Study:
    return study_of(EXAMPLES)


def analysis(study: Study, name: str) -> Analysis:
    fold = study.folds[name]
    assert isinstance(fold, Analysis)
    return fold


def activations(group: Sequence[int]) -> NDArray[np.float64]:
    """`[languages, layers, neurons]` of a group whose languages have these examples."""
    return np.stack([EXAMPLES[place].activations[row] for row, place in enumerate(group)])


def types_of(values: NDArray[np.float64], threshold: float = 0.0) -> NDArray[np.float64]:
    """Neurons of each type, `[layers, 4]`."""
    found = np.zeros((LAYERS, 4))
    for layer in range(LAYERS):
        for neuron in range(NEURONS):
            found[layer, type_code((values[:, layer, neuron] > threshold).tolist())] += 1
    return found


def interval(by_group: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    """The percentiles of the mean over groups, where clusters count as often as they are drawn."""
    names = tuple(sorted(set(clusters)))
    means = []
    for drawn in weights(0, names, 200):
        of_groups = [drawn[names.index(cluster)] for cluster in clusters]
        if sum(of_groups):
            means.append(np.average(by_group, weights=of_groups))
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


def assert_shares(row: pd.Series, counts: Counts, place: tuple[int, ...], whole: float) -> None:
    """That a table's row has the mean and the interval of what is counted, in groups and in mismatched groups."""
    for prefix, groups in (("", [[place] * 4 for place in range(COUNT)]), ("mismatched_", MISMATCHED)):
        shares = [100 * counts(group)[place] / whole for group in groups]
        assert row[f"{prefix}share_percent"] == pytest.approx(np.mean(shares), abs=1e-9)
        low, high = interval(shares, [IDS[group[0]].partition("/")[0] for group in groups])
        assert row[f"{prefix}share_low"] == pytest.approx(low, abs=1e-9)
        assert row[f"{prefix}share_high"] == pytest.approx(high, abs=1e-9)
    assert (row["groups"], row["mismatched_groups"]) == (COUNT, COUNT)


def test_types_by_layer_are_the_mean_share_over_examples(study: Study) -> None:
    table = study.folds["types_by_layer"].table().set_index(["component", "layer", "type"])
    assert len(table) == LAYERS * 4
    for layer, code in np.ndindex(LAYERS, 4):
        row = table.loc[("decoder", layer, TYPES[code])]
        assert_shares(row, lambda group: types_of(activations(group)), (layer, code), NEURONS)
        shares = [types_of(example.activations)[layer, code] / NEURONS for example in EXAMPLES]
        assert row["sd_percent"] == pytest.approx(100 * np.std(shares), abs=1e-9)
        assert row["mean_neurons"] == pytest.approx(NEURONS * np.mean(shares), abs=1e-9)


def test_last_tokens_are_counted_in_groups_and_in_mismatched_groups(study: Study) -> None:
    tokens = [[row.last_token_id for row in example.result.rows] for example in EXAMPLES]
    row = study.folds["types_by_layer"].table().iloc[0]
    assert row["distinct_last_tokens"] == pytest.approx(np.mean([len(set(of_group)) for of_group in tokens]))
    mixed = [{tokens[place][row] for row, place in enumerate(group)} for group in MISMATCHED]
    assert row["mismatched_distinct_last_tokens"] == pytest.approx(np.mean([len(of_group) for of_group in mixed]))


def test_active_neurons_are_counted_in_each_language_by_itself(study: Study) -> None:
    table = study.folds["active_by_language"].table().set_index(["layer", "language"])
    clusters = [one.partition("/")[0] for one in IDS]
    for (row, language), layer in ((one, layer) for one in enumerate(LANGUAGES) for layer in range(LAYERS)):
        active = [100 * np.mean(example.activations[row, layer] > 0) for example in EXAMPLES]
        found = table.loc[(layer, language)]
        assert found["active_percent"] == pytest.approx(np.mean(active), abs=1e-9)
        assert (found["active_low"], found["active_high"]) == pytest.approx(interval(active, clusters), abs=1e-9)


def test_repeating_neurons_keep_their_type_in_every_example() -> None:
    few = EXAMPLES[:3]
    repeating = study_of(few).folds["repeating"]
    table = repeating.table().set_index(["layer", "type"])
    for layer, code in np.ndindex(LAYERS, 4):
        of_type = [
            {n for n in range(NEURONS) if type_code((one.activations[:, layer, n] > 0).tolist()) == code} for one in few
        ]
        always, average = len(set.intersection(*of_type)), np.mean([len(neurons) for neurons in of_type])
        row = table.loc[(layer, TYPES[code])]
        assert row["overlap_neurons"] == always
        assert row["overlap_percent"] == pytest.approx(100 * always / NEURONS)
        assert row["average_percent"] == pytest.approx(100 * average / NEURONS)
        assert row["kept_percent"] == pytest.approx(100 * always / average if average else math.nan, nan_ok=True)
    assert table["overlap_neurons"].sum() > 0
    inactive = table.xs("non-activated", level="type")
    kept = 100 * inactive["overlap_neurons"].sum() / (inactive["average_percent"].sum() * NEURONS / 100)
    assert f"{kept:.1f} % are non-activated in all" in repeating.caption()


def test_dead_neurons_are_inactive_at_every_token_of_one_prompt_or_of_all() -> None:
    few = EXAMPLES[:4]
    table = study_of(few).folds["dead"].table().set_index(["layer", "language"])
    for (row, language), layer in ((one, layer) for one in enumerate(LANGUAGES) for layer in range(LAYERS)):
        dead = [{n for n in range(NEURONS) if one.peaks[row, layer, n] <= 0} for one in few]
        inactive = [sum(one.activations[row, layer] <= 0) for one in few]
        found = table.loc[(layer, language)]
        assert found["dead_percent"] == pytest.approx(100 * np.mean([len(one) for one in dead]) / NEURONS)
        assert found["of_inactive_percent"] == pytest.approx(100 * sum(map(len, dead)) / sum(inactive))
        assert found["cumulative_neurons"] == len(set.intersection(*dead))
        assert found["cumulative_percent"] == pytest.approx(100 * len(set.intersection(*dead)) / NEURONS)
    assert 0 < table["cumulative_percent"].sum() < table["dead_percent"].sum()


def test_the_figure_of_dead_neurons_shows_either_form() -> None:
    for cumulative, column in ((False, "dead_percent"), (True, "cumulative_percent")):
        options = Options(thresholds=THRESHOLDS, replicates=50, cumulative_dead=cumulative)
        context = Context(LANGUAGES, options).about(GROUPS)
        fold = analysis(study_of(EXAMPLES[:4], context), "dead")
        table = fold.table().set_index(["language", "layer"])[column]
        (axes,) = fold.figure().axes
        for line, language in zip(axes.get_lines(), LANGUAGES, strict=True):
            assert line.get_ydata().tolist() == pytest.approx(table[language].tolist())
        assert ("dead in all 4 prompts" in fold.caption()) is cumulative
        assert ("released code" in fold.definition()) is cumulative


def test_top_contributors_are_those_of_each_row_typed_over_its_group(study: Study) -> None:
    def counts(group: Sequence[int]) -> NDArray[np.float64]:
        found = np.zeros((4, LAYERS, 4))
        active = activations(group) > 0
        for row, layer in np.ndindex(4, LAYERS):
            example = EXAMPLES[group[row]]
            for neuron in top_contributors(np.abs(example.activations[row, layer]) * example.norms[layer]):
                found[row, layer, type_code(active[:, layer, neuron].tolist())] += 1
        return found

    table = study.folds["top_contributors"].table().set_index(["layer", "language", "type"])
    for row, layer, code in np.ndindex(4, LAYERS, 4):
        assert_shares(table.loc[(layer, LANGUAGES[row], TYPES[code])], counts, (row, layer, code), 2)
    assert "(2 of 23 decoder neurons)" in analysis(study, "top_contributors").caption()


def test_types_at_every_threshold(study: Study) -> None:
    table = study.folds["thresholds"].table().set_index(["threshold", "layer", "type"])
    assert len(table) == 2 * LAYERS * 4
    for threshold in THRESHOLDS:
        for layer, code in np.ndindex(LAYERS, 4):
            row = table.loc[(threshold, layer, TYPES[code])]
            assert_shares(row, lambda group, t=threshold: types_of(activations(group), t), (layer, code), NEURONS)


def test_types_over_chosen_languages_with_all_of_them_beside(study: Study) -> None:
    table = study.folds["language_counts"].table().set_index(["languages", "subset", "layer", "type"])
    assert len(table) == 3 * LAYERS * 4
    for subset in ((0, 1), (0, 2, 3), (0, 1, 2, 3)):
        name = " ".join(LANGUAGES[row] for row in subset) if len(subset) < 4 else ""
        for layer, code in np.ndindex(LAYERS, 4):
            row = table.loc[(len(subset), name, layer, TYPES[code])]
            chosen = list(subset)
            assert_shares(row, lambda group, rows=chosen: types_of(activations(group)[rows]), (layer, code), NEURONS)
    panels = analysis(study, "language_counts").figure().axes
    assert [axes.get_title("left") for axes in panels] == ["en ru", "without ru", "4 languages"]


def test_types_over_fewer_languages_are_the_mean_over_all_subsets() -> None:
    def counts(group: Sequence[int]) -> NDArray[np.float64]:
        return np.mean([types_of(activations(group)[list(rows)]) for rows in combinations(range(4), 3)], axis=0)

    context = Context(LANGUAGES, Options(thresholds=THRESHOLDS, replicates=200)).about(GROUPS)
    table = study_of(EXAMPLES, context).folds["language_counts"].table().set_index(["languages", "layer", "type"])
    assert sorted(set(table.index.get_level_values("languages"))) == [3, 4]
    assert table.loc[3, "subsets"].unique().tolist() == [4]
    for layer, code in np.ndindex(LAYERS, 4):
        assert_shares(table.loc[(3, layer, TYPES[code])], counts, (layer, code), NEURONS)


@pytest.mark.parametrize(
    ("count", "sizes"), [(2, [2]), (3, [3]), (4, [3, 4]), (9, [3, 5, 7, 9]), (10, [3, 5, 7, 9, 10])]
)
def test_numbers_of_languages_are_odd_and_all_of_them(count: int, sizes: list[int]) -> None:
    languages = [f"l{number}" for number in range(count)]
    (fold,) = Study(Context(tuple(languages)), ["language_counts"]).folds.values()
    assert [choice.size for choice in fold.choices()] == sizes


@given(st.integers(2, 7), st.data())
def test_the_share_of_subsets_is_that_of_enumeration(languages: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(2, languages))
    found = subset_weights(languages, size)
    for active in range(languages + 1):
        row = [language < active for language in range(languages)]
        codes = [type_code([row[one] for one in subset]) for subset in combinations(range(languages), size)]
        assert found[active].tolist() == pytest.approx([codes.count(code) / len(codes) for code in range(4)])


@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_types_of_activity_are_those_of_the_definition(rows: int, seed: int) -> None:
    active = np.random.default_rng(seed).random((rows, 2, 9)) < 0.6
    codes, counts = type_codes(active), type_counts(active)
    for layer in range(2):
        expected = [type_code(active[:, layer, neuron].tolist()) for neuron in range(9)]
        assert codes[layer].tolist() == expected
        assert counts[layer].tolist() == [expected.count(code) for code in range(4)]


def tables(study: Study) -> dict[str, pd.DataFrame]:
    return {name: table for fold in study.folds.values() for name, table in fold.tables().items()}


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(COUNT)), st.lists(st.integers(0, COUNT), max_size=3))
def test_any_split_in_any_order_gives_the_same_tables(order: list[int], cuts: list[int]) -> None:
    merged = study_of([])
    for start, end in pairwise([0, *sorted(cuts), COUNT]):
        merged.merge(study_of(EXAMPLES[place] for place in order[start:end]))
    expected = tables(study_of(EXAMPLES))
    for name, table in tables(merged).items():
        floats = table.select_dtypes("float").columns
        pd.testing.assert_frame_equal(table[floats], expected[name][floats], rtol=1e-9, atol=1e-9)
        others = table.columns.difference(floats)
        pd.testing.assert_frame_equal(table[others], expected[name][others], check_exact=True)


def test_without_mismatched_groups_there_are_no_dashed_lines_and_no_numbers() -> None:
    options = Options(thresholds=THRESHOLDS, replicates=50)
    context = Context(LANGUAGES, options)  # about no examples: nothing is known to rotate
    study = study_of(EXAMPLES[:4], context)
    for name in ("types_by_layer", "top_contributors", "thresholds", "language_counts"):
        fold = analysis(study, name)
        table = fold.table()
        assert table.filter(like="mismatched_share").isna().all(axis=None)
        assert (table["mismatched_groups"] == 0).all()
        assert "No mismatched groups" in fold.caption()
        assert all(len(axes.get_lines()) == 4 for axes in fold.figure().axes)
    assert math.isnan(study.folds["types_by_layer"].table()["mismatched_distinct_last_tokens"].iloc[0])


def test_too_few_clusters_have_no_intervals_and_still_a_figure() -> None:
    study = study_of(EXAMPLES[:3], Context(LANGUAGES, Options(thresholds=THRESHOLDS), dict.fromkeys(IDS, "one")))
    for fold in study.folds.values():
        assert fold.table().filter(regex="_(low|high)$").isna().all(axis=None)
    for name in ("types_by_layer", "active_by_language"):
        assert analysis(study, name).figure().axes


def test_encoder_and_decoder_are_counted_apart() -> None:
    encoders = random_examples(9, LANGUAGES, 5, Ablations(draws=1), 3, 12, "encoder", THRESHOLDS)
    study = Study(CONTEXT, NAMES)
    for decoder, encoder in zip(EXAMPLES, encoders, strict=False):
        study.add(two_components(decoder, encoder))
    alone = study_of(EXAMPLES[:5])
    for name, fold in study.folds.items():
        both = fold.table()
        assert both.groupby("component")["layer"].nunique().to_dict() == {"decoder": 2, "encoder": 3}
        decoder = both[both["component"] == "decoder"].reset_index(drop=True)
        pd.testing.assert_frame_equal(decoder, alone.folds[name].table())
    assert len(analysis(study, "thresholds").figure().axes) == 2 * len(THRESHOLDS)
    assert "start token only" in analysis(study, "dead").caption()


@pytest.mark.parametrize("subset", [("en",), (), ("en", "en"), ("en", "de")])
def test_a_subset_is_two_or_more_of_the_languages(subset: tuple[str, ...]) -> None:
    with pytest.raises(
        AnalysisError, match=r"invalid subset of languages .* expected two or more of en, ru, th, zh, each once"
    ):
        Context(LANGUAGES, Options(subsets=(subset,)))


@pytest.mark.parametrize(
    ("name", "emptied", "argument"),
    [
        ("repeating", "type_map", "type_map=True"),
        ("dead", "dead_counts", "dead=True"),
        ("dead", "dead_bitmaps", "dead=True and active=True"),
        ("language_counts", "active_bitmaps", "active=True"),
        ("top_contributors", "contribution", "contribution=True"),
    ],
)
def test_what_was_not_asked_for_is_an_error(name: str, emptied: str, argument: str) -> None:
    message = result_pb2.GroupResult()
    message.CopyFrom(EXAMPLES[0].result.message)
    for threshold in message.components[0].thresholds:
        threshold.ClearField(emptied)
    with pytest.raises(NotInResultError, match=f"analyze with {argument}"):
        Study(CONTEXT, [name]).add(GroupResult(message))


def test_together_they_ask_once_for_all_that_they_need() -> None:
    asked = Study(CONTEXT, NAMES).keywords()
    assert (asked["type_map"], asked["active"], asked["dead"], asked["predict"]) == (True, True, True, False)
    assert tuple(asked["thresholds"]) == THRESHOLDS
    assert not asked["variants"]
