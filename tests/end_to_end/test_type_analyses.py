"""The analyses of types and activity, asked of a real server, against transformers and a plain reading of the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

import neuroglot as ng
from neuroglot.analyses.base.context import Context
from neuroglot.analyses.study import Study
from neuroglot.runs.settings import Options
from tests import definitions
from tests.checkpoints import RandomModel
from tests.server.reference import load, watched

LANGUAGES = ("en", "es", "fr", "th")
THRESHOLDS = (0.0, 0.3)
SUBJECTS = ("Peru", "Chad", "Laos", "Fiji", "Mali", "Togo")
PROMPTS = {"en": "The capital of {} is", "es": "La capital de {} es", "fr": "La capitale de {} est", "th": "{}คือ"}
GROUPS = [ng.Group({one: text.format(name) for one, text in PROMPTS.items()}, id=name) for name in SUBJECTS]
MISMATCHED = [[(place + step) % len(GROUPS) for step in range(4)] for place in range(len(GROUPS))]
MATCHED = [[place] * 4 for place in range(len(GROUPS))]
NAMES = (
    "types_by_layer",
    "active_by_language",
    "repeating",
    "dead",
    "top_contributors",
    "thresholds",
    "language_counts",
)


@dataclass(frozen=True)
class Asked:
    """A model that was asked: the tables, and what transformers says, by component.

    Attributes:
        tables: by name.
        activations: `[groups][languages]`, each `[layers, positions, neurons]`.
        lengths: |m_i| * ||v_i|| at the last position, `[groups][languages]`, each `[layers, neurons]`.
    """

    tables: dict[str, pd.DataFrame]
    activations: dict[str, list[list[NDArray[np.float32]]]]
    lengths: dict[str, list[list[NDArray[np.float32]]]]

    def table(self, name: str, component: str) -> pd.DataFrame:
        """One component's part of a table."""
        return self.tables[name][self.tables[name]["component"] == component]

    def last(self, component: str, group: Sequence[int]) -> NDArray[np.float32]:
        """`[languages, layers, neurons]` at the last position of a group whose languages have these examples."""
        return np.stack([self.activations[component][place][row][:, -1] for row, place in enumerate(group)])


@pytest.fixture(scope="module", params=["bloom", "mt0"])
def asked(request: pytest.FixtureRequest, random_model: Callable[[str], RandomModel]) -> Asked:
    random = random_model(request.param)
    study = Study(Context(LANGUAGES, Options(thresholds=THRESHOLDS, replicates=20)).about(GROUPS), NAMES)
    with ng.connect(random.bundle) as client:
        for result in client.model().analyze_many(GROUPS, **study.keywords()):
            assert isinstance(result, ng.GroupResult)
            study.add(result)
    transformers, tokenizer = (
        load(random.checkpoint, request.param),
        Tokenizer.from_file(str(random.bundle / "tokenizer.json")),
    )
    activations, lengths = ({name: [] for name in study.folds["dead"].geometry} for _ in range(2))
    for group in GROUPS:
        tokens = [tokenizer.encode(group.prompts[one]).ids for one in LANGUAGES]
        for component, of_component in activations.items():
            of_component.append([watched(transformers, one)[component] for one in tokens])
            norms = np.load(random.bundle / f"{component}.norms.npy")
            coefficients = [watched(transformers, one, "coefficient")[component][:, -1] for one in tokens]
            lengths[component].append([np.abs(one) * norms for one in coefficients])
    return Asked({name: fold.table() for name, fold in study.folds.items()}, activations, lengths)


def counts(activations: NDArray[np.float32], threshold: float = 0.0) -> NDArray[np.int64]:
    """Neurons of each type, `[layers, 4]`."""
    return np.array([[len(of_type) for of_type in sets.values()] for sets in definitions.types(activations, threshold)])


def mean_shares(table: pd.DataFrame, of_group: Callable[[Sequence[int]], NDArray[np.int64]], whole: int) -> None:
    """That the shares of a table are the means over groups and mismatched groups, in the order of its rows."""
    for prefix, groups in (("", MATCHED), ("mismatched_", MISMATCHED)):
        expected = np.mean([100 * of_group(group) / whole for group in groups], axis=0)
        np.testing.assert_allclose(table[f"{prefix}share_percent"], expected.ravel(), atol=1e-9)
    assert (table[["groups", "mismatched_groups"]] == len(GROUPS)).all(axis=None)


