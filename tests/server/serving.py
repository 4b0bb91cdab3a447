"""A model loaded for the length of a block, and a group for it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from neuroglot.definitions.bundle import TOKENIZER, describe_files, read_manifest, write_manifest
from neuroglot_server.core import Analysis, BatchRun, Group, GroupResult, Observer, Row, Settings, Unobserved
from neuroglot_server.models.model import Model

CAPITALS = Group(
    "FR",
    (
        Row("en", "The capital of France is", ("Paris",)),
        Row("es", "La capital de Francia es", ("París", "Paris")),
        Row("ru", "Столица Франции —", ("Париж",)),
        Row("th", "เมืองหลวงของฝรั่งเศสคือ", ("ปารีส",)),
        Row("zh", "法国的首都是", ("巴黎",)),
    ),
)
"""A group of five languages, with prompts of different lengths."""


@asynccontextmanager
async def served(
    bundle: Path, settings: Settings | None = None, observer: Observer | None = None
) -> AsyncIterator[Model]:
    """Load a bundle, and close it at the end."""
    model = Model.load(bundle, "random-bloom", settings or Settings(threads=1), observer)
    try:
        yield model
    finally:
        await model.close()


class Recorder(Unobserved):
    """Records the metrics of a model."""

    def __init__(self) -> None:
        self.runs: list[BatchRun] = []
        self.hits: dict[str, int] = {}
        self.misses: dict[str, int] = {}

    @property
    def tokens(self) -> int:
        """Number of tokens computed in batches."""
        return sum(run.tokens for run in self.runs)

    def batch(self, run: BatchRun) -> None:
        self.runs.append(run)

    def cached(self, cache: str, hit_tokens: int, missed_tokens: int) -> None:
        self.hits[cache] = self.hits.get(cache, 0) + hit_tokens
        self.misses[cache] = self.misses.get(cache, 0) + missed_tokens


def analyze(bundle: Path, group: Group, analysis: Analysis, settings: Settings | None = None) -> GroupResult:
    """Load a bundle, analyse one group, and return the result."""

    async def ask() -> GroupResult:
        async with served(bundle, settings) as model:
            return await model.analyze(group, analysis)

    return asyncio.run(ask())


def changed_bundle(bundle: Path, folder: Path, *, eos: int | None = None, newline: int | None = None) -> Path:
    """Copy a bundle, with another end-of-sequence token or another token as the newline."""
    shutil.copytree(bundle, folder)
    manifest = read_manifest(folder)
    model = manifest.model
    if eos is not None:
        model = replace(model, eos_token_ids=(eos,))
    if newline is not None:
        file = folder / TOKENIZER
        content = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        spelling = next(token for token, index in vocabulary.items() if index == newline)
        vocabulary[spelling], vocabulary["Ċ"] = vocabulary["Ċ"], newline
        file.write_text(json.dumps(content), encoding="utf-8")
    write_manifest(folder, replace(manifest, model=model, files=describe_files(folder)))
    return folder
