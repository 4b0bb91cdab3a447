"""Writes the tokenizer files, which the server reads without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from neuroglot.definitions.bundle import TOKENIZER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = "chat_template.jinja"


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write `tokenizer.json`, and `chat_template.jinja` if the tokenizer has one.

    Removes padding and truncation that a training script may have left in the tokenizer: the server pads rows, and a
    row that is too long is an error.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    (folder / TOKENIZER).write_text(backend.to_str(pretty=True), encoding="utf-8")
    if isinstance(tokenizer.chat_template, str):
        (folder / CHAT_TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
