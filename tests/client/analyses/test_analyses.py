"""What all analyses have in common: what they refuse, and what does not matter to them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest

from neuroglot.analyses.base.ablations import Ablations
from neuroglot.analyses.base.context import Context
from neuroglot.analyses.base.fold import Analysis
from neuroglot.analyses.study import Study
from neuroglot.errors import AnalysisError, NotInResultError
from neuroglot.request.groups import Group
from neuroglot.results.results import GroupResult
from neuroglot.runs.settings import Options
from neuroglot.v1 import result_pb2
from tests.client.random_results import Example, random_examples, two_components

LANGUAGES = ("en", "ru", "th", "zh")
ABLATIONS = Ablations(draws=2, seed=5)
THRESHOLDS = (0.0, 0.4)
LAYERS, NEURONS, COUNT = 3, 21, 14


def examples_of(languages: tuple[str, ...] = LANGUAGES, count: int = COUNT, layers: int = LAYERS) -> list[Example]:
    return random_examples(0, languages, count, ABLATIONS, layers, NEURONS, thresholds=THRESHOLDS)


EXAMPLES = examples_of()
IDS = [example.result.group_id for example in EXAMPLES]
GROUPS = [Group({"en": "x"}, id=one, cluster=one.partition("/")[0]) for one in IDS]


def study_of(examples: Iterable[Example], languages: tuple[str, ...] = LANGUAGES) -> Study:
    study = Study(Context(languages, Options(draws=2, seed=5, thresholds=THRESHOLDS, replicates=50)).about(GROUPS))
    for example in examples:
        study.add(example.result)
    return study


def changed(example: Example, group_id: str) -> result_pb2.GroupResult:
    message = result_pb2.GroupResult()
    message.CopyFrom(example.result.message)
    message.group_id = group_id
    return message


def shuffled(result: GroupResult, order: list[int]) -> GroupResult:
    """The same answer, had its rows been sent in another order."""
    message = result_pb2.GroupResult()
    message.CopyFrom(result.message)
    by_row = [message.rows, *(variant.predictions for variant in message.variants)]
    for threshold in message.components[0].thresholds:
        by_row += [threshold.active_bitmaps, threshold.dead_bitmaps, threshold.contribution.top_bitmaps]
        for counts in (threshold.active_counts, threshold.dead_counts):
            counts[:] = np.array(counts).reshape(LAYERS, -1)[:, order].ravel().tolist()
        scores = threshold.effective_score
        for values in (
            threshold.contribution.top_counts,
            threshold.contribution.sums,
            scores.maxima,
            scores.minima,
            scores.sums,
        ):
            if values:
                values[:] = np.array(values).reshape(len(order), -1)[order].ravel().tolist()
    for rows in by_row:
        if rows:
            reordered = [rows[index] for index in order]
            del rows[:]
            rows.extend(reordered)
    return GroupResult(message)


def test_the_order_of_a_results_rows_does_not_matter() -> None:
    study, again = study_of(EXAMPLES), study_of([])
    for example in EXAMPLES:
        again.add(shuffled(example.result, [2, 0, 3, 1]))
    for name, fold in study.folds.items():
        for title, table in fold.tables().items():
            pd.testing.assert_frame_equal(again.folds[name].tables()[title], table, rtol=1e-9, atol=1e-9)


def test_tables_have_names_of_their_own() -> None:
    study = study_of(EXAMPLES[:3])
    names = [title for fold in study.folds.values() for title in fold.tables()]
    assert len(names) == len(set(names))
    assert all(name in fold.tables() and fold.title and fold.definition() for name, fold in study.folds.items())


def test_mixed_sets_of_languages_are_refused() -> None:
    study = study_of(EXAMPLES[:2])
    (fewer,) = examples_of(LANGUAGES[:3], 1)
    with pytest.raises(AnalysisError, match=r"group 'S0/0' has the languages en, ru, th; expected en, ru"):
        study.add(fewer.result)
    with pytest.raises(AnalysisError, match=r"cannot merge .* expected en, ru, th, zh"):
        study.merge(study_of([], LANGUAGES[:3]))


def test_a_group_counts_once() -> None:
    study = study_of(EXAMPLES[:3])
    with pytest.raises(AnalysisError, match=r"group 'S0/2' was added before"):
        study.add(EXAMPLES[2].result)
    with pytest.raises(AnalysisError, match=r"group 'S0/1' was added before"):
        study.merge(study_of(EXAMPLES[1:2]))
    assert study.groups == 3


def test_results_of_another_model_are_refused() -> None:
    study = study_of(EXAMPLES[:2])
    *_, other = examples_of(count=4, layers=1)
    with pytest.raises(AnalysisError, match="results of different models"):
        study.add(other.result)


def test_a_result_without_a_variant_is_refused() -> None:
    message = changed(EXAMPLES[0], "other")
    variants = [variant for variant in message.variants if variant.name != "w/o specific"]
    del message.variants[:]
    message.variants.extend(variants)
    with pytest.raises(NotInResultError, match="no variant 'w/o specific'"):
        study_of([]).add(GroupResult(message))


def test_nothing_has_no_tables_and_no_figures() -> None:
    study = study_of([])
    for fold in study.folds.values():
        with pytest.raises(AnalysisError, match="has no results: add a group result first"):
            fold.tables()
        if isinstance(fold, Analysis):
            with pytest.raises(AnalysisError, match="has no results: add a group result first"):
                fold.figure()


def test_a_model_with_an_encoder_has_every_figure() -> None:
    study = study_of([])
    encoders = random_examples(9, LANGUAGES, COUNT, ABLATIONS, 2, 20, "encoder", THRESHOLDS)
    for decoder, encoder in zip(EXAMPLES, encoders, strict=True):
        study.add(two_components(decoder, encoder))
    for analysis in study.analyses():
        assert analysis.figure().axes
        assert analysis.caption()
