"""Text to tokens and back, with the tokenizer that travels in the bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from neuroglot.errors import BundleError
from neuroglot.gold import GoldTokens, answer_tokens, gold_tokens, r_index
from neuroglot.groups import default_separator
from neuroglot_server.core import Row, TokenizedText

_WORTH_THREADS = 2**11
"""Characters of prompts, each again with every answer.

The tokenizer's threads take as long to be woken as fewer do to be encoded.
"""


class EncodedRow(NamedTuple):
    """A row as the model sees it.

    Attributes:
        label: the row's label.
        prompt: token ids of the prompt, special tokens included.
        gold: token ids of the gold answer; empty without one.
        joint: whether the tokenizer goes on from this prompt to `gold` by itself; of an encoder-decoder, whose answer
            does not go on from the prompt, always.
        answers: the accepted answers as they were given.
        r_index: where r is among the gold tokens, see `neuroglot.gold.r_index`.
        choices: token ids of each of the answers among which the most likely one is found.
        distractor: token ids of the wrong answer, from the one on that stands where r does; empty without one.
    """

    label: str
    prompt: tuple[int, ...]
    gold: tuple[int, ...]
    joint: bool
    answers: tuple[str, ...]
    r_index: int = 0
    choices: tuple[tuple[int, ...], ...] = ()
    distractor: tuple[int, ...] = ()


Encode = Callable[[str], tuple[int, ...]]
"""From a text to its tokens, special ones included."""


class NoTokens(ValueError):
    """A text of a row that the model cannot be asked about, for it has no tokens.

    Attributes:
        field: where it stands in the row: `choices[1]`.
    """

    def __init__(self, field: str, reason: str) -> None:
        """Keep where it stands."""
        self.field = field
        super().__init__(reason)


class Text:
    """The tokenizer of one model."""

    def __init__(self, tokenizer: Tokenizer, *, encoder_decoder: bool) -> None:
        """Take a tokenizer and turn off the truncation and padding that its file may ask for.

        Args:
            tokenizer: the tokenizer.
            encoder_decoder: whether answers are texts of their own, and not how prompts go on.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._encoder_decoder = encoder_decoder
        self.breaks_line = cache(self._breaks_line)

    @classmethod
    def load(cls, file: Path, *, encoder_decoder: bool) -> Text:
        """Read a `tokenizer.json`.

        Raises:
            BundleError: the file is no tokenizer.
        """
        try:
            tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # noqa: BLE001 - the tokenizers package raises plain Exception
            raise BundleError(f"{file} is no tokenizer ({error}): export the model again") from None
        return cls(tokenizer, encoder_decoder=encoder_decoder)

    def encode(self, text: str, *, special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of a text, by default with what the tokenizer's post-processor adds (BOS, `</s>`)."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)

    def tokenize(self, texts: Sequence[str], *, special_tokens: bool = True) -> list[TokenizedText]:
        """Ids and spelling of the tokens of each text."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=special_tokens)
        return [TokenizedText(tuple(encoding.ids), tuple(encoding.tokens)) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _breaks_line(self, token: int) -> bool:
        return "\n" in self.decode((token,))

    def together(self, rows: Sequence[Row]) -> Encode:
        """`encode`, of the texts that these rows are read by: each is encoded once, and many are at once.

        The tokenizer lets go of the interpreter for a batch, and beside busy threads it takes milliseconds to have it
        back: one batch a request, and none where there is little to encode.
        """
        known: dict[str, tuple[int, ...]] = {}
        if sum([len(row.prompt) * (2 + len(row.choices)) for row in rows]) >= _WORTH_THREADS:
            texts = list(dict.fromkeys(text for row in rows for text in self._texts(row)))
            encodings = self._tokenizer.encode_batch_fast(texts)
            known = {text: tuple(encoding.ids) for text, encoding in zip(texts, encodings, strict=True)}

        def encode(text: str) -> tuple[int, ...]:
            ids = known.get(text)
            if ids is None:
                ids = known[text] = self.encode(text)
            return ids

        return encode

    def _texts(self, row: Row) -> Iterator[str]:
        """What is encoded for a row, special tokens included."""
        if not isinstance(row.prompt, str):
            return
        yield row.prompt
        if not self._encoder_decoder:
            before = row.prompt + _separator(row)
            for said in (*row.answers[:1], *row.choices, row.distractor):
                if said:
                    yield before + said

    def encode_row(self, row: Row, encode: Encode | None = None) -> EncodedRow:
        """Tokens of a row's prompt, of its gold answer, of its choices and of its distractor.

        Gold tokens of a prompt that was given as token ids are those of separator and answer by themselves, and those
        of an encoder-decoder are the answer's, for there nothing separates it from the prompt. Choices and distractor
        are read as the gold answer is.

        Args:
            row: the row.
            encode: `encode` of texts that may be encoded already, see `together`.

        Raises:
            NoTokens: the gold answer, a choice or the distractor has none.
        """
        encode = encode or self.together([row])
        answer = partial(self._answer, row, encode)
        choices: tuple[tuple[int, ...], ...] = ()
        if row.choices:
            choices = tuple([answer(choice, f"choices[{place}]").gold for place, choice in enumerate(row.choices)])
        wrong: tuple[int, ...] = ()
        if row.distractor:
            wrong = answer(row.distractor, "distractor").gold
            wrong = wrong[self._r_index(wrong) :]
        if not row.answers:
            return EncodedRow(row.label, _prompt(row, encode), (), False, (), 0, choices, wrong)
        prompt, gold, joint = answer(row.answers[0], "answers[0]")
        return EncodedRow(row.label, prompt, gold, joint, row.answers, self._r_index(gold), choices, wrong)

    def _r_index(self, gold: tuple[int, ...]) -> int:
        """Where r is among the tokens of an answer."""
        return r_index([str(self._tokenizer.id_to_token(token)) for token in gold]) if self._encoder_decoder else 0

    def _answer(self, row: Row, encode: Encode, answer: str, field: str) -> GoldTokens:
        """The tokens of a row's prompt, and of something that the model might say after it."""
        separator = _separator(row)
        try:
            if self._encoder_decoder:
                return GoldTokens(_prompt(row, encode), answer_tokens(self._encode_bare, answer), True)
            if isinstance(row.prompt, str):
                return gold_tokens(encode, self._encode_bare, row.prompt, separator, answer)
            return GoldTokens(row.prompt, answer_tokens(self._encode_bare, separator + answer), False)
        except ValueError as error:
            raise NoTokens(field, str(error)) from None

    def _encode_bare(self, text: str) -> tuple[int, ...]:
        return self.encode(text, special_tokens=False)


def _prompt(row: Row, encode: Encode) -> tuple[int, ...]:
    return encode(row.prompt) if isinstance(row.prompt, str) else row.prompt


def _separator(row: Row) -> str:
    return default_separator(row.label) if row.separator is None else row.separator
