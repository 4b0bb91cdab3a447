"""One group of a run, to see what was asked and answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neuroglot.results.results import BASELINE
from neuroglot.runs.run import Run

_PROMPT_CHARACTERS = 400


@dataclass(frozen=True)
class Example:
    """The first group that is answered.

    Attributes:
        columns: what is shown of each language.
        rows: of each language its name and what is shown of it.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, run: Run, variant: str = "") -> Example:
        """What was asked in a group, and what the model said.

        Args:
            run: with at least one answer.
            variant: what to show beside the baseline; empty for nothing.
        """
        done = run.done()
        group = next(group for group in run.examples() if group.id in done)
        result = next(result for result in run.results() if result.group_id == group.id)
        said = result.predictions if result.message.variants else {}
        columns: dict[str, Mapping[str, str]] = {"prompt": {name: _end(text) for name, text in group.prompts.items()}}
        if group.answers:
            columns["gold answer"] = {language: answers[0] for language, answers in group.answers.items()}
        for title, name in (("baseline says", BASELINE), (variant, variant)):
            if name in said:
                columns[title] = {language: row.error or row.text for language, row in said[name].items()}
        rows = tuple(
            (language, tuple(column.get(language, "") for column in columns.values()))
            for language in run.settings.languages
        )
        return cls(tuple(columns), rows)


def _end(prompt: str | Sequence[int]) -> str:
    """A prompt, text or token ids, without its beginning where it is long."""
    text = prompt if isinstance(prompt, str) else f"tokens {' '.join(map(str, prompt))}"
    return text if len(text) <= _PROMPT_CHARACTERS else f"\N{HORIZONTAL ELLIPSIS}{text[-_PROMPT_CHARACTERS:]}"
