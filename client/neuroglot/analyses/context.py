"""What the analyses of a run share: its rows, its variants, its clusters, and what each asks the server for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum, auto
from typing import Self

from neuroglot.analyses.ablations import Ablations
from neuroglot.analyses.choices import ChoicesOfRows, choices_of
from neuroglot.analyses.conversions import Conversions
from neuroglot.analyses.languages import in_order
from neuroglot.analyses.rotation import Rotation, rotation
from neuroglot.errors import AnalysisError
from neuroglot.groups import Group
from neuroglot.selections import DEFAULT_TOP_FRACTION
from neuroglot.settings import MEAN, REPLICATES, THRESHOLDS, Options, ScoreReduction
from neuroglot.wanted import ScoreTarget


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
        ablations: which types are deactivated, and their controls.
        conversions: which types are converted, and to what.
        thresholds: a neuron is active above them; the first is the one that all but one analysis look at.
        top_fraction: share of a layer's neurons that count as its top contributors.
        score_target: of which tokens effective scores are taken.
        score_reduction: how the largest and smallest of them are taken over layers.
        subsets: sets of languages to type the neurons among; none: all subsets of 3, 5, 7, ... languages.
        cumulative_dead: whether the figure of dead neurons shows those that are dead in all prompts, as the paper's
            released code counts them, and not the mean over prompts.
        seed: of controls, tests and bootstrap.
        replicates: of the bootstrap.
        clusters: the cluster of a group, by the group's id; one that is not in it is a cluster by itself.
        rotation: which rows make up the mismatched groups.
        choices: of the rows that have any.

    Raises:
        AnalysisError: a subset that has fewer than two languages, the same twice, or one that the run does not have.
    """

    languages: tuple[str, ...]
    ablations: Ablations = field(default_factory=Ablations)
    conversions: Conversions = field(default_factory=Conversions)
    thresholds: tuple[float, ...] = THRESHOLDS
    top_fraction: float = DEFAULT_TOP_FRACTION
    score_target: ScoreTarget = ScoreTarget.FIRST_GOLD_TOKEN
    score_reduction: ScoreReduction = ScoreReduction.WITHIN_GROUPS
    subsets: tuple[tuple[str, ...], ...] = ()
    cumulative_dead: bool = False
    seed: int = 0
    replicates: int = REPLICATES
    clusters: Mapping[str, str] = field(default_factory=dict)
    rotation: Rotation = field(default_factory=Rotation)
    choices: ChoicesOfRows = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Bring languages into the order of all tables; refuse subsets that are none."""
        object.__setattr__(self, "languages", in_order(self.languages))
        object.__setattr__(self, "subsets", tuple(map(in_order, self.subsets)))
        for subset in self.subsets:
            if len(subset) < 2 or len(set(subset) & set(self.languages)) < len(subset):
                raise AnalysisError(
                    f"{', '.join(subset) or 'nothing'} is no set of languages to type neurons among: name two or more "
                    f"of {', '.join(self.languages)}, each once"
                )

    @classmethod
    def of(cls, languages: Sequence[str], options: Options) -> Self:
        """What the options of a run say; what its groups say is added by `about`."""
        to_mean = options.convert_to == MEAN
        return cls(
            languages=tuple(languages),
            ablations=Ablations(options.draws, options.seed, options.component, options.controls),
            conversions=Conversions(
                None if to_mean or options.convert_to is None else float(options.convert_to),
                mean_of_active=to_mean,
                component=options.component,
            ),
            thresholds=options.thresholds,
            top_fraction=options.top_fraction,
            score_target=options.score_target,
            score_reduction=options.score_reduction,
            subsets=options.subsets,
            cumulative_dead=options.cumulative_dead,
            seed=options.seed,
            replicates=options.replicates,
        )

    def about(self, examples: Sequence[Group]) -> Self:
        """The same, with the clusters, the mismatched groups and the choices of these examples."""
        clusters = {group.id: group.cluster for group in examples if group.cluster}
        return replace(
            self, clusters=clusters, rotation=rotation(examples, self.languages), choices=choices_of(examples)
        )
