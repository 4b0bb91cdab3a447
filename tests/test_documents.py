"""Paths and symbols that the glossary and the page for contributors name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import words

ROOT = Path(__file__).parents[1]
PAGES = ("docs/glossary.md", "CONTRIBUTING.md")
PATH = re.compile(r"`([\w.-]+/[\w./-]*)`")
SYMBOL = re.compile(r"`(\w+)` in `([\w./-]+)`")


@pytest.mark.parametrize("page", PAGES)
def test_named_paths_exist(page: str) -> None:
    named = PATH.findall((ROOT / page).read_text())
    assert len(named) > 10
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_linked_paths_exist(page: str) -> None:
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / page).read_text())
    assert not [link for link in links if not (folder / link).exists()]


def test_named_symbols_are_in_their_files() -> None:
    named = SYMBOL.findall((ROOT / "docs/glossary.md").read_text())
    assert len(named) > 20
    missing = [
        f"{symbol} in {path}"
        for symbol, path in named
        if not re.search(rf"^\s*(class|def|async def) {symbol}\b|^{symbol}\b", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert not missing


def test_words_are_found_across_the_lines_of_a_comment() -> None:
    phrase = next(word for word in words.WORDS if " " in word)
    first, rest = phrase.split(" ", 1)
    assert list(words.found(f"a\n    # {first}\n    # {rest} there\n")) == [(2, phrase)]
    assert not list(words.found("renewed, a housekeeper"))
