"""Checks whether a bundle can have been exported from a checkpoint."""

from __future__ import annotations

from neuroglot.definitions.bundle import Manifest, ModelFacts
from neuroglot_exporter.checkpoints import Checkpoint
from neuroglot_exporter.errors import VerificationError
from neuroglot_exporter.skeleton import Geometry, geometries, skeleton


def check_geometry(facts: ModelFacts, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose family or geometry is not the bundle's; no weights are loaded.

    Raises:
        VerificationError: they differ; the message gives the difference.
    """
    if checkpoint.family.name != facts.family:
        raise VerificationError(
            f"{checkpoint.source} is of the family {checkpoint.family.name}, the bundle of the family {facts.family}: "
            "give the checkpoint that it was made from"
        )
    model = skeleton(checkpoint)
    given = geometries(model, checkpoint.family)
    expected = {one.name: Geometry(one.layers, one.neurons, one.hidden_size) for one in facts.components}
    for name, geometry in given.items():
        if geometry != expected.get(name):
            raise VerificationError(
                f"the {name} of {checkpoint.source} has {geometry}, the bundle's has {expected.get(name)}: give the "
                "checkpoint that it was made from"
            )
    vocabulary = model.get_output_embeddings().weight.shape[0]
    if vocabulary != facts.vocabulary_size:
        raise VerificationError(
            f"{checkpoint.source} has a vocabulary of {vocabulary:,}, the bundle one of {facts.vocabulary_size:,}: "
            "give the checkpoint that it was made from"
        )


def other_source(manifest: Manifest, checkpoint: Checkpoint) -> str:
    """A note if the checkpoint is not the one that the manifest names; empty if it is."""
    named = _name(manifest.source, manifest.source_revision)
    given = _name(checkpoint.source, checkpoint.commit)
    return "" if named == given else f"the bundle was made from {named}, and is compared with {given}"


def _name(source: str, revision: str) -> str:
    return f"{source} at revision {revision}" if revision else source
