"""A served model: the one thing that a transport speaks to."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from neuroglot.bundle import TOKENIZER, Manifest, open_bundle
from neuroglot.errors import BundleError, Violation
from neuroglot_server.admission import Admission
from neuroglot_server.batcher import Batcher, Budget
from neuroglot_server.core import (
    Analysis,
    ComponentDescription,
    Group,
    GroupResult,
    ModelDescription,
    Settings,
    TokenizedText,
)
from neuroglot_server.engine import Engine
from neuroglot_server.generation import most_tokens
from neuroglot_server.planner import Planner
from neuroglot_server.text import EncodedRow, Text
from neuroglot_server.validation import check, refuse

_MOST_LOGITS = 2**27
"""Most logits of one batch: 512 MiB of float32."""


class Model:
    """A bundle that is loaded and runs.

    `load` makes one, on any thread; everything else happens on one event loop.

    Attributes:
        description: what it is and what may be asked of it.
    """

    def __init__(self, description: ModelDescription, text: Text, planner: Planner, admission: Admission) -> None:
        """Put the parts together; see `load`."""
        self.description = description
        self._text = text
        self._planner = planner
        self._admission = admission

    @classmethod
    def load(cls, folder: Path, name: str, settings: Settings) -> Model:
        """Read a bundle and start its session.

        Args:
            folder: the bundle.
            name: what it is asked for by.
            settings: how it is run.

        Raises:
            BundleError: the bundle is damaged, of another version, or of a kind that this server does not run.
            InstallationError: no usable ONNX Runtime.
        """
        manifest = open_bundle(folder)
        description = _describe(manifest, settings, name)
        (component,) = manifest.model.components
        text = Text.load(folder / TOKENIZER)
        norms = np.load(folder / component.norms)
        if norms.shape != (component.layers, component.neurons) or norms.dtype != np.float32:
            raise BundleError(
                f"{folder / component.norms} has {norms.dtype} {norms.shape}, expected float32 "
                f"{(component.layers, component.neurons)}: export the model again"
            )
        engine = Engine(folder / component.graph, component, settings.threads)
        planner = Planner(
            component=description.components[0],
            norms=norms,
            dtype=engine.signature.dtype,
            eos=frozenset(manifest.model.eos_token_ids),
            text=text,
            batcher=Batcher(engine.run, Budget(settings.batch_tokens, _MOST_LOGITS // manifest.model.vocabulary_size)),
            kernels=ThreadPoolExecutor(1, thread_name_prefix="kernels"),
        )
        return cls(description, text, planner, Admission(settings.queue_tokens))

    def tokenize(self, texts: Sequence[str], *, special_tokens: bool = True) -> list[TokenizedText]:
        """Ids and spelling of the tokens of each text, with what the tokenizer's post-processor adds or without."""
        return self._text.tokenize(texts, special_tokens=special_tokens)

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
        with self._admission.admit(_tokens(rows, analysis)):
            return await self._planner.run(group.id, rows, analysis)

    async def close(self) -> None:
        """Fail what waits, and come back when the running batch is done."""
        await self._planner.batcher.close()
        await self._admission.emptied()
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
                encoded = self._text.encode_row(row)
            except ValueError as error:
                violations.append(Violation(f"{path}.answers[0]", f"{error}: give a word or leave it out"))
                continue
            answer = _answer_tokens(encoded, analysis)
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
    if len(facts.components) != 1 or facts.decoder_start_token_id is not None:
        raise BundleError(
            f"{name!r} is an encoder-decoder ({', '.join(part.name for part in facts.components)}): this server runs "
            "causal models"
        )
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


def _answer_tokens(row: EncodedRow, analysis: Analysis) -> int:
    """Most tokens that are run after a row's prompt."""
    if analysis.prediction is None:
        return 0
    return most_tokens(row, analysis.prediction) if analysis.prediction.generate else len(row.gold)


def _tokens(rows: Sequence[EncodedRow], analysis: Analysis) -> int:
    """How many tokens a group runs, over all of its variants."""
    prompts = sum(len(row.prompt) for row in rows)
    answers = sum(1 + _answer_tokens(row, analysis) for row in rows)
    anew = sum(any(part.scope.before_last for part in variant.interventions) for variant in analysis.variants)
    return prompts * (1 + anew) + answers * (1 + len(analysis.variants))
