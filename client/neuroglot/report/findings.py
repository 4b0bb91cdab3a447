"""What was found, in sentences made from the numbers, and what the paper found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from neuroglot.analyses.ablations import ABLATED
from neuroglot.analyses.effects import Effect, Metric, p_words
from neuroglot.analyses.study import Study
from neuroglot.analyses.top_contributors import TopContributors
from neuroglot.analyses.types_by_layer import TypesByLayer
from neuroglot.neurons import NeuronType
from neuroglot.runs import Run

ALPHA = 0.01
"""A difference counts as found where its corrected p-value is below."""


_ABLATED_IN_THE_PAPER = ("natural language inference", "knowledge editing")


@dataclass(frozen=True)
class Findings:
    """The words of a report.

    Attributes:
        headline: the finding, in one or two sentences.
        comparisons: what else was found, by topic, each beside what the paper says of it.
        cautions: what to know before believing any of it.
    """

    headline: str
    comparisons: tuple[tuple[str, str], ...]
    cautions: tuple[str, ...]


def findings(study: Study, run: Run) -> Findings:
    """Put a study into words.

    Args:
        study: with at least one result.
        run: what was run.
    """
    kind = run.settings.task_kind
    return Findings(
        headline=headline(study.effects.effects()),
        comparisons=(
            ("Ablations", _ablations(study, kind)),
            ("Types", _types(study, kind)),
            ("Contribution", _contributors(study, kind)),
            ("Languages", _languages(study)),
        ),
        cautions=tuple(_cautions(study, run)),
    )


def headline(effects: Sequence[Effect]) -> str:
    """Which type's loss costs more, or less, than the loss of as many random active neurons."""
    exact = [effect for effect in effects if effect.metric is Metric.EXACT]
    log_probability = [effect for effect in effects if effect.metric is Metric.LOG_PROBABILITY]
    return f"{_in_exact_match(exact)} {_in_log_probability(log_probability)}"


def _in_exact_match(effects: Sequence[Effect]) -> str:
    found, missed = _split(effects)
    if not found:
        nearest = min(missed, key=lambda effect: effect.p_holm)
        return (
            f"In exact match ({nearest.baseline:.1f} % with all neurons), no type's loss was found to differ from that "
            f"of as many random active neurons (nearest to it: {nearest.type}, {_points(nearest.difference)}, "
            f"corrected {p_words(nearest.p_holm)})."
        )
    first, *others = sorted(found, key=lambda effect: effect.difference)
    sentences = [
        f"Losing the {first.type} neurons {_verb(first)} than losing as many random active neurons: exact match goes "
        f"from {first.baseline:.1f} % to {first.without:.1f} %, and without random ones to {first.control:.1f} % "
        f"(difference {_points(first.difference)}, 95 % interval {_signed(first.low)} to {_signed(first.high)}, "
        f"corrected {p_words(first.p_holm)}).",
        *(
            f"Losing the {one.type} neurons {_verb(one)} than random ones: it goes to {one.without:.1f} %, and without "
            f"random ones to {one.control:.1f} % ({_points(one.difference)}, {p_words(one.p_holm)})."
            for one in others
        ),
        *(
            f"For the {one.type} neurons no difference from random ones was found ({_points(one.difference)}, "
            f"{p_words(one.p_holm)})."
            for one in missed
        ),
    ]
    return " ".join(sentences)


def _verb(effect: Effect) -> str:
    return "costs more" if effect.difference < 0 else "costs less"


def _in_log_probability(effects: Sequence[Effect]) -> str:
    found, missed = _split(effects)
    if not found:
        return "In the log-probability of the gold answer, no type's loss was found to differ from random ones."
    listed = [
        f"{one.type} {_nats(one.without - one.baseline)} nats, random {_nats(one.control - one.baseline)} "
        f"({p_words(one.p_holm)})"
        for one in found
    ]
    none = f"; no difference was found for {' and '.join(one.type for one in missed)}" if missed else ""
    return f"The log-probability of the gold answer tells them apart: without {'; without '.join(listed)}{none}."


def _split(effects: Sequence[Effect]) -> tuple[list[Effect], list[Effect]]:
    """Those that differ from their control, and the others."""
    found = [effect for effect in effects if effect.p_holm < ALPHA]
    return found, [effect for effect in effects if effect not in found]


def _ablations(study: Study, kind: str) -> str:
    effects = [effect for effect in study.effects.effects() if effect.metric is Metric.EXACT]
    lowest = min(effects, key=lambda effect: effect.without)
    losses = [f"{effect.type} {_points(effect.without - effect.baseline)}" for effect in effects]
    ablated = "" if kind in _ABLATED_IN_THE_PAPER else f"no ablation of {kind} and "
    where = study.effects.ablations.where(study.effects.geometry)
    return (
        f"Against all neurons, exact match falls furthest without the {lowest.type} ones ({', '.join(losses)})."
        f"{where} In the paper accuracy falls furthest without the all-shared neurons, on natural language inference "
        f"and knowledge editing (Tables 2, 5 and 6); it has {ablated}no random control."
    )


