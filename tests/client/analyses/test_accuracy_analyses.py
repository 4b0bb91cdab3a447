"""The analyses of predictions against a plain reading of their definitions: accuracy, effects, conversions, answers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroglot.analyses.accuracy.accuracy import Accuracy
from neuroglot.analyses.accuracy.conversion_accuracy import ConversionAccuracy
from neuroglot.analyses.accuracy.effects import Effects
from neuroglot.analyses.accuracy.predictions import Metric
from neuroglot.analyses.base.ablations import ABLATED, Ablations
from neuroglot.analyses.base.bootstrap import weights
from neuroglot.analyses.base.context import Context
from neuroglot.analyses.base.conversions import Conversions
from neuroglot.analyses.base.statistics import holm, wilson
from neuroglot.analyses.study import Study
from neuroglot.errors import AnalysisError
from neuroglot.request.groups import Group
from neuroglot.request.interventions import Convert
from neuroglot.request.selections import Control, ControlKind
from neuroglot.results.results import BASELINE, GroupResult, RowPrediction
from neuroglot.runs.settings import MEAN, Options
from neuroglot.v1 import result_pb2
from tests.client.random_results import Example, random_examples

NAMES = ("effects", "accuracy", "conversions", "answers")
LANGUAGES = ("en", "ru", "zh")
KINDS = (ControlKind.RANDOM_ACTIVE, ControlKind.RANDOM)
ABLATIONS = Ablations(draws=2, seed=5, kinds=KINDS)
COUNT, REPLICATES = 14, 200
EXAMPLES = random_examples(0, LANGUAGES, COUNT, ABLATIONS, layers=2, neurons=7)
IDS = [example.result.group_id for example in EXAMPLES]
CLUSTERS = [name.split("/")[0] for name in IDS]  # S0, S0, S0, S1, ...

LABELS = ("Right.", "perhaps", "never")
GOLD = [None if place % 5 == 4 else place % 3 for place in range(COUNT)]
"""Place of the gold answer among the choices; every fifth example has no choices."""

GROUPS = [
    Group(
        dict.fromkeys(LANGUAGES, "x"),
        answers=dict.fromkeys(LANGUAGES, "x" if gold is None else LABELS[gold].lower()),
        choices={} if gold is None else dict.fromkeys(LANGUAGES, LABELS),
        id=name,
        cluster=cluster,
    )
    for name, cluster, gold in zip(IDS, CLUSTERS, GOLD, strict=True)
]
CONTEXT = Context(LANGUAGES, Options(draws=2, seed=5, controls=KINDS, replicates=REPLICATES)).about(GROUPS)

Value = Callable[[int, str, str], float]
"""Of an example, a language and a variant; NaN where there is none."""


def study_of(examples: Iterable[Example], context: Context = CONTEXT) -> Study:
    study = Study(context, NAMES)
    for example in examples:
        study.add(example.result)
    return study


@pytest.fixture(scope="module")
def study() -> Study:
    return study_of(EXAMPLES)


def effects_of(study: Study) -> Effects:
    fold = study.folds["effects"]
    assert isinstance(fold, Effects)
    return fold


def row(place: int, language: str, variant: str) -> RowPrediction:
    return EXAMPLES[place].result.predictions[variant][language]


def exact(place: int, language: str, variant: str) -> float:
    return 100.0 if row(place, language, variant).exact else 0.0


def log_probability(place: int, language: str, variant: str) -> float:
    value = row(place, language, variant).gold_log_probability
    assert value is not None
    return value


def choice(place: int, language: str, variant: str) -> float:
    if GOLD[place] is None:
        return math.nan
    likelihoods = row(place, language, variant).choice_log_probabilities
    return 100.0 if likelihoods.index(max(likelihoods)) == GOLD[place] else 0.0


VALUES: dict[Metric, Value] = {
    Metric.EXACT: exact,
    Metric.LOG_PROBABILITY: log_probability,
    Metric.CHOICE: choice,
}


def bootstrap(values: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    """The percentile interval of a mean over rows: each replicate draws whole clusters."""
    drawn = weights(5, tuple(sorted(set(CLUSTERS))), REPLICATES)
    by_row = drawn[:, [sorted(set(CLUSTERS)).index(one) for one in clusters]]
    sizes = by_row.sum(axis=1)
    means = (by_row @ values)[sizes > 0] / sizes[sizes > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def flips(sums: Sequence[float]) -> float:
    """The two-sided p-value over all flips of the clusters' signs."""
    totals = [np.dot(signs, sums) for signs in product([1, -1], repeat=len(sums))]
    tails = sum(one >= sum(sums) - 1e-9 for one in totals), sum(one <= sum(sums) + 1e-9 for one in totals)
    return min(1.0, 2 * min(tails) / len(totals))


