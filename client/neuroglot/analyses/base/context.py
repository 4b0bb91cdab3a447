"""Settings shared by the analyses of a run (languages, options, clusters), and the data that each analysis needs."""

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
    """Data that an analysis needs in every result beside counts; the pipeline requests the union of all needs."""

    THRESHOLDS = auto()
    """Types at all thresholds, not only the first."""
    TYPE_MAP = auto()
    """The type of every neuron."""
    ACTIVE = auto()
    """Bitmaps of the active neurons of each row, from which mismatched groups are assembled."""
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
    """Settings shared by the analyses of one run.

    Attributes:
        languages: the rows of every result, in the order of all tables and figures.
        options: options of the analyses.
        clusters: cluster by group id; a group that is absent is a cluster of its own.
        rotation: assignment of rows to mismatched groups.
        choices: choices of the rows that have them.

    Raises:
        AnalysisError: a subset has fewer than two languages, repeats one, or names one that the run does not have.
    """

    languages: tuple[str, ...]
    options: Options = field(default_factory=Options)
    clusters: Mapping[str, str] = field(default_factory=dict)
    rotation: Rotation = field(default_factory=Rotation)
    choices: ChoicesOfRows = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return the context of a run's folder; raises as `Run.examples`."""
        return cls(run.settings.languages, run.settings).about(run.examples())

    def __post_init__(self) -> None:
        """Sort languages into the order of all tables; validate the subsets."""
        object.__setattr__(self, "languages", in_order(self.languages))
        for subset in self.options.subsets:
            if len(subset) < 2 or len(set(subset) & set(self.languages)) < len(subset):
                raise AnalysisError(
                    f"invalid subset of languages ({', '.join(subset) or 'empty'}); expected two or more of "
                    f"{', '.join(self.languages)}, each once"
                )

    @cached_property
    def subsets(self) -> tuple[tuple[str, ...], ...]:
        """Subsets of languages over which neuron types are computed, each in the order of all tables."""
        return tuple(map(in_order, self.options.subsets))

    @cached_property
    def ablations(self) -> Ablations:
        """The ablation variants: deactivated types and their controls."""
        return Ablations(self.options.draws, self.options.seed, self.options.component, self.options.controls)

    @cached_property
    def conversions(self) -> Conversions:
        """The conversion variants: converted types and their new activation."""
        value = self.options.convert_to
        to_mean = value == MEAN
        return Conversions(
            None if to_mean or value is None else float(value),
            mean_of_active=to_mean,
            component=self.options.component,
        )

    def about(self, examples: Sequence[Group]) -> Self:
        """Return a copy with the clusters, mismatched groups and choices of `examples`."""
        clusters = {group.id: group.cluster for group in examples if group.cluster}
        return replace(
            self, clusters=clusters, rotation=rotation(examples, self.languages), choices=choices_of(examples)
        )
