"""The three tasks about capitals, which need no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from neuroglot.request.groups import Group
from neuroglot.tasks import capital_prompts
from neuroglot.tasks.chosen import chosen_templates
from neuroglot.tasks.directions import Direction
from neuroglot.tasks.shots import in_context
from neuroglot.tasks.task import Task, numbers, shots_chosen

_DATA = (
    "Names of states and their capitals from Unicode CLDR by way of Babel (Unicode License v3); wordings in each "
    "language written for neuroglot and not reviewed by native speakers."
)
_HELD_OUT = f"{_DATA} {{}} are counterfactual pairs of a state and a city that training left out."


def capitals(*, templates: Sequence[int] = (), shots: int = 0, seed: int = 0) -> Task:
    """`capitals`: the capital of a state, in three wordings.

    Args:
        templates: indices of the wordings, 0 to 2; all by default.
        shots: number of in-context examples before every prompt.
        seed: seed of their choice.

    Raises:
        AnalysisError: a wording does not exist.
    """
    wordings = range(min(map(len, capital_prompts.templates().values())))
    chosen = chosen_templates(templates, len(wordings), wordings, "capitals")
    return Task(
        name="capitals",
        title="Capitals",
        kind="fact probing",
        data=_DATA,
        languages=capital_prompts.LANGUAGES,
        groups=in_context(partial(capital_prompts.groups, templates=chosen), shots, seed),
        parameters={**({"templates": numbers(chosen)} if templates else {}), **shots_chosen(shots, seed)},
    )


def capitals_inference(*, shots: int = 0, seed: int = 0) -> Task:
    """`capitals-inference`: whether a claim about a capital follows from another; arguments as in `capitals`."""
    return Task(
        name="capitals-inference",
        title="Inferences about capitals",
        kind="natural language inference",
        data=_HELD_OUT.format("Premises"),
        languages=capital_prompts.LANGUAGES,
        groups=in_context(capital_prompts.inferences, shots, seed),
        parameters=shots_chosen(shots, seed),
    )


def capitals_edit(*, direction: str = "", shots: int = 0, seed: int = 0) -> Task:
    """`capitals-edit`: a counterfactual capital, stated in one language and questioned in another.

    Args:
        direction: `en-all` (default): stated in English, with one row a language of the question; `all-en`: questioned
            in English, with one row a language of the statement; likewise for other languages. The fixed language has
            no row.
        shots: number of in-context examples before every prompt.
        seed: seed of their choice.

    Raises:
        AnalysisError: the direction is invalid.
    """
    chosen = Direction.parse(direction, capital_prompts.LANGUAGES)
    return Task(
        name="capitals-edit",
        title="Edited capitals",
        kind="cross-lingual knowledge editing",
        data=_HELD_OUT.format("Edits"),
        languages=tuple(one for one in capital_prompts.LANGUAGES if one != chosen.fixed),
        groups=in_context(partial(_edits, chosen), shots, seed),
        parameters={"direction": str(chosen), **shots_chosen(shots, seed)},
    )


def _edits(direction: Direction, languages: Sequence[str]) -> Iterator[Group]:
    context, question = (direction.fixed, None) if direction.told else (None, direction.fixed)
    return capital_prompts.edits(context, question, languages)
