from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroglot.analyses.base.ablations import Ablations
from neuroglot.analyses.base.mismatched_groups import Mismatched, Mismatching, rotation
from neuroglot.errors import NotInResultError
from neuroglot.request.groups import Group
from neuroglot.results.results import GroupResult
from neuroglot.v1 import result_pb2
from tests.client.random_results import random_examples

LANGUAGES = ("en", "ru", "th", "zh")
RESULTS = [example.result for example in random_examples(0, LANGUAGES, 14, Ablations(draws=1), 2, 11)]


def groups(clusters: Sequence[str]) -> list[Group]:
    return [Group({"en": "x"}, id=str(number), cluster=cluster) for number, cluster in enumerate(clusters)]


EXAMPLES = [Group({"en": "x"}, id=result.group_id, cluster=result.group_id.partition("/")[0]) for result in RESULTS]


@given(st.lists(st.sampled_from("abcdef"), max_size=40), st.integers(2, 5))
def test_a_mismatched_group_has_a_row_of_another_cluster_in_every_language(clusters: list[str], count: int) -> None:
    languages = LANGUAGES[:count] if count < 5 else (*LANGUAGES, "de")
    found = rotation(groups(clusters), languages)
    rows = defaultdict(list)
    for (group, language), owner in found.owners.items():
        rows[owner].append((group, language))
    for of_one in rows.values():
        assert sorted(language for _, language in of_one) == sorted(languages)
        assert len({clusters[int(group)] for group, _ in of_one}) == count


@pytest.mark.parametrize("clusters", [["a", "b", "c", "d", "e"], ["a", "b", "c", "d"] * 6, [""] * 9])
def test_every_row_is_used_where_clusters_are_even(clusters: list[str]) -> None:
    found = rotation(groups(clusters), LANGUAGES)
    assert len(found.owners) == len(clusters) * 4
    assert set(Counter(found.owners.values()).values()) == {4}


@pytest.mark.parametrize("clusters", [[], ["a"], ["a", "b", "c"], ["a"] * 20])
def test_too_few_clusters_give_no_mismatched_group(clusters: list[str]) -> None:
    assert rotation(groups(clusters), LANGUAGES).owners == {}


def complete(order: Sequence[int], cuts: Sequence[int]) -> tuple[dict[str, Mismatched], int]:
    """All mismatched groups of the results, read in parts that are merged; and how many were given twice."""
    rotated = rotation(EXAMPLES, LANGUAGES)
    whole, given_out = Mismatching(rotated), []
    for start, end in pairwise([0, *sorted(cuts), len(order)]):
        part = Mismatching(rotated)
        for place in order[start:end]:
            given_out += part.add(RESULTS[place])
        given_out += whole.merge(part)
    assert not whole.incomplete
    found = {group.group_id: group for group in given_out}
    return found, len(given_out) - len(found)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(14)), st.lists(st.integers(0, 14), max_size=3))
def test_any_order_and_any_parts_give_the_same_groups(order: list[int], cuts: list[int]) -> None:
    found, twice = complete(order, cuts)
    expected, _ = complete(range(14), [])
    assert not twice
    assert len(found) == 14
    assert {name: group.rows for name, group in found.items()} == {name: group.rows for name, group in expected.items()}


def test_a_group_that_failed_leaves_those_that_need_it_out() -> None:
    mismatching = Mismatching(rotation(EXAMPLES, LANGUAGES))
    shuffled = random.Random(0).sample(RESULTS[1:], 13)
    found = [group for result in shuffled for group in mismatching.add(result)]
    assert len(found) == 14 - 4
    assert len(mismatching.incomplete) == 4


def test_rows_are_taken_by_their_language_whatever_their_order_in_the_result() -> None:
    message = result_pb2.GroupResult()
    message.CopyFrom(RESULTS[0].message)
    order = [2, 0, 3, 1]
    del message.rows[:]
    message.rows.extend(RESULTS[0].message.rows[place] for place in order)
    for threshold in message.components[0].thresholds:
        for bitmaps in (threshold.active_bitmaps, threshold.contribution.top_bitmaps):
            bitmaps[:] = [bitmaps[place] for place in order]
    mismatching = [Mismatching(rotation(EXAMPLES, LANGUAGES)) for _ in range(2)]
    for one, first in zip(mismatching, (RESULTS[0], GroupResult(message)), strict=True):
        list(one.add(first))
    assert mismatching[0].incomplete == mismatching[1].incomplete


def test_answers_without_active_neurons_are_refused() -> None:
    message = result_pb2.GroupResult()
    message.CopyFrom(RESULTS[0].message)
    for threshold in message.components[0].thresholds:
        del threshold.active_bitmaps[:]
    with pytest.raises(NotInResultError, match="analyze with active=True"):
        list(Mismatching(rotation(EXAMPLES, LANGUAGES)).add(GroupResult(message)))
