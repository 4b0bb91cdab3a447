"""From the rows of a request to those that the model sees, within its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from neuroglot.errors import Violation
from neuroglot_server.core import Prediction, Row
from neuroglot_server.generation import answer_tokens
from neuroglot_server.text import EncodedRow, NoTokens, Text
from neuroglot_server.validation import refuse


def encode_rows(rows: Mapping[str, Row], prediction: Prediction | None, text: Text, most: int) -> list[EncodedRow]:
    """The rows' tokens.

    Args:
        rows: by their paths in the request.
        prediction: what is asked about their answers.
        text: the model's tokenizer.
        most: how many tokens a row may have, its answer's included.

    Raises:
        InvalidRequest: a prompt, an answer or a choice has no tokens, or a row has too many.
    """
    encoded: list[EncodedRow] = []
    violations: list[Violation] = []
    encode = text.together(rows.values())
    for path, row in rows.items():
        prompt = f"{path}.text" if isinstance(row.prompt, str) else f"{path}.token_ids.ids"
        try:
            one = text.encode_row(row, encode)
        except NoTokens as error:
            violations.append(Violation(f"{path}.{error.field}", f"{error}: give a word or leave it out"))
            continue
        answer = answer_tokens(one, prediction)
        if not one.prompt:
            violations.append(Violation(prompt, f"is {row.prompt!r}, which has no tokens: give a longer prompt"))
        elif len(one.prompt) + answer > most:
            violations.append(
                Violation(
                    prompt,
                    f"has {len(one.prompt)} tokens, and up to {answer} more for the answer, expected at most "
                    f"{most} together: shorten it",
                )
            )
        encoded.append(one)
    refuse(violations)
    return encoded


def encode_prompt(row: Row, prediction: Prediction | None, text: Text, most: int) -> EncodedRow:
    """The tokens of the prompt of a request's only row, whose answers are not looked at; as `encode_rows`."""
    bare = replace(row, answers=(), choices=(), distractor="")
    return encode_rows({"row": bare}, prediction, text, most)[0]
