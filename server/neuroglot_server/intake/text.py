"""Text to tokens and back, with the tokenizer that travels in the bundle."""

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
    """A row as the model sees it.

    Attributes:
        label: the row's label.
        prompt: token ids of the prompt, special tokens included.
        gold: token ids of the gold answer; empty without one.
        joint: whether the tokenizer goes on from this prompt to `gold` by itself; of an encoder-decoder, whose answer
            does not go on from the prompt, always.
        answers: the accepted answers as they were given.
        r_index: where r is among the gold tokens, see `neuroglot.definitions.gold.r_index`.
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
"""From a text to its tokens."""


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
    """The tokenizer of one model: from text to tokens in a process of its own, and back in this one."""

    def __init__(self, process: TokenizerProcess, decoder: Tokenizer, *, encoder_decoder: bool) -> None:
        """Put the parts together; see `load`."""
        self._tokenizing = Tokenizing(process)
        self._decoder = decoder
        self._encoder_decoder = encoder_decoder
        self.breaks_line = cache(self._breaks_line)

    @classmethod
    def load(cls, file: Path, *, encoder_decoder: bool, vocabulary_size: int | None = None) -> Text:
        """Read a `tokenizer.json`, whose truncation and padding are not done.

        Args:
            file: the file.
            encoder_decoder: whether answers are texts of their own, and not how prompts go on.
            vocabulary_size: how many tokens the model has, of which the tokenizer may name no more; any if None.

        Raises:
            BundleError: the file is no tokenizer, takes too much time or memory, or is another model's.
        """
        return cls.of(TokenizerProcess(file), encoder_decoder=encoder_decoder, vocabulary_size=vocabulary_size)

    @classmethod
    def of(cls, process: TokenizerProcess, *, encoder_decoder: bool, vocabulary_size: int | None = None) -> Text:
        """Take a process that was started, and wait until it has loaded its tokenizer; as `load`."""
        loaded = process.loaded()
        if vocabulary_size is not None and loaded["vocabulary"] > vocabulary_size:
            process.close()
            raise BundleError(
                f"{process.file} has tokens up to {loaded['vocabulary'] - 1}, and the model's vocabulary ends at "
                f"{vocabulary_size - 1}: export the model again"
            )
        return cls(process, Tokenizer.from_str(loaded["decoder"]), encoder_decoder=encoder_decoder)

    async def encode(
        self, texts: Sequence[tuple[str, bool]], tenant: str = "", most: int | None = None
    ) -> list[Tokens]:
        """Token ids of texts, each with what the tokenizer's post-processor adds (BOS, `</s>`) or without.

        Args:
            texts: each with whether special tokens are added.
            tenant: whose request it is.
            most: ids of each that are given at most; None for all.

        Raises:
            CannotTokenize: a text takes too much time or memory.
            ModelClosed: the model went down meanwhile.
        """
        return await self._tokenizing.encode(texts, tenant, most)

    async def tokenize(
        self, texts: Sequence[str], tenant: str = "", *, special_tokens: bool = True
    ) -> list[TokenizedText]:
        """Ids and spelling of the tokens of each text; raises as `encode` does."""
        asked = [(text, special_tokens) for text in texts]
        tokens = await self._tokenizing.encode(asked, tenant, spelled=True)
        return [TokenizedText(one.ids, one.spelled) for one in tokens]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        text: str = self._decoder.decode(list(ids), skip_special_tokens=True)
        return text

    async def close(self) -> None:
        """Encode no more, and come back when all that was to be encoded has failed."""
        await self._tokenizing.close()

    def _breaks_line(self, token: int) -> bool:
        return "\n" in self.decode((token,))

    def of_answers(self, row: Row) -> list[tuple[str, bool]]:
        """What is encoded for a row beside its prompt, each with whether special tokens are added."""
        separator = "" if self._encoder_decoder else _separator(row)
        texts = []
        for said in (*row.answers[:1], *row.choices, row.distractor):
            if said:
                texts.append((separator + said, False))
                if isinstance(row.prompt, str) and not self._encoder_decoder:
                    texts.append((row.prompt + separator + said, True))
        return texts

    def encode_row(self, row: Row, encode: Encode, encode_bare: Encode) -> EncodedRow:
        """Tokens of a row's prompt, of its gold answer, of its choices and of its distractor.

        Gold tokens of a prompt that was given as token ids are those of separator and answer by themselves, and those
        of an encoder-decoder are the answer's, for there nothing separates it from the prompt. Choices and distractor
        are read as the gold answer is.

        Args:
            row: the row.
            encode: the tokens of its prompt, and of those texts of `of_answers` that have special tokens.
            encode_bare: the tokens of the others.

        Raises:
            NoTokens: the gold answer, a choice or the distractor has none.
        """

        def answer(said: str, field: str) -> GoldTokens:
            return self._answer(row, said, field, encode, encode_bare)

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
        return r_index([str(self._decoder.id_to_token(token)) for token in gold]) if self._encoder_decoder else 0

    def _answer(self, row: Row, answer: str, field: str, encode: Encode, encode_bare: Encode) -> GoldTokens:
        """The tokens of a row's prompt, and of something that the model might say after it."""
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
