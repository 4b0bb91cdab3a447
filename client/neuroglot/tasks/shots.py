"""In-context examples: solved groups before every prompt, the same ones in every language."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, zip_longest

from neuroglot import arguments
from neuroglot.errors import AnalysisError
from neuroglot.request.groups import Group
from neuroglot.tasks.task import Groups

_BETWEEN = "\n"  # ends an example; generated answers stop at it, too


def in_context(groups: Callable[[Sequence[str]], Iterator[Group]], shots: int, seed: int) -> Groups:
    """Add in-context examples to the groups of a task.

    The examples are drawn from all groups, so that a limit does not change them.

    Args:
        groups: returns all groups of the task, given languages.
        shots: number of examples; 0 for none.
        seed: seed of their choice.

    Raises:
        AnalysisError: `shots` is negative.
    """
    arguments.count("shots", shots, 0, AnalysisError)
    arguments.integer("seed", seed, AnalysisError)

    def make(languages: Sequence[str], limit: int | None) -> Iterator[Group]:
        return islice(with_shots(list(groups(languages)), shots, seed) if shots else groups(languages), limit)

    return make


def with_shots(groups: Sequence[Group], shots: int, seed: int = 0) -> Iterator[Group]:
    """Prepend solved examples to every prompt, drawn from the groups themselves.

    All groups get the same examples in the same order, so that their prompts share a long prefix that the server
    caches. An example of a group's own cluster is replaced with the next one. If the groups have choices, the labels of
    the examples alternate.

    Args:
        groups: all groups of a task, with answers, in the same languages.
        shots: number of examples, at least 1.
        seed: seed of the draw, which otherwise depends on the ids of the groups only.

    Yields:
        The groups in order, with unchanged ids, answers and clusters.

    Raises:
        AnalysisError: a group has no answers or has prompts of token ids, or there are fewer than `shots + 1` clusters.
    """
    if unanswered := [group.id for group in groups if set(group.answers) != set(group.prompts)]:
        raise AnalysisError(f"group {unanswered[0]!r} has no answers, and in-context examples are solved: give answers")
    # One more than `shots`, because at most one of them is of a group's own cluster.
    drawn = list(islice(_drawn(groups, seed), shots + 1))
    if groups and len(drawn) <= shots:
        raise AnalysisError(
            f"{shots} in-context examples of other clusters than the prompt's own need {shots + 1} clusters, and "
            f"there are {len(drawn)}: ask for fewer examples"
        )
    solved = [(_cluster(group), _solved(group)) for group in drawn]
    for group in groups:
        others = [texts for cluster, texts in solved if cluster != _cluster(group)][:shots]
        prompts = {
            language: "".join(text[language] + _BETWEEN for text in others) + prompt
            for language, prompt in _texts(group).items()
        }
        yield replace(group, prompts=prompts)


def _drawn(groups: Sequence[Group], seed: int) -> Iterator[Group]:
    """Yield one group of each cluster, ordered by hash, with alternating labels."""
    by_label: dict[int, list[Group]] = defaultdict(list)
    taken: set[str] = set()
    for group in sorted(groups, key=lambda one: _draw(seed, one.id)):
        if _cluster(group) not in taken:
            taken.add(_cluster(group))
            by_label[_label(group)].append(group)
    turns = zip_longest(*(by_label[label] for label in sorted(by_label)))
    return (group for group in chain.from_iterable(turns) if group is not None)


def _cluster(group: Group) -> str:
    return group.cluster or group.id


def _label(group: Group) -> int:
    """Return the index of the answer in the choices; 0 for groups without choices."""
    language = group.languages[0]
    choices = group.choices.get(language)
    return choices.index(group.answers[language][0]) if choices else 0


def _solved(group: Group) -> Mapping[str, str]:
    return {
        language: prompt + group.separators[language] + group.answers[language][0]
        for language, prompt in _texts(group).items()
    }


def _texts(group: Group) -> Mapping[str, str]:
    """Return the prompts of a group, which must be text."""
    texts = {language: prompt for language, prompt in group.prompts.items() if isinstance(prompt, str)}
    if len(texts) < len(group.prompts):
        raise AnalysisError(
            f"group {group.id!r} has prompts of token ids, and in-context examples are text: give text, or no shots"
        )
    return texts


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"neuroglot shots {seed}/{name}".encode()).digest()
