"""Gold tokens: which tokens of an answer a model should produce after a prompt.

The server scores with them and the embedded models are trained on them, so there is one definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class GoldTokens(NamedTuple):
    """The tokens of a prompt and of its answer.

    Attributes:
        prompt: token ids of the prompt alone, with the tokenizer's special tokens.
        gold: token ids of the answer, at least one, without EOS.
        joint: whether prompt and answer were tokenized together. False if the tokenizer merges the last prompt token
            with the answer's first (about half of Thai answers under byte-level BPE), so that separator and answer were
            tokenized separately.
    """

    prompt: tuple[int, ...]
    gold: tuple[int, ...]
    joint: bool


def gold_tokens(
    encode: Callable[[str], Sequence[int]],
    encode_bare: Callable[[str], Sequence[int]],
    prompt: str,
    separator: str,
    answer: str,
) -> GoldTokens:
    """Tokenize a prompt and its answer for a causal language model, keeping the prompt's own tokens.

    Args:
        encode: text to token ids, with the special tokens that the model has (BOS; a trailing EOS is not allowed).
        encode_bare: text to token ids, without special tokens.
        prompt: the text before the answer.
        separator: the text between them, `" "` or `""`.
        answer: the answer's text.

    Raises:
        ValueError: the answer has no tokens.
    """
    frozen = tuple(encode(prompt))
    whole = tuple(encode(prompt + separator + answer))
    length = len(frozen)
    if len(whole) > length and whole[:length] == frozen:
        return GoldTokens(frozen, whole[length:], True)
    return GoldTokens(frozen, answer_tokens(encode_bare, separator + answer), False)


def r_index(spelling: Sequence[str]) -> int:
    """Return the index of r among the gold tokens of an encoder-decoder: the first token that is not a bare space.

    A SentencePiece tokenizer may start an answer with a lone `▁` (as in the majority of Thai and Chinese answers),
    a token that all of them share.

    >>> r_index(["▁", "巴黎"])
    1

    Args:
        spelling: the gold tokens as strings, as they stand in the vocabulary.
    """
    return 1 if len(spelling) > 1 and spelling[0] == "▁" else 0


def answer_tokens(encode_bare: Callable[[str], Sequence[int]], answer: str) -> tuple[int, ...]:
    """Tokenize an answer separately from its prompt, as the decoder of an encoder-decoder generates it.

    Args:
        encode_bare: text to token ids, without special tokens.
        answer: the answer's text, tokenized as given.

    Returns:
        At least one token, without EOS.

    Raises:
        ValueError: the answer has no tokens.
    """
    gold = tuple(encode_bare(answer))
    if not gold:
        raise ValueError(f"the answer {answer!r} has no tokens")
    return gold