def test_types_by_layer_and_at_every_threshold(asked: Asked) -> None:
    for component, activations in asked.activations.items():
        neurons = activations[0][0].shape[-1]
        mean_shares(
            asked.table("types_by_layer", component),
            lambda group, name=component: counts(asked.last(name, group)),
            neurons,
        )
        for threshold in THRESHOLDS:
            table = asked.table("thresholds", component)
            at = table[table["threshold"] == threshold]
            mean_shares(at, lambda group, name=component, t=threshold: counts(asked.last(name, group), t), neurons)


def test_types_over_fewer_languages(asked: Asked) -> None:
    for component, activations in asked.activations.items():
        for size in (3, 4):

            def of_group(group: Sequence[int], name: str = component, size: int = size) -> NDArray[np.float64]:
                subsets = combinations(range(4), size)
                return np.mean([counts(asked.last(name, group)[list(one)]) for one in subsets], axis=0)

            table = asked.table("language_counts", component)
            mean_shares(table[table["languages"] == size], of_group, activations[0][0].shape[-1])


def test_top_contributors(asked: Asked) -> None:
    for component, lengths in asked.lengths.items():

        def of_group(group: Sequence[int], name: str = component) -> NDArray[np.int64]:
            codes = definitions.type_codes(asked.last(name, group))
            found = np.zeros((len(codes), 4, 4))
            for layer, row in np.ndindex(found.shape[:2]):
                values = asked.lengths[name][group[row]][row][layer]
                for neuron in definitions.top_neurons(values.tolist(), 5):
                    found[layer, row, codes[layer, neuron]] += 1
            return found

        top = len(definitions.top_neurons(lengths[0][0][0].tolist(), 5))
        mean_shares(asked.table("top_contributors", component), of_group, top)


def test_active_and_dead_neurons_by_language(asked: Asked) -> None:
    for component, activations in asked.activations.items():
        active = [[(one[:, -1] > 0).mean(axis=-1) for one in group] for group in activations]
        table = asked.table("active_by_language", component)
        np.testing.assert_allclose(table["active_percent"], 100 * np.mean(active, axis=0).T.ravel(), atol=1e-9)
        dead = np.array([[~(one > 0).any(axis=1) for one in group] for group in activations])
        table = asked.table("dead", component)
        for column, shares in (
            ("dead_percent", dead.mean(axis=(0, -1))),
            ("cumulative_percent", dead.all(axis=0).mean(axis=-1)),
        ):
            np.testing.assert_allclose(table[column], 100 * shares.T.ravel(), atol=1e-9)
        assert table["cumulative_neurons"].tolist() == dead.all(axis=0).sum(axis=-1).T.ravel().tolist()
        inactive = 1 - np.mean(active, axis=0)
        of_inactive = 100 * dead.mean(axis=(0, -1)) / inactive
        np.testing.assert_allclose(table["of_inactive_percent"], of_inactive.T.ravel(), atol=1e-9)


def test_neurons_that_keep_their_type(asked: Asked) -> None:
    for component in asked.activations:
        codes = np.array([definitions.type_codes(asked.last(component, group)) for group in MATCHED])
        kinds = np.stack([codes == code for code in range(4)], axis=-2)  # [groups, layers, types, neurons]
        table = asked.table("repeating", component)
        np.testing.assert_allclose(table["overlap_percent"], 100 * kinds.all(axis=0).mean(axis=-1).ravel(), atol=1e-9)
        np.testing.assert_allclose(table["average_percent"], 100 * kinds.mean(axis=(0, -1)).ravel(), atol=1e-9)
        always = kinds.all(axis=0).sum(axis=-1)
        assert table["overlap_neurons"].tolist() == always.ravel().tolist()
        average = kinds.sum(axis=-1).mean(axis=0)
        kept = np.divide(100 * always, average, out=np.full(average.shape, np.nan), where=average > 0)
        np.testing.assert_allclose(table["kept_percent"], kept.ravel(), atol=1e-9)
        assert always.sum() > 0
