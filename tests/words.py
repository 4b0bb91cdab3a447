"""Refuses words that this project once used for things that have a common name: `python -m tests.words` lists them.

See docs/glossary.md for the words to use.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

WORDS = ("whoever", "anew", "look away", "for nobody", "who is inside", "the house", "who may be in", "sightings")
"""Words and phrases, in any case; a phrase is found across the line breaks of a comment, too."""

_FOLDERS = ("client", "server", "exporter", "tests", "docs", "proto", "deploy")
_SUFFIXES = frozenset({".py", ".pyi", ".md", ".proto", ".toml", ".yml", ".yaml", ".service", ".Dockerfile"})
_EXCLUDED = ("tests/words.py", "docs/glossary.md", "client/neuroglot/v1/")  # the stubs repeat the comments of proto/
_BREAK = r"[\s#/]+"
_PATTERN = re.compile("|".join(rf"\b{_BREAK.join(word.split())}\b" for word in WORDS), re.IGNORECASE)


def found(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers and words."""
    for match in _PATTERN.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, re.sub(_BREAK, " ", match[0])


def main() -> int:
    """List every word with its file and line; 1 if there is one, otherwise 0."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(p for name in _FOLDERS for p in (ROOT / name).rglob("*"))]
    lines = [
        f"{name}:{number}:{word}"
        for path in sorted(paths)
        if path.suffix in _SUFFIXES and not (name := path.relative_to(ROOT).as_posix()).startswith(_EXCLUDED)
        for number, word in found(path.read_text("utf-8"))
    ]
    print("\n".join(lines) or "no private words")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