def paired(
    value: Value, variant: str, references: Sequence[str], languages: Sequence[str]
) -> tuple[list[float], list[str]]:
    """Of every row that has all values, the variant's less the mean of the references', and the row's cluster."""
    differences, clusters = [], []
    for place, language in product(range(COUNT), languages):
        mean = sum(value(place, language, name) for name in references) / len(references)
        difference = value(place, language, variant) - mean
        if not math.isnan(difference):
            differences.append(difference)
            clusters.append(CLUSTERS[place])
    return differences, clusters


def p_value(differences: Sequence[float], clusters: Sequence[str]) -> float:
    sums: dict[str, float] = defaultdict(float)
    for difference, cluster in zip(differences, clusters, strict=True):
        sums[cluster] += difference
    return flips(list(sums.values()))


def test_accuracy_counts_every_variant_and_language(study: Study) -> None:
    table = study.folds["accuracy"].table().set_index(["variant", "language"])
    assert len(table) == (1 + 3 + 3 * 2 * 2) * len(LANGUAGES)
    for variant, language in product(ABLATIONS.names, LANGUAGES):
        found = table.loc[(variant, language)]
        rows = [row(place, language, variant) for place in range(COUNT)]
        with_choices = [place for place in range(COUNT) if GOLD[place] is not None]
        assert (found["rows"], found["errors"]) == (COUNT, 0)
        successes = {
            "exact": (sum(one.exact is True for one in rows), COUNT),
            "starts_with_answer": (sum(one.starts_with_answer is True for one in rows), COUNT),
            "matches": (sum(one.text == "right" for one in rows), COUNT),
            "choice": (sum(choice(place, language, variant) == 100 for place in with_choices), len(with_choices)),
            "no_label": (sum(rows[place].text == "wrong" for place in with_choices), len(with_choices)),
        }
        for name, (count, trials) in successes.items():
            assert found[f"{name}_percent"] == pytest.approx(100 * count / trials)
            interval = found[f"{name}_low"], found[f"{name}_high"]
            assert interval == pytest.approx([100 * end for end in wilson(count, trials)])
        log_probabilities = [log_probability(place, language, variant) for place in range(COUNT)]
        assert found["mean_gold_log_probability"] == pytest.approx(np.mean(log_probabilities))
        interval = found["gold_log_probability_low"], found["gold_log_probability_high"]
        assert interval == pytest.approx(bootstrap(log_probabilities, CLUSTERS))
        for column in ("selected_neurons", "selected_active_neurons"):
            assert found[column] == pytest.approx(np.mean([getattr(one, column) for one in rows]))
    controls = table.query("condition == 'control'")
    assert set(zip(controls["type"], controls["control"], controls["draw"], strict=True)) == {
        (kind.label, drawn.value, draw) for kind in ABLATED for drawn in KINDS for draw in range(2)
    }


def test_accuracy_by_language_has_the_form_of_table_2(study: Study) -> None:
    table = study.folds["accuracy"].tables()["accuracy_by_language"]
    assert list(table.columns) == ["measure", "variant", "all", *LANGUAGES]
    assert set(table["measure"]) == {"exact", "matches", "choice"}
    assert list(table["variant"])[:4] == [
        "baseline",
        "w/o all-shared",
        "random-active control of all-shared",
        "random control of all-shared",
    ]
    lines = table[table["measure"] == "exact"].set_index("variant")
    shown = {BASELINE: (BASELINE,), "random control of specific": ABLATIONS.controls(ABLATED[1], ControlKind.RANDOM)}
    for name, variants in shown.items():
        for language in LANGUAGES:
            values = [exact(place, language, one) for one in variants for place in range(COUNT)]
            assert lines.loc[name, language] == pytest.approx(np.mean(values))
        assert lines.loc[name, "all"] == pytest.approx(lines.loc[name, list(LANGUAGES)].astype(float).mean())


def test_without_choices_nothing_is_said_of_them() -> None:
    study = study_of(EXAMPLES, Context(LANGUAGES, Options(draws=2, seed=5, controls=KINDS, replicates=50)))
    table = study.folds["accuracy"].table()
    for column in ("choice_percent", "choice_low", "no_label_percent", "no_label_high"):
        assert table[column].isna().all()
    assert set(study.folds["accuracy"].tables()["accuracy_by_language"]["measure"]) == {"exact", "matches"}
    assert {effect.metric for effect in effects_of(study).effects()} == {Metric.EXACT, Metric.LOG_PROBABILITY}
    assert len(effects_of(study).figure().axes) == 2


