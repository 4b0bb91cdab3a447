"""Tokenizes the rows of a request, within the limits of the model."""

from __future__ import annotations

from collections.abc import Sequence

from neuroglot.errors import Violation
from neuroglot_server.core import Prediction, Row, limits
from neuroglot_server.intake.text import EncodedRow, NoTokens, Text
from neuroglot_server.intake.tokenizer_process import Tokens
from neuroglot_server.intake.validation import refuse

_AT_ONCE_BYTES = 2**13
"""Up to this size, prompts are encoded together with their answers; above it, each prompt's length is checked first."""

PAST_GOLD = 4
"""Tokens that may be generated beyond the length of the gold answer."""


def most_tokens(row: EncodedRow, prediction: Prediction) -> int:
    """Return the maximum tokens to generate for a row."""
    return len(row.gold) + PAST_GOLD if row.gold else prediction.max_tokens


def answer_tokens(row: EncodedRow, prediction: Prediction | None) -> int:
    """Return the maximum tokens of a row's answer that are run: gold, generated, or one of its choices."""
    if prediction is None:
        return 0
    answer = most_tokens(row, prediction) if prediction.generate else len(row.gold)
    return max([answer, *map(len, row.choices)])


async def encode_rows(
    rows: Sequence[Row],
    prediction: Prediction | None,
    text: Text,
    limit: int,
    tenant: str = "",
    group: str = "group",
    path: str = "group.rows[{}]",
) -> list[EncodedRow]:
    """Tokenize rows.

    Args:
        rows: the rows of one request.
        prediction: options of predictions; None if answers are only encoded.
        text: the model's tokenizer.
        limit: maximum tokens of a row, including its answer.
        tenant: name of the tenant.
        group: path of the field with all rows, for messages.
        path: path of a row in the request, for messages; `{}` is the row's index.

    Raises:
        InvalidRequest: a prompt, an answer or a choice has no tokens, a row has too many, or the texts are too large
            in total.
        CannotTokenize: the tokenizer exceeds its time or memory on a text.
        ModelClosed: the model was closed meanwhile.
    """
    known: dict[tuple[str, bool], Tokens] = {}

    async def encode(texts: Sequence[tuple[str, bool]]) -> None:
        new = [key for key in dict.fromkeys(texts) if key not in known]
        # Token ids beyond the limit are not needed, only their number for the message.
        known.update(zip(new, await text.encode(new, tenant, limit + limits.ANSWER_BYTES), strict=True))

    size = sum(map(_size, rows))
    if size > limits.ENCODED_BYTES:
        wrong = (
            f"has {size} bytes of prompts, each again with every answer and choice, expected at most "
            f"{limits.ENCODED_BYTES}: send fewer rows or choices at once"
        )
        refuse([Violation(group, wrong)])
    prompts = [(row.prompt, True) for row in rows if isinstance(row.prompt, str)]
    if size > _AT_ONCE_BYTES:
        for index, row in enumerate(rows):
            if isinstance(row.prompt, str):
                await encode([(row.prompt, True)])
                if (tokens := known[row.prompt, True].length) > limit:
                    refuse([_too_long(row, path.format(index), tokens, 0, limit)])
    await encode([*prompts, *(key for row in rows for key in text.of_answers(row))])

    encoded: list[EncodedRow] = []
    violations: list[Violation] = []
    for index, row in enumerate(rows):
        try:
            encoded_row = text.encode_row(
                row, lambda content: known[content, True].ids, lambda content: known[content, False].ids
            )
        except NoTokens as error:
            violations.append(Violation(f"{path.format(index)}.{error.field}", f"{error}: give a word or leave it out"))
            continue
        tokens, answer = len(encoded_row.prompt), answer_tokens(encoded_row, prediction)
        if isinstance(row.prompt, str):
            tokens = known[row.prompt, True].length
        if not tokens:
            field = _field(row, path.format(index))
            wrong = f"is {row.prompt!r}, which has no tokens: give a longer prompt"
            violations.append(Violation(field, wrong))
        elif tokens + answer > limit:
            violations.append(_too_long(row, path.format(index), tokens, answer, limit))
        else:
            encoded.append(encoded_row)
    refuse(violations)
    return encoded


async def encode_prompt(
    row: Row, prediction: Prediction | None, text: Text, limit: int, tenant: str = ""
) -> EncodedRow:
    """Tokenize the prompt of a request's only row, ignoring its answers; raises as `encode_rows`."""
    bare = row._replace(answers=(), choices=(), distractor="")
    (encoded,) = await encode_rows([bare], prediction, text, limit, tenant, "row", "row")
    return encoded


def _size(row: Row) -> int:
    """Return the approximate number of bytes that are encoded for a row."""
    prompt = len(row.prompt) if isinstance(row.prompt, str) else 0
    answers = [len(answer) for answer in (*row.answers[:1], *row.choices, row.distractor)]
    return prompt + sum([prompt + 2 * size for size in answers])


def _too_long(row: Row, path: str, tokens: int, answer: int, limit: int) -> Violation:
    wrong = (
        f"has {tokens} tokens, and up to {answer} more for the answer, expected at most {limit} together: shorten it"
    )
    return Violation(_field(row, path), wrong)


def _field(row: Row, path: str) -> str:
    """Return the path of the field of a row's prompt."""
    return f"{path}.{'text' if isinstance(row.prompt, str) else 'token_ids.ids'}"
