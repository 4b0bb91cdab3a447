"""Model info: the description of a served model, and the maximum length of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from neuroglot.definitions.bundle import Manifest
from neuroglot.errors import BundleError
from neuroglot_server.core import DECODER, ENCODER, ComponentDescription, ModelDescription, Settings
from neuroglot_server.scheduler.budget import Budget, Extent


def describe(manifest: Manifest, settings: Settings, name: str, budgets: Mapping[str, Budget]) -> ModelDescription:
    """Describe a model.

    Args:
        manifest: the manifest of its bundle.
        settings: the model's settings.
        name: the name under which it is served.
        budgets: limits of its batches by component.

    Raises:
        BundleError: a batch of one token exceeds `batch_bytes`.
    """
    facts = manifest.model
    limit = settings.limits.tokens_per_row
    longest = _longest_row(budgets, min(limit, facts.max_positions or limit))
    if not longest:
        raise BundleError(
            f"a batch of model {name!r} is limited to {settings.batch_bytes} bytes, expected enough for one token: "
            "raise batch_bytes"
        )
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
        queue_tokens=settings.queue_tokens,
    )


def _longest_row(budgets: Mapping[str, Budget], limit: int) -> int:
    """The longest row, up to `limit` tokens, whose prefill and first scored token each fit into a batch."""
    decoder = budgets[DECODER]
    answer = Extent(1, scored=1, tapped=1, masked=1, added=True, kept=True)
    if ENCODER in budgets:
        limit = budgets[ENCODER].longest_row(lambda tokens: Extent(tokens, tapped=1, kept=True), limit)
        return decoder.longest_row(lambda tokens: answer._replace(cross=tokens), limit)
    limit = decoder.longest_row(lambda tokens: answer._replace(new=tokens), limit)
    return decoder.longest_row(lambda tokens: answer._replace(past=tokens - 1), limit)