def test_the_interval_of_all_languages_respects_clusters(study: Study) -> None:
    accuracy = study.folds["accuracy"]
    assert isinstance(accuracy, Accuracy)
    panel = accuracy.figure().axes[0]
    intervals = panel.collections[-1].get_segments()  # drawn last: all languages, then each
    rows = [
        (exact(place, language, "w/o all-shared"), CLUSTERS[place])
        for place, language in product(range(COUNT), LANGUAGES)
    ]
    low, high = bootstrap(*zip(*rows, strict=True))
    assert intervals[0][:, 0].tolist() == pytest.approx([low, high])
    right = sum(exact(place, "en", "w/o all-shared") == 100 for place in range(COUNT))
    assert intervals[1][:, 0].tolist() == pytest.approx([100 * end for end in wilson(right, COUNT)])


def test_effects_pair_rows_and_test_clusters(study: Study) -> None:
    effects = effects_of(study).effects()
    references = {drawn.value: drawn for drawn in KINDS}
    assert [(one.against, one.metric, one.type) for one in effects] == [
        (against, metric, kind.label) for against in (*references, BASELINE) for metric in Metric for kind in ABLATED
    ]
    for effect, kind in zip(effects, list(ABLATED) * 9, strict=True):
        value = VALUES[effect.metric]
        controls = (BASELINE,) if effect.against == BASELINE else ABLATIONS.controls(kind, references[effect.against])
        differences, clusters = paired(value, ABLATIONS.without(kind), controls, LANGUAGES)
        assert (effect.rows, effect.clusters, effect.draws) == (len(differences), 5, len(controls))
        assert effect.difference == pytest.approx(np.mean(differences))
        assert (effect.low, effect.high) == pytest.approx(bootstrap(differences, clusters))
        assert effect.p == pytest.approx(p_value(differences, clusters))
        means = {
            name: np.nanmean([value(place, one, name) for place in range(COUNT) for one in LANGUAGES])
            for name in (BASELINE, ABLATIONS.without(kind), *controls)
        }
        assert effect.baseline == pytest.approx(means[BASELINE])
        assert effect.without == pytest.approx(means[ABLATIONS.without(kind)])
        draws = [means[name] for name in controls]
        found = effect.reference, effect.reference_lowest, effect.reference_highest
        assert found == pytest.approx((np.mean(draws), min(draws), max(draws)))
    assert [effect.p_holm for effect in effects] == holm([effect.p for effect in effects])
    lost = {one.type: one.difference for one in effects_of(study).against_control() if one.metric is Metric.EXACT}
    assert lost["partial-shared"] < -30  # what the random answers were made with: 0.2 against 0.7


def test_effects_count_the_active_neurons_that_were_deactivated(study: Study) -> None:
    for kind, effect in zip(ABLATED, effects_of(study).effects(), strict=False):
        rows = [row(place, language, ABLATIONS.without(kind)) for place in range(COUNT) for language in LANGUAGES]
        assert effect.active_neurons == pytest.approx(np.mean([one.selected_active_neurons for one in rows]))


def test_effects_follow_what_is_added_after_they_were_asked_for() -> None:
    study = study_of(EXAMPLES[:12])
    before = effects_of(study).effects()
    study.add(EXAMPLES[12].result)
    assert effects_of(study).effects() == effects_of(study_of(EXAMPLES[:13])).effects() != before


def test_one_cluster_has_no_intervals_and_still_figures() -> None:
    study = study_of(EXAMPLES[:3])
    for effect in effects_of(study).effects():
        assert math.isnan(effect.low)
        assert math.isnan(effect.high)
        assert (effect.p, effect.clusters) == (1, 1)
    for analysis in study.analyses():
        assert analysis.figure().axes


