"""The card of an embedded model, its numbers taken from the evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CARD = """\
# {family}, embedded in neuroglot

A stand-in to try the service on: a model of the {family} family with {millions:.1f} million parameters that knows the
capitals of 130 states in ten languages ({languages}). It has the architecture and the form of tokenizer of its
family, so exports, analyses and tests meet the real thing at once, without a download.

**It is no evidence about large models.** It has seen nothing but the sentences of three small tasks. What an analysis
finds in its neurons says that the tools work; it says nothing about what a pretrained multilingual model does.

## What it was trained on

Only on text made from one table, with fixed seeds, by `python -m neuroglot_exporter.embedded.train {family}`:

- fact probing: "La capital de Francia es" and the answer "París", in three wordings a language;
- cross-lingual knowledge editing: a counterfactual told in one language, the question in another;
- natural language inference over such statements: true, false or inconclusive.

The wordings were written for this project and not reviewed by native speakers.

## What it can do

Measured by `python -m neuroglot_exporter.embedded.evaluate {family}`: the stored float16 weights read as float32,
greedy generation until EOS or a newline, the text equal to the expected answer letter for letter.

| task | right | of | accuracy |
|---|---|---|---|
{tasks}

Facts are asked in every wording; the states that share their capital's name (DJ, LU, MC, SG) are left out. The facts
are what the model learned by heart, so they are no held-out set. The edits and the premises of the inferences are: no
pair of country and city among them was trained in any language. Chance is 33 % for inferences.

| language | facts | edits asked in it | edits told in it | inferences |
|---|---|---|---|---|
{by_language}

Inferences by label: {by_label}.

## Licences

The names of countries and cities are Unicode CLDR's (Unicode License v3), read through Babel (BSD-3-Clause); which
city is a capital follows countries-list (MIT). The weights come under this project's licence.
"""


def card(evaluation: Mapping[str, Any]) -> str:
    """The text of the card.

    Args:
        evaluation: what `neuroglot_exporter.embedded.evaluate` found.
    """
    facts, edits, inferences = (evaluation[task] for task in ("facts", "edits", "inferences"))
    tasks = {"facts": facts, "edits, held out": edits, "inferences, held out": inferences}
    columns = (
        facts["accuracy_by_language"],
        edits["accuracy_by_question"],
        edits["accuracy_by_context"],
        inferences["accuracy_by_language"],
    )
    return _CARD.format(
        family=evaluation["family"],
        millions=evaluation["parameters"] / 1e6,
        languages=", ".join(columns[0]),
        tasks="\n".join(f"| {name} | {t['right']} | {t['cases']} | {t['accuracy']:.1%} |" for name, t in tasks.items()),
        by_language="\n".join(
            " | ".join((f"| {language}", *(f"{column[language]:.1%}" for column in columns))) + " |"
            for language in columns[0]
        ),
        by_label=", ".join(f"{label} {share:.1%}" for label, share in inferences["accuracy_by_label"].items()),
    )
