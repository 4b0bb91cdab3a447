"""Validates a group and its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from neuroglot.definitions.normalisation import normalised
from neuroglot.errors import Violation
from neuroglot_server.core import Group, ModelDescription, Row, limits

_SEPARATORS = ("", " ")


def check_group(group: Group, model: ModelDescription) -> Iterator[Violation]:
    """Yield the violations of a group."""
    limit = model.limits.rows_per_group
    if not 1 <= len(group.rows) <= limit:
        yield Violation("group.rows", f"has {len(group.rows)} rows, expected 1 to {limit}: give one row per language")
        return
    first_of: dict[str, int] = {}
    for index, row in enumerate(group.rows):
        path = f"group.rows[{index}]"
        if not row.label:
            yield Violation(f"{path}.label", "is empty, expected a name, by convention the language: 'en'")
        elif (first := first_of.setdefault(row.label, index)) != index:
            yield Violation(
                f"{path}.label",
                f"is {row.label!r}, which is the label of rows[{first}] too: give every row its own",
            )
        yield from check_row(row, path, model)


def check_row(row: Row, path: str, model: ModelDescription) -> Iterator[Violation]:
    """Yield the violations of a row, except for those of its label."""
    if not row.prompt:
        field = "text" if isinstance(row.prompt, str) else "token_ids.ids"
        yield Violation(f"{path}.{field}", "is empty, expected a prompt of at least one token")
    elif isinstance(row.prompt, str):
        yield from _not_too_long(row.prompt, f"{path}.text", model)
    elif len(row.prompt) > (limit := model.limits.tokens_per_row):
        yield Violation(
            f"{path}.token_ids.ids",
            f"has {len(row.prompt)} tokens, and its answer some more, expected at most {limit} together: shorten it",
        )
    else:
        for index, token in enumerate(row.prompt):
            if not 0 <= token < model.vocabulary_size:
                yield Violation(
                    f"{path}.token_ids.ids[{index}]",
                    f"is {token}, expected a token of {model.name!r}: 0 to {model.vocabulary_size - 1}",
                )
    for index, answer in enumerate(row.answers):
        if not normalised(answer):
            yield _nothing_to_compare(f"{path}.answers[{index}]", answer)
    if row.choices:
        yield from _choices(row.choices, path)
    if row.distractor and not normalised(row.distractor):
        yield _nothing_to_compare(f"{path}.distractor", row.distractor)
    if row.separator is not None and row.separator not in _SEPARATORS:
        yield Violation(f"{path}.separator", f"is {row.separator!r}, expected ' ' or '', or none for the default")


def _not_too_long(prompt: str, path: str, model: ModelDescription) -> Iterator[Violation]:
    """Yield a violation if a prompt is larger than any allowed number of tokens; checked without tokenizing it."""
    limit = model.limits.text_bytes
    if 4 * len(prompt) > limit and (size := len(prompt.encode(errors="replace"))) > limit:
        yield Violation(
            path,
            f"has {size} bytes, expected at most {limit}, which is {limits.BYTES_A_TOKEN} for each of the "
            f"{model.limits.tokens_per_row} tokens that a row of {model.name!r} may have: shorten it",
        )


def _choices(choices: Sequence[str], path: str) -> Iterator[Violation]:
    if len(choices) > limits.CHOICES:
        yield Violation(f"{path}.choices", f"has {len(choices)} choices, expected at most {limits.CHOICES}")
        return
    first_of: dict[str, int] = {}
    for index, choice in enumerate(choices):
        if not normalised(choice):
            yield _nothing_to_compare(f"{path}.choices[{index}]", choice)
        elif (first := first_of.setdefault(choice, index)) != index:
            yield Violation(f"{path}.choices[{index}]", f"is {choice!r}, which is choices[{first}] too: give it once")


def _nothing_to_compare(path: str, text: str) -> Violation:
    return Violation(path, f"is {text!r}, which has nothing to compare with: give a word or leave it out")
