"""From the rows of a request to those that the model sees, within its limits."""

from __future__ import annotations

from collections.abc import Sequence

from neuroglot.errors import Violation
from neuroglot_server.core import Prediction, Row
from neuroglot_server.generation import answer_tokens
from neuroglot_server.text import EncodedRow, NoTokens, Text
from neuroglot_server.validation import refuse


def encode_rows(
    rows: Sequence[Row], prediction: Prediction | None, text: Text, most: int, path: str = "group.rows[{}]"
) -> list[EncodedRow]:
    """The rows' tokens.

    Args:
        rows: of one request.
        prediction: what is asked about their answers.
        text: the model's tokenizer.
        most: how many tokens a row may have, its answer's included.
        path: where the rows stand in the request; `{}` is the place among them.

    Raises:
        InvalidRequest: a prompt, an answer or a choice has no tokens, or a row has too many.
    """
    encoded: list[EncodedRow] = []
    violations: list[Violation] = []
    encode = text.together(rows)
    for place, row in enumerate(rows):
        try:
            one = text.encode_row(row, encode)
        except NoTokens as error:
            violations.append(Violation(f"{path.format(place)}.{error.field}", f"{error}: give a word or leave it out"))
            continue
        tokens, answer = len(one.prompt), answer_tokens(one, prediction)
        if not tokens:
            wrong = f"is {row.prompt!r}, which has no tokens: give a longer prompt"
        elif tokens + answer > most:
            wrong = (
                f"has {tokens} tokens, and up to {answer} more for the answer, expected at most {most} together: "
                "shorten it"
            )
        else:
            encoded.append(one)
            continue
        field = "text" if isinstance(row.prompt, str) else "token_ids.ids"
        violations.append(Violation(f"{path.format(place)}.{field}", wrong))
    refuse(violations)
    return encoded


def encode_prompt(row: Row, prediction: Prediction | None, text: Text, most: int) -> EncodedRow:
    """The tokens of the prompt of a request's only row, whose answers are not looked at; as `encode_rows`."""
    bare = row._replace(answers=(), choices=(), distractor="")
    return encode_rows([bare], prediction, text, most, "row")[0]
