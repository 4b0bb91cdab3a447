"""What a served model says of itself, and how long its rows may be."""

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
        manifest: of its bundle.
        settings: how it is run.
        name: what it is asked for by.
        budgets: how large the batches of its components may be, by name.

    Raises:
        BundleError: its batches may not even have one token.
    """
    facts = manifest.model
    most = settings.limits.tokens_per_row
    longest = _longest_row(budgets, min(most, facts.max_positions or most))
    if not longest:
        raise BundleError(
            f"a batch of {name!r} may take up {settings.batch_bytes} bytes, and not even one token fits into that: "
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


def _longest_row(budgets: Mapping[str, Budget], most: int) -> int:
    """The longest row, of up to `most` tokens, whose prompt can be read and whose first token can be scored."""
    decoder = budgets[DECODER]
    answer = Extent(1, scored=1, tapped=1, masked=1, added=True, kept=True)
    if ENCODER in budgets:
        most = budgets[ENCODER].longest_row(lambda tokens: Extent(tokens, tapped=1, kept=True), most)
        return decoder.longest_row(lambda tokens: answer._replace(cross=tokens), most)
    most = decoder.longest_row(lambda tokens: answer._replace(new=tokens), most)
    return decoder.longest_row(lambda tokens: answer._replace(past=tokens - 1), most)
