"""Groups that the tests ask about, and what a plain session of ONNX Runtime answers to them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import neuroglot as ng

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from tokenizers import Tokenizer

VARIANTS = {"w/o all-shared": ng.deactivate(ng.ALL_SHARED), "w/o specific": ng.deactivate(ng.SPECIFIC)}
TOLERANCE = 1e-5
"""Of log-probabilities between two starts, in nats."""
TOLERANCE_TO_PLAIN = 1e-4
"""Between a server, which runs a prompt in two passes, and a plain session, which runs it in one."""


class Answer(NamedTuple):
    """What is compared of an answer.

    Attributes:
        types: codes, `[layers, neurons]`.
        log_probabilities: of the gold answers, by variant and row.
    """

    types: NDArray[np.uint8]
    log_probabilities: dict[tuple[str, str], float]


def ask(model: ng.Model, group: ng.Group) -> Answer:
    """Types, and predictions without some of them."""
    return answer_of(model.analyze(group, variants=VARIANTS, generate=False))


def answer_of(result: ng.GroupResult) -> Answer:
    """What is compared of a result."""
    found = {
        (variant, label): prediction.gold_log_probability
        for variant, rows in result.predictions.items()
        for label, prediction in rows.items()
    }
    return Answer(result.types.codes(), {key: value for key, value in found.items() if value is not None})


def difference(one: Answer, other: Answer) -> str:
    """In what two answers differ; empty if they are the same."""
    neurons = int(np.count_nonzero(one.types != other.types))
    if one.log_probabilities.keys() != other.log_probabilities.keys():
        return f"predictions of {sorted(one.log_probabilities)} and of {sorted(other.log_probabilities)}"
    largest = max(abs(value - other.log_probabilities[key]) for key, value in one.log_probabilities.items())
    if neurons or not largest <= TOLERANCE:
        return f"{neurons} neurons of another type, log-probabilities {largest:.2g} apart"
    return ""


def plain_answer(bundle: Path, group: ng.Group) -> Answer:
    """What follows from the definitions, by full passes of a plain session of the bundle's graph.

    The group's answers are one token each, and its variants are `VARIANTS`.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(bundle / "decoder.onnx", options, ["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    rows = [tokenizer.encode(text).ids for text in group.prompts.values()]
    gold = [tokenizer.encode(" " + answer[0]).ids for answer in group.answers.values()]
    assert all(len(tokens) == 1 for tokens in gold)
    width = max(map(len, rows))
    ids = np.zeros((len(rows), width), np.int64)
    attended = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :], attended[index, width - len(row) :] = row, 1
    feeds = {"input_ids": ids, "attention_mask": attended}
    for past in session.get_inputs():
        if past.name.startswith("past_key_values"):
            feeds[past.name] = np.zeros((len(rows), past.shape[1], 0, past.shape[3]), np.float32)
    taps = [output.name for output in session.get_outputs() if output.name.endswith(".activation")]
    logits, *activations = session.run(["logits", *taps], feeds)
    active = np.stack([(layer[:, -1] > 0).sum(axis=0) for layer in activations])
    types = np.select([active == 0, active == 1, active == len(rows)], [0, 1, 3], 2).astype(np.uint8)
    by_variant = {"baseline": logits}
    for variant, code in (("w/o all-shared", 3), ("w/o specific", 1)):
        masks = {}
        for tap, of_layer in zip(taps, types, strict=True):
            mask = np.ones((1, width, of_layer.size), np.float32)
            mask[0, -1, of_layer == code] = 0
            masks[tap.replace("activation", "mask")] = mask
        (by_variant[variant],) = session.run(["logits"], feeds | masks)
    found = {}
    for variant, of_variant in by_variant.items():
        for index, label in enumerate(group.prompts):
            scores = of_variant[index, -1].astype(np.float64)
            normaliser = scores.max() + np.log(np.exp(scores - scores.max()).sum())
            found[variant, label] = float(scores[gold[index][0]] - normaliser)
    return Answer(types, found)
