"""How results look in a notebook, as tables and in another process."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

import neuroglot as ng

GROUP = ng.Group(
    {"en": "Hello", "de": "Hallo", "es": [5, 6]},
    answers={"en": "a", "de": ["b", "c"]},
    id="g",
    choices={"en": ["yes", "no"]},
)
SET = ng.NeuronSet.from_indices([(0, 1), (2, 4)], component="decoder", layers=3, neurons=96)
VARIANTS = {
    "without": ng.deactivate("specific", layers=[1]),
    "several": [ng.override(SET, [1, 2]), ng.scale(ng.control(ng.union(SET, ng.top_contribution())), 0.5)],
}


@pytest.fixture(scope="module")
def model(bloom_bundle: Path) -> Iterator[ng.Model]:
    with ng.connect(bloom_bundle) as client:
        yield client.model()


@pytest.fixture(scope="module")
def result(model: ng.Model) -> ng.GroupResult:
    return model.analyze(
        GROUP,
        variants=VARIANTS,
        thresholds=[0, 0.5],
        active=True,
        contribution=ng.ContributionOptions(leading=2),
        effective_score=ng.EffectiveScoreOptions(leading=3),
        dead=True,
    )


def same(ours: object, theirs: object) -> bool:
    """Whether two results hold the same: field by field, arrays by value."""
    if isinstance(ours, np.ndarray):
        return np.array_equal(ours, theirs, equal_nan=True)
    if isinstance(ours, tuple):
        return all(map(same, ours, theirs))
    if isinstance(ours, ng.GroupResult | ng.NeuronSet | ng.RowPrediction | str | int | float | None):
        return ours == theirs
    fields = vars(ours)
    return (
        type(ours) is type(theirs)
        and fields.keys() == vars(theirs).keys()
        and all(same(fields[name], vars(theirs)[name]) for name in fields if not name.startswith("_"))
    )


@pytest.mark.parametrize("round_trip", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy, copy.copy])
def test_results_are_pickled_and_copied(model: ng.Model, result: ng.GroupResult, round_trip) -> None:
    _ = result.predictions  # what a result keeps of what was read is not in the way
    types = result.types
    captured = next(model.capture("Hello", layers=[1]))
    things = [result, types, types.contribution, types.contribution.leading, types.effective_score, captured]
    for one in [*things, result.components["decoder"], result.predictions["baseline"]["en"], types[ng.SPECIFIC]]:
        assert same(one, round_trip(one)), one
    again = round_trip(result)
    assert again == result
    assert again.to_bytes() == result.to_bytes()
    assert again.predictions == result.predictions
    assert np.array_equal(round_trip(types).codes(), types.codes())
    assert round_trip(types).top_contributors("de") == types.top_contributors("de")
    with pytest.raises(ng.NotInResultError, match="no variant 'x'"):
        round_trip(result.predictions)["x"]
    for one in (GROUP, SET, VARIANTS, ng.Uploaded("u", SET), model.tokenize(["ab"]), ng.ContributionOptions(0.5)):
        assert round_trip(one) == one
    failure = round_trip(ng.GroupFailure("g", ng.OverloadedError("RESOURCE_EXHAUSTED", "full", (), "id", 0.5)))
    assert (failure.group_id, str(failure.error)) == ("g", "full\n  (request id)")


def test_results_go_to_another_process(result: ng.GroupResult) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(ng.GroupResult.to_bytes, result).result(60) == result.to_bytes()


def test_reprs_have_the_facts_and_are_short(model: ng.Model, result: ng.GroupResult) -> None:
    types, baseline = result.types, result.predictions["baseline"]
    counts = ", ".join(f"{n} {one.label}" for n, one in zip(types.counts().sum(axis=0), ng.NeuronType, strict=True))
    assert repr(types) == f"<Types of decoder, 3 x 96, threshold 0, en, de, es: {counts}>"
    name = model.name
    assert repr(result) == (
        f"<GroupResult 'g' by {name}: en, de, es; decoder 3 x 96; variants baseline, without, several>"
    )
    assert repr(result.components["decoder"]) == "<ComponentResult decoder: 3 x 96, thresholds 0, 0.5>"
    assert repr(types.contribution) == "<Contribution: top 5 neurons in each of 3 layers of en, de, es>"
    assert repr(types.contribution.leading) == "<Leading: 2 neurons in each of 3 layers of en, de, es>"
    assert repr(types.effective_score) == "<EffectiveScores: by type in each of 3 layers of en, de, es>"
    english = baseline["en"]
    assert f"exact {english.exact}, matches {english.matches}, gold {english.gold_log_probability:.3f} nats" in repr(
        english
    )
    assert repr(english).endswith(f"choice {english.choice} of 2>")
    assert repr(next(model.capture("Hello", layers=[1], positions=[-1]))) == (
        "<CapturedLayer 1: 1 positions x 96 neurons, float32>"
    )
    assert repr(model).startswith(f"<Model {name!r} at ")
    assert repr(model).endswith(f"{model.info.source}, decoder 3 x 96, float32>")
    assert repr(ng.scale(SET, [1, 2]).action) == "Scale(one of 2 values for each neuron)"
    assert repr(ng.add(SET, 1).action) == "Add(1.0)"
    lone = model.analyze(ng.Group({"en": "Hello"})).types
    assert repr(lone) == "<Types of decoder, 3 x 96, threshold 0, en: one row has none>"
    full = ~ng.NeuronSet.from_indices([], component="decoder", layers=48, neurons=20_000)
    for one in (result, types, english, SET, ng.override(full, np.zeros(len(full)))):
        assert len(repr(one)) < 400


def test_tables(result: ng.GroupResult) -> None:
    types = result.types
    table = types.to_frame()
    assert list(table.columns) == ["layer", "type", "count", "share"]
    assert np.array_equal(table.pivot(index="layer", columns="type", values="count")["specific"], types.counts()[:, 1])
    assert table["count"].sum() == 3 * 96

    table = types.contribution.to_frame().set_index(["label", "layer", "type"])
    assert table.loc[("de", 2, "all-shared"), "sum"] == types.contribution.sums[1, 2, 3]
    assert table["top_count"].sum() == types.contribution.top_counts.sum()

    table = types.effective_score.to_frame().set_index(["label", "layer", "type"])
    assert table.loc[("en", 1, "specific"), "maximum"] == types.effective_score.maxima[0, 1, 1]
    assert len(table) == 3 * 3 * 4

    leading = types.contribution.leading
    row = leading.to_frame().set_index(["label", "layer", "rank"]).loc[("de", 2, 1)]
    assert (row["neuron"], row["value"]) == (leading.neurons[1, 2, 1], leading.values[1, 2, 1])
    assert row["type"] == ng.NeuronType(leading.codes[1, 2, 1]).label

    table = result.to_frame()
    assert list(table["variant"].unique()) == ["baseline", "without", "several"]
    row = table.set_index(["group_id", "variant", "label"]).loc[("g", "without", "de")]
    prediction = result.predictions["without"]["de"]
    assert (row["exact"], row["text"], row["token_ids"]) == (prediction.exact, prediction.text, prediction.token_ids)
    assert SET.to_frame().to_numpy().tolist() == [[0, 1], [2, 4]]


def test_a_table_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # Python's own way to say: not importable
    with pytest.raises(ng.InstallationError, match=r"a table needs pandas .*: pip install 'neuroglot\[analysis\]'"):
        SET.to_frame()
