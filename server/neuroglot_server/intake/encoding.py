"""From the rows of a request to those that the model sees, within its limits."""

from __future__ import annotations

from collections.abc import Sequence

from neuroglot.errors import Violation
from neuroglot_server.core import Prediction, Row, limits
from neuroglot_server.intake.text import EncodedRow, NoTokens, Text
from neuroglot_server.intake.tokenizer_process import Tokens
from neuroglot_server.intake.validation import refuse

_AT_ONCE_BYTES = 2**13
"""Of so few bytes prompts are encoded together with their answers; otherwise it is first seen whether they may be."""

PAST_GOLD = 4
"""How many tokens more than the gold answer has may be generated."""


def most_tokens(row: EncodedRow, prediction: Prediction) -> int:
    """How many tokens may be generated for a row."""
    return len(row.gold) + PAST_GOLD if row.gold else prediction.max_tokens


def answer_tokens(row: EncodedRow, prediction: Prediction | None) -> int:
    """Most tokens that are run of a row's answer: gold, generated, or one of its choices."""
    if prediction is None:
        return 0
    answer = most_tokens(row, prediction) if prediction.generate else len(row.gold)
    return max([answer, *map(len, row.choices)])


async def encode_rows(
    rows: Sequence[Row],
    prediction: Prediction | None,
    text: Text,
    most: int,
    tenant: str = "",
    group: str = "group",
    path: str = "group.rows[{}]",
) -> list[EncodedRow]:
    """The rows' tokens.

    Args:
        rows: of one request.
        prediction: what is asked about their answers.
        text: the model's tokenizer.
        most: how many tokens a row may have, its answer's included.
        tenant: whose request it is.
        group: what the rows are together in the request.
        path: where the rows stand in the request; `{}` is the place among them.

    Raises:
        InvalidRequest: a prompt, an answer or a choice has no tokens, a row has too many, or there is too much to
            encode.
        CannotTokenize: a text takes the tokenizer too much time or memory.
        ModelClosed: the model went down meanwhile.
    """
    known: dict[tuple[str, bool], Tokens] = {}

    async def encode(texts: Sequence[tuple[str, bool]]) -> None:
        new = [one for one in dict.fromkeys(texts) if one not in known]
        # More than a row may have are not looked at, but that it has them is said.
        known.update(zip(new, await text.encode(new, tenant, most + limits.ANSWER_BYTES), strict=True))

    size = sum(map(_size, rows))
    if size > limits.ENCODED_BYTES:
        wrong = (
            f"has {size} bytes of prompts, each again with every answer and choice, expected at most "
            f"{limits.ENCODED_BYTES}: send fewer rows or choices at once"
        )
        refuse([Violation(group, wrong)])
    prompts = [(row.prompt, True) for row in rows if isinstance(row.prompt, str)]
    if size > _AT_ONCE_BYTES:
        for place, row in enumerate(rows):
            if isinstance(row.prompt, str):
                await encode([(row.prompt, True)])
                if (tokens := known[row.prompt, True].length) > most:
                    refuse([_too_long(row, path.format(place), tokens, 0, most)])
    await encode([*prompts, *(one for row in rows for one in text.of_answers(row))])

    encoded: list[EncodedRow] = []
    violations: list[Violation] = []
    for place, row in enumerate(rows):
        try:
            one = text.encode_row(row, lambda said: known[said, True].ids, lambda said: known[said, False].ids)
        except NoTokens as error:
            violations.append(Violation(f"{path.format(place)}.{error.field}", f"{error}: give a word or leave it out"))
            continue
        tokens, answer = len(one.prompt), answer_tokens(one, prediction)
        if isinstance(row.prompt, str):
            tokens = known[row.prompt, True].length
        if not tokens:
            field = _field(row, path.format(place))
            wrong = f"is {row.prompt!r}, which has no tokens: give a longer prompt"
            violations.append(Violation(field, wrong))
        elif tokens + answer > most:
            violations.append(_too_long(row, path.format(place), tokens, answer, most))
        else:
            encoded.append(one)
    refuse(violations)
    return encoded


async def encode_prompt(row: Row, prediction: Prediction | None, text: Text, most: int, tenant: str = "") -> EncodedRow:
    """The tokens of the prompt of a request's only row, whose answers are not looked at; as `encode_rows`."""
    bare = row._replace(answers=(), choices=(), distractor="")
    (encoded,) = await encode_rows([bare], prediction, text, most, tenant, "row", "row")
    return encoded


def _size(row: Row) -> int:
    """About how much is encoded for a row."""
    prompt = len(row.prompt) if isinstance(row.prompt, str) else 0
    answers = [len(said) for said in (*row.answers[:1], *row.choices, row.distractor)]
    return prompt + sum([prompt + 2 * size for size in answers])


def _too_long(row: Row, path: str, tokens: int, answer: int, most: int) -> Violation:
    wrong = f"has {tokens} tokens, and up to {answer} more for the answer, expected at most {most} together: shorten it"
    return Violation(_field(row, path), wrong)


def _field(row: Row, path: str) -> str:
    """Where the prompt of a row stands."""
    return f"{path}.{'text' if isinstance(row.prompt, str) else 'token_ids.ids'}"
