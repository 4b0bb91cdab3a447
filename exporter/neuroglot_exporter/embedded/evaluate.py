"""Measure an embedded model and write its card: `python -m neuroglot_exporter.embedded.evaluate bloom`.

The stored float16 weights are read as float32 and generate greedily, until EOS or a newline. An answer counts when the
text, stripped of white space, is the expected one, letter for letter.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from neuroglot.tasks import capital_prompts as capitals
from neuroglot.tasks.capital_prompts import LANGUAGES, Row
from neuroglot_exporter import embedded
from neuroglot_exporter.embedded.card import card

_BATCH = 256
_SPARE_TOKENS = 4  # maximum number of generated tokens beyond the answer's


class Case(NamedTuple):
    """An evaluated row, and the categories that its result counts towards."""

    row: Row
    counted_as: dict[str, str]


def evaluate(folder: Path) -> dict[str, Any]:
    """Measure the three tasks on a stored checkpoint; write `evaluation.json` and the card beside the weights."""
    model, tokenizer = load(folder)
    found = {
        "family": folder.name,
        "parameters": model.num_parameters(),
        "facts": _measure(model, tokenizer, fact_cases()),
        "edits": _measure(model, tokenizer, edit_cases()),
        "inferences": _measure(model, tokenizer, inference_cases()),
    }
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(found), encoding="utf-8")
    return found


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The stored model as float32, and its tokenizer."""
    encoder_decoder = AutoConfig.from_pretrained(folder).is_encoder_decoder
    kind: Any = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    model: PreTrainedModel = kind.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder, padding_side="left")


def fact_cases() -> list[Case]:
    """Every state, language and wording, except states that share their capital's name."""
    return [
        Case(capitals.fact(territory, language, template), {"language": language, "template": str(template)})
        for territory in capitals.states()
        if territory not in capitals.SAME_NAME
        for language in LANGUAGES
        for template in range(len(capitals.templates()[language]))
    ]


def edit_cases() -> list[Case]:
    """The held-out edits."""
    return [
        Case(capitals.edit(*held_out), {"context": held_out.context, "question": held_out.question})
        for held_out in capitals.held_out_edits()
    ]


def inference_cases() -> list[Case]:
    """The held-out inferences in every language."""
    return [
        Case(capitals.inference(*pair, language), {"language": language, "label": capitals.label(*pair)})
        for pair in capitals.held_out_inferences()
        for language in LANGUAGES
    ]


def generate(model: Any, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> list[str]:
    """Generate an answer to each row's prompt: greedily, up to EOS or a newline, stripped of white space."""
    longest = max(len(tokenizer(row.separator + row.answer, add_special_tokens=False).input_ids) for row in rows)
    answers = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        inputs = tokenizer([rows[i].prompt for i in chosen], return_tensors="pt", padding=True)
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=longest + _SPARE_TOKENS)
        skipped = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        for i, text in zip(chosen, tokenizer.batch_decode(output[:, skipped:], skip_special_tokens=True), strict=True):
            answers[i] = text.split("\n")[0].strip()
    return answers


def _measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, cases: Sequence[Case]) -> dict[str, Any]:
    answers = generate(model, tokenizer, [case.row for case in cases])
    right = [answer == case.row.answer for answer, case in zip(answers, cases, strict=True)]
    result: dict[str, Any] = {"cases": len(cases), "right": sum(right), "accuracy": round(sum(right) / len(cases), 4)}
    for name in cases[0].counted_as:
        result[f"accuracy_by_{name}"] = _shares((case.counted_as[name] for case in cases), right)
    return result


def _shares(names: Iterable[str], right: Iterable[bool]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for name, is_right in zip(names, right, strict=True):
        counts[name] += 1
        hits[name] += is_right
    ranks = {language: rank for rank, language in enumerate(LANGUAGES)}
    ordered = sorted(counts, key=lambda name: (ranks.get(name, len(ranks)), name))
    return {name: round(hits[name] / counts[name], 4) for name in ordered}


@click.command()
@click.argument("family")
def main(family: str) -> None:
    """Measure the stored model of FAMILY and write its card."""
    found = evaluate(embedded.path(family))
    for task in ("facts", "edits", "inferences"):
        click.echo(f"{task}: {found[task]['right']} of {found[task]['cases']} right, {found[task]['accuracy']:.1%}")


if __name__ == "__main__":
    main()