def _types(study: Study, kind: str) -> str:
    effects = sorted(study.effects.effects()[: len(ABLATED)], key=lambda effect: -effect.active_neurons)
    of_each = []
    for place, shares in _mean_shares(study.types).items():
        listed = ", ".join(f"{_share(share)} {name}" for name, share in shares.sort_values(ascending=False).items())
        of_each.append(f"{place}over all layers, the neurons are {listed}")
    active = ", ".join(f"{effect.active_neurons:,.0f} {effect.type}" for effect in effects)
    theirs = (
        " The paper's fact probing (BLOOMZ, Figure 4) has more than 50 % non-activated, more than 20 % partial-shared "
        "and less than 1 % all-shared neurons."
        if kind == "fact probing"
        else ""
    )
    said = _capitalised("; ".join(of_each))
    component = study.effects.ablations.component
    counted = f", in the {component}," if component else ", in both together," if len(of_each) > 1 else ""
    return f"{said}; active in a row{counted} are {active} ones.{theirs}"


def _contributors(study: Study, kind: str) -> str:
    all_shared = NeuronType.ALL_SHARED.label
    shares, top = _mean_shares(study.types), _mean_shares(study.top)
    sentences = []
    for place in shares:
        leader = str(top[place].idxmax())
        sentences.append(
            f"{place}among the top 5 % of contribution, {leader} neurons lead with {_share(top[place][leader])} (of "
            f"all neurons they are {_share(shares[place][leader])}); all-shared neurons are "
            f"{_share(top[place][all_shared])} there and {_share(shares[place][all_shared])} of all."
        )
    theirs = (
        " In the paper's fact probing, partial-shared neurons contribute most in sum and all-shared ones least, for "
        "there are so few of them, though each contributes most (Figure 9)."
        if kind == "fact probing"
        else ""
    )
    return " ".join(map(_capitalised, sentences)) + theirs


def _languages(study: Study) -> str:
    by_layer = (
        study.active.table().groupby(["component", "layer"], as_index=False)["active_percent"].agg(["min", "max"])
    )
    widest = by_layer.iloc[int((by_layer["max"] - by_layer["min"]).argmax())]
    component = f" of the {widest['component']}" if len(study.active.geometry) > 1 else ""
    return (
        f"In one layer, the languages' shares of active neurons differ by at most {widest['max'] - widest['min']:.1f} "
        f"points (layer {widest['layer']}{component}: {widest['min']:.1f} to {widest['max']:.1f} %). The paper finds "
        "that the number of active neurons is not influenced by the language."
    )


def _mean_shares(analysis: TypesByLayer | TopContributors) -> Mapping[str, pd.Series]:
    """Mean share of each type over all layers, by component: by `"in the encoder, "`, or by `""` where it is alone."""
    table = analysis.table()
    return {
        f"in the {component}, " if len(analysis.geometry) > 1 else "": shares.groupby("type")["share_percent"].mean()
        for component, shares in table.groupby("component", sort=False)
    }


def _cautions(study: Study, run: Run) -> Iterator[str]:
    settings = run.settings
    if settings.source.startswith("embedded:"):
        yield (
            "The model is the tiny stand-in that comes with neuroglot to try the service on, trained on these very "
            "facts. Its numbers are no evidence about large language models."
        )
    if missing := settings.groups - study.groups:
        failed = f", {len(run.failures):,} of them failed" if run.failures else ""
        yield f"{missing:,} of {settings.groups:,} groups have no answer{failed}: everything here is about the others."
    table = study.accuracy.table()
    if errors := int(table["errors"].sum()):
        yield f"{errors:,} predictions are missing, for an intervention made the numbers overflow; they do not count."
    yield _inactive(table)
    if sentence := _first_tokens(study.answers.table()):
        yield sentence


def _inactive(table: pd.DataFrame) -> str:
    without = table[table["condition"] == "without"].groupby("type")[["selected_neurons", "selected_active_neurons"]]
    means = without.mean()
    listed = ", ".join(
        f"{name} {row['selected_neurons'] - row['selected_active_neurons']:,.0f} of {row['selected_neurons']:,.0f}"
        for name, row in means.iterrows()
    )
    return (
        "Deactivating a type also sets to 0 those of its neurons that are inactive in the row, which cuts the negative "
        f"lobe of a GELU or SiLU ({listed}, mean over rows); the control touches active neurons only."
    )


def _first_tokens(answers: pd.DataFrame) -> str:
    shared = answers[answers["sharing_first_token"] > 0]
    apart, rows = int(answers["tokenized_apart"].sum()), int(answers["rows"].sum())
    parts = []
    if len(shared):
        listed = ", ".join(
            f"{row.language} {row.sharing_first_token} of {row.answers}" for row in shared.itertuples(index=False)
        )
        parts.append(f"Different answers share their first token r ({listed}): to get r right is not yet to answer.")
    if apart:
        parts.append(
            f"{apart:,} of {rows:,} prompts ({_share(100 * apart / rows)}) would merge with their answer in the "
            "tokenizer, so both were tokenized apart."
        )
    return " ".join(parts)


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def _points(difference: float) -> str:
    return f"{_signed(difference)} points"


def _nats(difference: float) -> str:
    return _signed(difference, ".2g")


def _signed(number: float, form: str = ".1f") -> str:
    text = f"{number:+{form}}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _share(percent: float) -> str:
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %"