def test_a_broken_prediction_is_an_error_and_no_wrong_answer() -> None:
    message = result_pb2.GroupResult()
    message.CopyFrom(EXAMPLES[0].result.message)
    broken = next(variant for variant in message.variants if variant.name == "w/o specific")
    broken.predictions[0].Clear()
    broken.predictions[0].error = "the logits are not finite"
    study = study_of(EXAMPLES[1:])
    study.add(GroupResult(message))
    found = study.folds["accuracy"].table().set_index(["variant", "language"]).loc[("w/o specific", "en")]
    assert (found["rows"], found["errors"]) == (COUNT, 1)
    right = sum(exact(place, "en", "w/o specific") == 100 for place in range(1, COUNT))
    assert found["exact_percent"] == pytest.approx(100 * right / (COUNT - 1))
    log_probabilities = [log_probability(place, "en", "w/o specific") for place in range(1, COUNT)]
    assert found["mean_gold_log_probability"] == pytest.approx(np.mean(log_probabilities))
    every = COUNT * len(LANGUAGES)
    rows = {one.type: one.rows for one in effects_of(study).against_control() if one.metric is Metric.EXACT}
    assert rows == {"all-shared": every, "specific": every - 1, "partial-shared": every}


def test_conversions_stand_beside_their_twins(study: Study) -> None:
    table = study.folds["conversions"].table().set_index(["variant", "language"])
    assert len(table) == 7 * len(LANGUAGES)
    for name, language in product(("specific", "partial-shared", "both"), LANGUAGES):
        for variant, condition in ((f"convert {name}", "converted"), (f"zero inactive {name}", "zeroed")):
            found = table.loc[(variant, language)]
            assert (found["condition"], found["converted"]) == (condition, name)
            assert found["exact_percent"] == pytest.approx(
                np.mean([exact(place, language, variant) for place in range(COUNT)])
            )


def test_conversions_are_compared_with_baseline_and_twin_in_each_language(study: Study) -> None:
    table = study.folds["conversions"].tables()["conversion_effects"]
    assert len(table) == 3 * 3 * 2 * (1 + len(LANGUAGES))
    for found in table.itertuples(index=False):
        reference = BASELINE if found.against == "baseline" else f"zero inactive {found.converted}"
        languages = LANGUAGES if found.language == "all" else (found.language,)
        differences, clusters = paired(
            VALUES[Metric(found.metric)], f"convert {found.converted}", (reference,), languages
        )
        assert (found.rows, found.clusters) == (len(differences), 5)
        assert found.difference == pytest.approx(np.mean(differences), abs=1e-9)
        assert found.difference == pytest.approx(found.converted_mean - found.reference, abs=1e-9)
        assert (found.low, found.high) == pytest.approx(bootstrap(differences, clusters), abs=1e-9)
        assert found.p == pytest.approx(p_value(differences, clusters))
    for family in (table[table["language"] == "all"], table[table["language"] != "all"]):
        assert list(family["p_holm"]) == holm(list(family["p"]))


def test_tests_of_all_languages_are_corrected_apart_from_those_of_single_ones() -> None:
    study = Study(CONTEXT, ["conversions"])
    for example in random_examples(1, LANGUAGES, 42, ABLATIONS, layers=1, neurons=3):
        message = example.result.message
        for variant in message.variants:
            if variant.name == "convert both":
                for prediction in variant.predictions:
                    prediction.gold_log_probability -= 20
        study.add(example.result)
    table = study.folds["conversions"].tables()["conversion_effects"]
    for family in (table[table["language"] == "all"], table[table["language"] != "all"]):
        assert list(family["p_holm"]) == holm(list(family["p"]))
        assert 0 < family["p_holm"].min() < 0.05
    assert not np.isclose(table["p_holm"], holm(list(table["p"]))).all()


@pytest.mark.parametrize(("name", "table"), [("conversions", "conversion_effects"), ("effects", "effects")])
def test_variants_that_differ_by_rounding_alone_do_not_differ(name: str, table: str) -> None:
    """A flip of a sign would be tied with what was seen, or not, by the last digits."""
    rng = np.random.default_rng(0)
    study = Study(CONTEXT, [name])
    for example in random_examples(1, LANGUAGES, 42, ABLATIONS, layers=1, neurons=3):
        message = example.result.message
        baseline, *others = message.variants
        assert baseline.name == "baseline"
        for variant in others:
            for prediction, same in zip(variant.predictions, baseline.predictions, strict=True):
                prediction.CopyFrom(same)
                prediction.gold_log_probability += rng.choice([-1e-11, 0.0, 1e-11, 3e-7])
        study.add(GroupResult(message))
    tests = study.folds[name].tables()[table]
    tests = tests[tests["metric"] == "gold_log_probability"]
    assert len(tests)
    assert tests["difference"].tolist() == [0.0] * len(tests)
    assert tests["p"].tolist() == tests["p_holm"].tolist() == [1.0] * len(tests)


