"""The process that tokenizes: `-m neuroglot_server.intake.tokenizer_worker TOKENIZER SECONDS BYTES`.

A tokenizer comes with its bundle, and so do its patterns and its normalizer, which may take any time and any memory on
some text. So it runs in a process of its own, within limits, and what it cannot bear ends this process alone.

Each message, on standard input and output, is its length in four bytes and then JSON. First the worker says what it has
loaded, or what is wrong with it; then it answers one job after the other, and it ends with its standard input, at the
latest when the server ends. A job is

    texts   [text, special tokens or not], each tokenized by itself
    most    ids of each text that are given at most; all if null
    spelled whether to give the tokens as the vocabulary spells them, too

and an answer has for each text its ids, how many they are in all, and its tokens.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tokenizers import Tokenizer

LENGTH = struct.Struct("<I")
"""How a message begins."""

_SECONDS_TO_LOAD = 60.0
_SECONDS_OF_A_SAMPLE = 1.0

_SAMPLE_BYTES = 2**13
_MOST_TOKENS_A_BYTE = 32
"""The most that Unicode makes of a character by its normal forms is 18, U+FDFA, which has three bytes."""


def main() -> None:
    """Load the tokenizer that the command line names, and answer until there are no more jobs.

    The command line also says how many seconds on a processor a job may take, and how many bytes of memory there are.
    """
    file, seconds, memory_bytes = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)  # they are for the server, which still has requests to answer
    _bound_memory(memory_bytes)
    jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _bound_time(_SECONDS_TO_LOAD)
    try:
        tokenizer, loaded = _load(file)
    except Exception as error:  # noqa: BLE001 - the tokenizers package raises plain Exception
        _write(answers, {"error": " ".join(str(error).split())})
        return
    _write(answers, loaded)
    while (job := _read(jobs)) is not None:
        _bound_time(seconds)
        _write(answers, _answer(tokenizer, job))
        _bound_time(0)


def _bound_memory(most: int) -> None:
    """Have allocations fail that are too much, where the system can."""
    try:
        import resource
    except ModuleNotFoundError:  # there is none on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bound_time(seconds: float) -> None:
    """Have the process end after so many seconds on a processor; 0 for no more bound."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _load(file: Path) -> tuple[Tokenizer, Mapping[str, Any]]:
    """The tokenizer, and what the server is told of it.

    Raises:
        Exception: it is none, or too much.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    decoder = json.dumps(_without_encoding(content))
    alone = Tokenizer.from_str(decoder)
    for name, sample in _samples():
        _bound_time(_SECONDS_OF_A_SAMPLE)
        ids = tokenizer.encode(sample).ids
        if len(ids) > _MOST_TOKENS_A_BYTE * _SAMPLE_BYTES:
            raise ValueError(f"it makes {len(ids)} tokens of {_SAMPLE_BYTES} bytes of {name}")
        if alone.decode(ids) != tokenizer.decode(ids):
            raise ValueError(f"its decoder gives another text of {name} than the whole of it does")
    _bound_time(0)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return tokenizer, {"decoder": decoder, "vocabulary": 1 + max(vocabulary.values(), default=-1)}


def _without_encoding(content: dict[str, Any]) -> dict[str, Any]:
    """What decodes: a tokenizer without the parts that only an encoder needs, and without patterns.

    Raises:
        ValueError: its decoder has a pattern.
    """
    if '"Regex"' in json.dumps(content.get("decoder")):
        raise ValueError("its decoder replaces what a pattern finds, which may take any time: give it plain strings")
    without = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "truncation", "padding"))
    model = content["model"]
    return content | without | {"model": model | {"merges": []} if "merges" in model else model}


def _samples() -> Iterator[tuple[str, str]]:
    """Texts that are hard to tokenize, each with its name."""
    yield "nothing", ""
    for name, pattern in (
        ("one letter", "a"),
        ("spaces", " "),
        ("newlines", "\n"),
        ("digits", "7"),
        ("dots", "."),
        ("combining marks", "\u0301"),
        ("marks on letters", "e\u0301\u0323"),
        ("ligatures", "\ufdfa"),
        ("control characters", "\x01\x7f"),
        ("joined emoji", "\U0001f468\u200d\U0001f469\u200d"),
        ("Chinese", "中"),
        ("Thai", "ภาษาไทย"),
    ):
        yield name, pattern * (_SAMPLE_BYTES // len(pattern.encode()))
    yield "one letter before another", "a" * (_SAMPLE_BYTES - 1) + "!"
    yield "all of Unicode", "".join([chr(code) for code in range(1, 0x30000, 97) if not 0xD800 <= code < 0xE000])


def _answer(tokenizer: Tokenizer, job: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a job comes to."""
    most: int | None = job["most"]
    ids: list[Sequence[int]] = []
    counts: list[int] = []
    tokens: list[Sequence[str]] = []
    for text, special in job["texts"]:
        encoding = tokenizer.encode(text, add_special_tokens=special)
        ids.append(encoding.ids[:most])
        counts.append(len(encoding.ids))
        if job["spelled"]:
            tokens.append(encoding.tokens[:most])
    return {"ids": ids, "counts": counts, "tokens": tokens}


def _read(jobs: BinaryIO) -> Any:
    """The next job; None after the last one."""
    length = jobs.read(LENGTH.size)
    return json.loads(jobs.read(*LENGTH.unpack(length))) if len(length) == LENGTH.size else None


def _write(answers: BinaryIO, answer: Mapping[str, Any]) -> None:
    content = json.dumps(answer).encode()
    answers.write(LENGTH.pack(len(content)) + content)
    answers.flush()


if __name__ == "__main__":
    main()
