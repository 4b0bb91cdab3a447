"""Turns texts into the rows that are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from neuroglot.definitions.bundle import ModelFacts
from neuroglot_exporter.errors import VerificationError
from neuroglot_exporter.verification.observation import DECODER, ENCODER

Row: TypeAlias = Mapping[str, Sequence[int]]
"""Token ids by component."""

Tokenize: TypeAlias = Callable[[str], list[int]]

LOGIT_POSITIONS = 8
"""Number of last positions of a row whose logits are compared: for a vocabulary of 250,880 each takes a megabyte."""

_DECODER_TOKENS = 4
_ROUND_BYTES = 2**29


def rows_of(texts: Iterable[str], facts: ModelFacts, ours: Tokenize, theirs: Tokenize) -> list[Row]:
    """Turn texts into rows.

    A causal model reads the text. In an encoder-decoder, the encoder reads the text and the decoder its start token and
    the first one to four tokens of the text, so that rows of one batch differ in length.

    Args:
        texts: the texts to compare on.
        facts: facts about the bundle's model.
        ours: the bundle's tokenizer, with special tokens.
        theirs: the tokenizer of transformers, with special tokens.

    Raises:
        VerificationError: the tokenizers disagree on a text, or no text has a token.
    """
    rows: list[Row] = []
    for text in texts:
        token_ids, expected = ours(text), theirs(text)
        if token_ids != expected:
            raise VerificationError(
                f"the bundle's tokenizer turns {text!r} into {token_ids}, transformers into {expected}"
            )
        token_ids = token_ids[: facts.max_positions]
        if not token_ids:
            continue
        if facts.decoder_start_token_id is None:
            rows.append({DECODER: token_ids})
        else:
            answer = token_ids[: 1 + len(rows) % _DECODER_TOKENS]
            rows.append({ENCODER: token_ids, DECODER: [facts.decoder_start_token_id, *answer]})
    if not rows:
        raise VerificationError("there is no text to compare on: give at least one that is not empty")
    return rows


def rounds(rows: Sequence[Row], facts: ModelFacts, passes: int) -> Iterator[Sequence[Row]]:
    """Split rows into rounds whose results of the graphs fit in half a gigabyte, held while transformers runs.

    Args:
        rows: all rows.
        facts: facts about the bundle's model.
        passes: how often the logits of a row are computed.
    """
    begin, size = 0, 0
    for end, row in enumerate(rows):
        size += _bytes_of(row, facts, passes)
        if size > _ROUND_BYTES and end > begin:
            yield rows[begin:end]
            begin, size = end, _bytes_of(row, facts, passes)
    yield rows[begin:]


def _bytes_of(row: Row, facts: ModelFacts, passes: int) -> int:
    taps = sum(
        len(row[component.name]) * component.layers * component.neurons * (2 if component.gated else 1)
        for component in facts.components
    )
    logits = min(LOGIT_POSITIONS, len(row[DECODER])) * facts.vocabulary_size * passes
    return 4 * (taps + logits)