def test_a_small_difference_that_is_no_rounding_counts() -> None:
    study = Study(CONTEXT, ["conversions"])
    for example in random_examples(1, LANGUAGES, 42, ABLATIONS, layers=1, neurons=3):
        message = example.result.message
        baseline, *others = message.variants
        for variant in others:
            for prediction, same in zip(variant.predictions, baseline.predictions, strict=True):
                prediction.CopyFrom(same)
                if variant.name.startswith("convert"):
                    prediction.gold_log_probability -= 1e-4
        study.add(GroupResult(message))
    tests = study.folds["conversions"].tables()["conversion_effects"]
    tests = tests[(tests["metric"] == "gold_log_probability") & (tests["language"] == "all")]
    assert tests["difference"].to_numpy() == pytest.approx(-1e-4, rel=0.1)  # in float32
    assert tests["p"].max() < 0.001


def test_the_default_conversion_is_said_to_equal_its_twin_only_at_threshold_0() -> None:
    contexts = {
        "conversion and twin are equivalent": Context(LANGUAGES),
        "above the threshold 0.5": Context(LANGUAGES, Options(thresholds=(0.5,))),
        "becomes 2.5": Context(LANGUAGES, Options(convert_to=2.5)),
        "becomes the mean over the languages": Context(LANGUAGES, Options(convert_to=MEAN)),
    }
    for expected, context in contexts.items():
        fold = ConversionAccuracy(context)
        fold.add(EXAMPLES[0].result)
        words = fold.definition() + fold.caption()
        assert expected in words
        assert ("conversion and twin are equivalent" in words) == (expected == "conversion and twin are equivalent")


def test_conversions_and_twins_differ_in_the_value_alone() -> None:
    variants = Conversions(2.5, component="encoder").variants()
    for name in ("specific", "partial-shared", "both"):
        converted, zeroed = variants[f"convert {name}"], variants[f"zero inactive {name}"]
        assert converted.selection == zeroed.selection
        assert (converted.action, zeroed.action) == (Convert(2.5), Convert(0.0))
        assert converted.component == zeroed.component == "encoder"


def test_answers_that_share_their_first_token_are_counted(study: Study) -> None:
    table = study.folds["answers"].table().set_index("language")
    for place, language in enumerate(LANGUAGES):
        gold = {tuple(example.result.rows[place].gold_token_ids) for example in EXAMPLES}
        shared = [one for one in gold if any(one[0] == other[0] for other in gold - {one})]
        apart = sum(not example.result.rows[place].gold_is_joint for example in EXAMPLES)
        found = table.loc[language]
        assert (found["rows"], found["answers"], found["sharing_first_token"]) == (COUNT, len(gold), len(shared))
        assert found["tokenized_apart"] == apart


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(COUNT)), st.lists(st.integers(0, COUNT), max_size=3))
def test_any_split_in_any_order_gives_the_same_tables(order: list[int], cuts: list[int]) -> None:
    merged = study_of([])
    for start, end in pairwise([0, *sorted(cuts), COUNT]):
        merged.merge(study_of(EXAMPLES[place] for place in order[start:end]))
    whole = study_of(EXAMPLES)
    for name in NAMES:
        for title, table in merged.folds[name].tables().items():
            expected = whole.folds[name].tables()[title]
            pd.testing.assert_frame_equal(table, expected, rtol=1e-9, atol=1e-9)


def test_controls_are_drawn_as_their_kind_says() -> None:
    variants = ABLATIONS.variants()
    assert len(variants) == 3 + 3 * 2 * 2
    for kind, drawn in product(ABLATED, KINDS):
        for draw, name in enumerate(ABLATIONS.controls(kind, drawn)):
            chosen = variants[name].selection
            assert isinstance(chosen, Control)
            assert (chosen.kind, chosen.draw, chosen.seed) == (drawn, draw, 5)


def test_ablations_of_one_component_act_there_alone() -> None:
    everywhere, alone = (Ablations(draws=2, component=one).variants() for one in (None, "encoder"))
    assert list(everywhere) == list(alone)
    assert {one.component for one in everywhere.values()} == {None}
    assert {one.component for one in alone.values()} == {"encoder"}


def test_ablations_without_a_control_are_refused() -> None:
    with pytest.raises(AnalysisError, match="0 draws of 1 controls give nothing to compare with"):
        Options(draws=0)
    with pytest.raises(AnalysisError, match="3 draws of 0 controls give nothing to compare with"):
        Options(controls=())
