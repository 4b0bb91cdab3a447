"""What the analyses of a run share: its rows, its variants, its clusters, and what each asks the server for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum, auto
from functools import cached_property
from typing import Self

from neuroglot.analyses.base.ablations import Ablations
from neuroglot.analyses.base.choices import ChoicesOfRows, choices_of
from neuroglot.analyses.base.conversions import Conversions
from neuroglot.analyses.base.languages import in_order
from neuroglot.analyses.base.mismatched_groups import Rotation, rotation
from neuroglot.errors import AnalysisError
from neuroglot.request.groups import Group
from neuroglot.runs.run import Run
from neuroglot.runs.settings import MEAN, Options


class Need(StrEnum):
    """What an analysis needs of every answer beside counts; the pipeline asks for what any of them needs, once."""

    THRESHOLDS = auto()
    """Types at all thresholds, not at the first alone."""
    TYPE_MAP = auto()
    """The type of every neuron."""
    ACTIVE = auto()
    """Which neurons are active in each row, so that rows of different groups can be brought together."""
    CONTRIBUTION = auto()
    """Contributions by type."""
    EFFECTIVE_SCORE = auto()
    """Effective scores by type; the task's groups must have answers."""
    DEAD = auto()
    """Which neurons are inactive at every token of a prompt."""
    ANSWERS = auto()
    """Predictions; the task's groups must have answers."""


@dataclass(frozen=True)
class Context:
    """What the analyses of one run share.

    Attributes:
        languages: the rows of every result, in the order of all tables and figures.
        options: the form of the analyses.
        clusters: the cluster of a group, by the group's id; one that is not in it is a cluster by itself.
        rotation: which rows make up the mismatched groups.
        choices: of the rows that have any.

    Raises:
        AnalysisError: a subset that has fewer than two languages, the same twice, or one that the run does not have.
    """

    languages: tuple[str, ...]
    options: Options = field(default_factory=Options)
    clusters: Mapping[str, str] = field(default_factory=dict)
    rotation: Rotation = field(default_factory=Rotation)
    choices: ChoicesOfRows = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> Self:
        """The context of a run's folder; raises as `Run.examples`."""
        return cls(run.settings.languages, run.settings).about(run.examples())

    def __post_init__(self) -> None:
        """Bring languages into the order of all tables; refuse subsets that are none."""
        object.__setattr__(self, "languages", in_order(self.languages))
        for subset in self.options.subsets:
            if len(subset) < 2 or len(set(subset) & set(self.languages)) < len(subset):
                raise AnalysisError(
                    f"{', '.join(subset) or 'nothing'} is no set of languages to type neurons among: name two or more "
                    f"of {', '.join(self.languages)}, each once"
                )

    @cached_property
    def subsets(self) -> tuple[tuple[str, ...], ...]:
        """Sets of languages to type the neurons among, each in the order of all tables."""
        return tuple(map(in_order, self.options.subsets))

    @cached_property
    def ablations(self) -> Ablations:
        """Which types are deactivated, and their controls."""
        return Ablations(self.options.draws, self.options.seed, self.options.component, self.options.controls)

    @cached_property
    def conversions(self) -> Conversions:
        """Which types are converted, and to what."""
        value = self.options.convert_to
        to_mean = value == MEAN
        return Conversions(
            None if to_mean or value is None else float(value),
            mean_of_active=to_mean,
            component=self.options.component,
        )

    def about(self, examples: Sequence[Group]) -> Self:
        """The same, with the clusters, the mismatched groups and the choices of these examples."""
        clusters = {group.id: group.cluster for group in examples if group.cluster}
        return replace(
            self, clusters=clusters, rotation=rotation(examples, self.languages), choices=choices_of(examples)
        )
