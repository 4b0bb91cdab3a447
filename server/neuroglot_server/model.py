"""A served model: the one thing that a transport speaks to."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuroglot.bundle import TOKENIZER, Component, Manifest, open_bundle
from neuroglot.errors import BundleError, Violation
from neuroglot_server.admission import Admission
from neuroglot_server.batcher import Batcher, Budget
from neuroglot_server.core import (
    DECODER,
    ENCODER,
    Analysis,
    ComponentDescription,
    Group,
    GroupResult,
    ModelDescription,
    Settings,
    TokenizedText,
)
from neuroglot_server.engine import Engine
from neuroglot_server.generation import answer_tokens
from neuroglot_server.planner import Planner
from neuroglot_server.reading import Encode, Prefill
from neuroglot_server.signature import Signature, interfaces
from neuroglot_server.text import EncodedRow, Text
from neuroglot_server.validation import check, refuse
from neuroglot_server.worker import Worker

_MOST_LOGITS = 2**27
"""Most logits of one batch: 512 MiB of float32."""
_MOST_MASK_BYTES = 2**29
"""Most that the masks and overrides of one batch take up where they differ between a row's positions."""


class Model:
    """A bundle that is loaded and runs.

    `load` makes one, on any thread; everything else happens on one event loop.

    Attributes:
        description: what it is and what may be asked of it.
    """

    def __init__(
        self,
        description: ModelDescription,
        planner: Planner,
        batchers: Sequence[Batcher],
        worker: Worker,
        admission: Admission,
    ) -> None:
        """Put the parts together; see `load`."""
        self.description = description
        self._planner = planner
        self._batchers = batchers
        self._worker = worker
        self._admission = admission

    @classmethod
    def load(cls, folder: Path, name: str, settings: Settings) -> Model:
        """Read a bundle and start its sessions.

        Args:
            folder: the bundle.
            name: what it is asked for by.
            settings: how it is run.

        Raises:
            BundleError: the bundle is damaged, of another version, or of a kind that this server does not run.
            InstallationError: no usable ONNX Runtime.
        """
        manifest = open_bundle(folder)
        facts = manifest.model
        start = facts.decoder_start_token_id
        graphs = interfaces(facts)
        text = Text.load(folder / TOKENIZER, encoder_decoder=start is not None)
        norms = {component.name: _norms(folder, component) for component in facts.components}
        worker = Worker()
        batchers: dict[str, Batcher] = {}
        for component in facts.components:
            engine = Engine(folder / component.graph, component, graphs[component.name], settings.threads)
            budget = _budget(engine.signature, facts.vocabulary_size, settings)
            batchers[component.name] = Batcher(engine.run, budget, worker)
        description = _describe(manifest, settings, name)
        planner = Planner(
            components=description.components,
            norms=norms,
            dtype=np.dtype(facts.dtype),
            eos=frozenset(facts.eos_token_ids),
            text=text,
            reader=Prefill(batchers[DECODER]) if start is None else Encode(batchers[ENCODER], start),
            decoder=batchers[DECODER],
            kernels=ThreadPoolExecutor(1, thread_name_prefix="kernels"),
        )
        return cls(description, planner, tuple(batchers.values()), worker, Admission(settings.queue_tokens))

    def tokenize(self, texts: Sequence[str], *, special_tokens: bool = True) -> list[TokenizedText]:
        """Ids and spelling of the tokens of each text, with what the tokenizer's post-processor adds or without."""
        return self._planner.text.tokenize(texts, special_tokens=special_tokens)

    async def analyze(self, group: Group, analysis: Analysis) -> GroupResult:
        """Analyse one group. A caller that is cancelled takes its rows out of the queue at once.

        Raises:
            InvalidRequest: fields of the request are wrong.
            QueueFull: too much is waiting.
            NotFinite: a row's baseline has activations or logits that are not finite.
            ModelClosed: the model went down meanwhile.
        """
        check(group, analysis, self.description)
        rows = self._encode(group, analysis)
        with self._admission.admit(self._planner.tokens(rows, analysis)):
            return await self._planner.run(group.id, rows, analysis)

    async def close(self) -> None:
        """Fail what waits, and come back when the running batch is done."""
        for batcher in self._batchers:
            await batcher.close()
        await self._admission.emptied()
        self._worker.close()
        self._planner.kernels.shutdown()

    def _encode(self, group: Group, analysis: Analysis) -> list[EncodedRow]:
        """The rows' tokens.

        Raises:
            InvalidRequest: a prompt or an answer has no tokens, or a row has too many.
        """
        rows: list[EncodedRow] = []
        violations: list[Violation] = []
        most = self.description.limits.tokens_per_row
        for index, row in enumerate(group.rows):
            path = f"group.rows[{index}]"
            prompt = f"{path}.text" if isinstance(row.prompt, str) else f"{path}.token_ids.ids"
            try:
                encoded = self._planner.text.encode_row(row)
            except ValueError as error:
                violations.append(Violation(f"{path}.answers[0]", f"{error}: give a word or leave it out"))
                continue
            answer = answer_tokens(encoded, analysis.prediction)
            if not encoded.prompt:
                violations.append(Violation(prompt, f"is {row.prompt!r}, which has no tokens: give a longer prompt"))
            elif len(encoded.prompt) + answer > most:
                violations.append(
                    Violation(
                        prompt,
                        f"has {len(encoded.prompt)} tokens, and up to {answer} more for the answer, expected at most "
                        f"{most} together: shorten it",
                    )
                )
            rows.append(encoded)
        refuse(violations)
        return rows


def _describe(manifest: Manifest, settings: Settings, name: str) -> ModelDescription:
    facts = manifest.model
    longest = min(settings.limits.tokens_per_row, settings.batch_tokens, facts.max_positions or settings.batch_tokens)
    return ModelDescription(
        name=name,
        family=facts.family,
        source=manifest.source,
        source_revision=manifest.source_revision,
        bundle_identity=manifest.identity,
        components=tuple(
            ComponentDescription(
                part.name, part.layers, part.neurons, part.hidden_size, part.activation_function, part.gated
            )
            for part in facts.components
        ),
        vocabulary_size=facts.vocabulary_size,
        dtype=facts.dtype,
        limits=replace(settings.limits, tokens_per_row=longest),
    )


def _norms(folder: Path, component: Component) -> NDArray[np.float32]:
    """The norms of a component's value rows, `[layers, neurons]`."""
    norms: NDArray[np.float32] = np.load(folder / component.norms)
    if norms.shape != (component.layers, component.neurons) or norms.dtype != np.float32:
        raise BundleError(
            f"{folder / component.norms} has {norms.dtype} {norms.shape}, expected float32 "
            f"{(component.layers, component.neurons)}: export the model again"
        )
    return norms


def _budget(signature: Signature, vocabulary_size: int, settings: Settings) -> Budget:
    """How large the batches of a component may be."""
    mask_bytes = 2 * signature.layers * signature.neurons * signature.dtype.itemsize
    return Budget(settings.batch_tokens, _MOST_LOGITS // vocabulary_size, _MOST_MASK_BYTES // mask_bytes)
