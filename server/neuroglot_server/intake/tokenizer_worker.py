"""The process that tokenizes: `-m neuroglot_server.intake.tokenizer_worker TOKENIZER SECONDS BYTES`.

A bundle brings its own tokenizer, whose patterns and normalizer may take unbounded time and memory on some texts. So it
runs in a separate process with limits on both, and exceeding them ends this process only.

Each message, on standard input and output, is its length in four bytes (little-endian), followed by JSON. The first
message of the worker describes the loaded tokenizer, or the error. Then the worker answers one job after the other, and
ends when its standard input is closed, at the latest when the server ends. A job is

    texts   [text, special tokens or not], each tokenized by itself
    most    maximum ids to return for each text; null for all
    spelled whether to return the strings of the tokens, too

and its result has for each text the `ids`, their total number in `counts`, and the strings in `tokens`.
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
"""The header of a message: its length."""

_SECONDS_TO_LOAD = 60.0
_SECONDS_OF_A_SAMPLE = 1.0

_SAMPLE_BYTES = 2**13
_MAX_TOKENS_PER_BYTE = 32
"""Unicode normalization expands a character to at most 18: U+FDFA, which has three bytes."""


def main() -> None:
    """Load the tokenizer, and answer jobs until standard input is closed.

    Command-line arguments: file of the tokenizer, CPU seconds per job, and bytes of memory.
    """
    file, seconds, memory_bytes = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)  # only the server handles them: it still has requests to answer
    _bound_memory(memory_bytes)
    jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the results
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


def _bound_memory(limit: int) -> None:
    """Limit the address space of the process, so that larger allocations fail; does nothing on Windows."""
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bound_time(seconds: float) -> None:
    """End the process after the given CPU time; 0 removes the limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _load(file: Path) -> tuple[Tokenizer, Mapping[str, Any]]:
    """Load and check the tokenizer; return it, and its description for the server.

    Raises:
        Exception: the file is not a tokenizer, or exceeds its limits on a sample.
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
        if len(ids) > _MAX_TOKENS_PER_BYTE * _SAMPLE_BYTES:
            raise ValueError(f"it makes {len(ids)} tokens of {_SAMPLE_BYTES} bytes of {name}")
        if alone.decode(ids) != tokenizer.decode(ids):
            raise ValueError(f"its decoder gives another text of {name} than the whole of it does")
    _bound_time(0)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return tokenizer, {"decoder": decoder, "vocabulary": 1 + max(vocabulary.values(), default=-1)}


def _without_encoding(content: dict[str, Any]) -> dict[str, Any]:
    """Return the tokenizer's JSON with only the parts that decoding needs, which have no patterns.

    Raises:
        ValueError: the decoder has a pattern.
    """
    if '"Regex"' in json.dumps(content.get("decoder")):
        raise ValueError("its decoder has a pattern, which may take unbounded time: use plain strings instead")
    without = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "truncation", "padding"))
    model = content["model"]
    return content | without | {"model": model | {"merges": []} if "merges" in model else model}


def _samples() -> Iterator[tuple[str, str]]:
    """Yield texts that are hard to tokenize, each with its name."""
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
    """Run a job."""
    limit: int | None = job["most"]
    ids: list[Sequence[int]] = []
    counts: list[int] = []
    tokens: list[Sequence[str]] = []
    for text, special in job["texts"]:
        encoding = tokenizer.encode(text, add_special_tokens=special)
        ids.append(encoding.ids[:limit])
        counts.append(len(encoding.ids))
        if job["spelled"]:
            tokens.append(encoding.tokens[:limit])
    return {"ids": ids, "counts": counts, "tokens": tokens}


def _read(jobs: BinaryIO) -> Any:
    """Read the next job; None at the end of the input."""
    length = jobs.read(LENGTH.size)
    return json.loads(jobs.read(*LENGTH.unpack(length))) if len(length) == LENGTH.size else None


def _write(answers: BinaryIO, answer: Mapping[str, Any]) -> None:
    content = json.dumps(answer).encode()
    answers.write(LENGTH.pack(len(content)) + content)
    answers.flush()


if __name__ == "__main__":
    main()
