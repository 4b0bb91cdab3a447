"""Encodes text to tokens and decodes it, with the tokenizer of the bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from neuroglot.definitions.gold import GoldTokens, answer_tokens, gold_tokens, r_index
from neuroglot.errors import BundleError
from neuroglot.request.groups import default_separator
from neuroglot_server.core import Row, TokenizedText
from neuroglot_server.intake.tokenizer_process import TokenizerProcess, Tokenizing, Tokens


class EncodedRow(NamedTuple):
    """A tokenized row.

    Attributes:
        label: the row's label.
        prompt: token ids of the prompt, special tokens included.
        gold: token ids of the gold answer; empty without one.
        joint: whether tokenizing prompt and answer together gives this prompt followed by `gold`; always True for an
            encoder-decoder, whose answer is a text of its own.
        answers: the accepted answers, as text.
        r_index: index of r among the gold tokens, see `neuroglot.definitions.gold.r_index`.
        choices: token ids of each of the choices, whose likelihoods are compared.
        distractor: token ids of the wrong answer, starting at its own `r_index`; empty without one.
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
"""Maps a text to its token ids."""


class NoTokens(ValueError):
    """A text of a row has no tokens.

    Attributes:
        field: path of the text in the row, such as `choices[1]`.
    """

    def __init__(self, field: str, reason: str) -> None:
        """Create the error for a field of the row."""
        self.field = field
        super().__init__(reason)


class Text:
    """The tokenizer of a model: encodes in a process of its own, and decodes in this process."""

    def __init__(self, process: TokenizerProcess, decoder: Tokenizer, *, encoder_decoder: bool) -> None:
        """Combine a process that encodes and a tokenizer that decodes; see `load`."""
        self._tokenizing = Tokenizing(process)
        self._decoder = decoder
        self._encoder_decoder = encoder_decoder
        self.breaks_line = cache(self._breaks_line)

    @classmethod
    def load(cls, file: Path, *, encoder_decoder: bool, vocabulary_size: int | None = None) -> Text:
        """Load a `tokenizer.json`; its truncation and padding are disabled.

        Args:
            file: the file.
            encoder_decoder: whether answers are texts of their own, instead of continuations of prompts.
            vocabulary_size: vocabulary size of the model, which the tokenizer must not exceed; None for any.

        Raises:
            BundleError: the file is not a tokenizer, exceeds its time or memory, or belongs to another model.
        """
        return cls.of(TokenizerProcess(file), encoder_decoder=encoder_decoder, vocabulary_size=vocabulary_size)

    @classmethod
    def of(cls, process: TokenizerProcess, *, encoder_decoder: bool, vocabulary_size: int | None = None) -> Text:
        """Use a process that was started, and wait until it has loaded its tokenizer; raises as `load`."""
        loaded = process.loaded()
        if vocabulary_size is not None and loaded["vocabulary"] > vocabulary_size:
            process.close()
            raise BundleError(
                f"{process.file} has tokens up to {loaded['vocabulary'] - 1}, and the model's vocabulary ends at "
                f"{vocabulary_size - 1}: export the model again"
            )
        return cls(process, Tokenizer.from_str(loaded["decoder"]), encoder_decoder=encoder_decoder)

    async def encode(
        self, texts: Sequence[tuple[str, bool]], tenant: str = "", limit: int | None = None
    ) -> list[Tokens]:
        """Encode texts, each with or without the special tokens of the tokenizer's post-processor (BOS, `</s>`).

        Args:
            texts: the texts, each with whether special tokens are added.
            tenant: name of the tenant.
            limit: maximum ids to return for each text; None for all.

        Raises:
            CannotTokenize: the tokenizer exceeds its time or memory on a text.
            ModelClosed: the model was closed meanwhile.
        """
        return await self._tokenizing.encode(texts, tenant, limit)

    async def tokenize(
        self, texts: Sequence[str], tenant: str = "", *, special_tokens: bool = True
    ) -> list[TokenizedText]:
        """Return ids and vocabulary strings of the tokens of each text; raises as `encode`."""
        with_special = [(text, special_tokens) for text in texts]
        tokens = await self._tokenizing.encode(with_special, tenant, spelled=True)
        return [TokenizedText(encoded.ids, encoded.spelled) for encoded in tokens]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode tokens to text, without special tokens."""
        text: str = self._decoder.decode(list(ids), skip_special_tokens=True)
        return text

    async def close(self) -> None:
        """Close the tokenizer, and wait until all pending requests have failed."""
        await self._tokenizing.close()

    def _breaks_line(self, token: int) -> bool:
        return "\n" in self.decode((token,))

    def of_answers(self, row: Row) -> list[tuple[str, bool]]:
        """Return the texts of a row's gold answer, choices and distractor, each with whether to add special tokens."""
        separator = "" if self._encoder_decoder else _separator(row)
        texts = []
        for answer in (*row.answers[:1], *row.choices, row.distractor):
            if answer:
                texts.append((separator + answer, False))
                if isinstance(row.prompt, str) and not self._encoder_decoder:
                    texts.append((row.prompt + separator + answer, True))
        return texts

    def encode_row(self, row: Row, encode: Encode, encode_bare: Encode) -> EncodedRow:
        """Tokenize a row: its prompt, gold answer, choices and distractor.

        If the prompt is given as token ids, the gold tokens are those of separator and answer, encoded alone. For an
        encoder-decoder they are those of the answer alone, without a separator. Choices and distractor are encoded in
        the same way as the gold answer.

        Args:
            row: the row.
            encode: returns the token ids of the prompt, and of the texts of `of_answers` with special tokens.
            encode_bare: returns the token ids of the texts of `of_answers` without special tokens.

        Raises:
            NoTokens: the gold answer, a choice or the distractor has no tokens.
        """

        def answer(content: str, field: str) -> GoldTokens:
            return self._answer(row, content, field, encode, encode_bare)

        choices: tuple[tuple[int, ...], ...] = ()
        if row.choices:
            choices = tuple([answer(choice, f"choices[{index}]").gold for index, choice in enumerate(row.choices)])
        wrong: tuple[int, ...] = ()
        if row.distractor:
            wrong = answer(row.distractor, "distractor").gold
            wrong = wrong[self._r_index(wrong) :]
        if not row.answers:
            return EncodedRow(row.label, _prompt(row, encode), (), False, (), 0, choices, wrong)
        prompt, gold, joint = answer(row.answers[0], "answers[0]")
        return EncodedRow(row.label, prompt, gold, joint, row.answers, self._r_index(gold), choices, wrong)

    def _r_index(self, gold: tuple[int, ...]) -> int:
        """Return the index of r among the tokens of an answer."""
        return r_index([str(self._decoder.id_to_token(token)) for token in gold]) if self._encoder_decoder else 0

    def _answer(self, row: Row, answer: str, field: str, encode: Encode, encode_bare: Encode) -> GoldTokens:
        """Tokenize a row's prompt, and an answer, choice or distractor after it."""
        separator = _separator(row)
        try:
            if self._encoder_decoder:
                return GoldTokens(_prompt(row, encode), answer_tokens(encode_bare, answer), True)
            if isinstance(row.prompt, str):
                return gold_tokens(encode, encode_bare, row.prompt, separator, answer)
            return GoldTokens(row.prompt, answer_tokens(encode_bare, separator + answer), False)
        except ValueError as error:
            raise NoTokens(field, str(error)) from None


def _prompt(row: Row, encode: Encode) -> tuple[int, ...]:
    return encode(row.prompt) if isinstance(row.prompt, str) else row.prompt


def _separator(row: Row) -> str:
    return default_separator(row.label) if row.separator is None else row.separator
