"""From a source to a bundle: the stages of an export, in their order."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from neuroglot.bundle import Manifest, ModelFacts, describe_files, staged, write_manifest
from neuroglot.errors import InstallationError
from neuroglot_exporter.checkpoints import GGUF_SUFFIX, find_checkpoint

Progress = Callable[[str], None]
"""Is called with the name of every stage as it begins."""

_REQUIRED = {
    "torch": "exporter",
    "transformers": "exporter",
    "optimum": "exporter",
    "optimum.onnx": "exporter",
    "onnx": "exporter",
    "tokenizers": "exporter",
    "onnxruntime": "exporter,cpu",
}
_REQUIRED_FOR_GGUF = {"gguf": "exporter", "accelerate": "exporter"}  # by transformers
_TOOLS = ("neuroglot", "onnx", "optimum-onnx", "tokenizers", "torch", "transformers")


def export(
    source: str, folder: Path, *, revision: str | None = None, progress: Progress = lambda _stage: None
) -> Manifest:
    """Export a checkpoint: trace it, open its FFN, write a bundle, and verify it against transformers.

    Either a whole, verified bundle stands in `folder` afterwards, or nothing does.

    Args:
        source: a Hub id, a checkpoint's folder, a GGUF file, or `embedded:NAME`.
        folder: the bundle; must not exist.
        revision: branch, tag or commit of a Hub id.
        progress: is called with the name of every stage as it begins.

    Returns:
        What stands in the bundle's manifest, with the differences that the verification measured.

    Raises:
        BundleError: `folder` exists.
        CheckpointError: no such checkpoint, an unknown family, or an attribute of its config that could change the FFN.
        InstallationError: a package that exporting needs is missing.
        RewriteError: the traced graph is not what the family says.
        VerificationError: the exported graph does not compute what transformers computes.
    """
    with staged(folder) as aside:
        _require_packages(source)
        checkpoint = find_checkpoint(source, revision)
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is imported
        progress("importing torch and transformers")
        # Heavy, and only here: a wrong argument is told at once.
        from neuroglot_exporter.components import write_component
        from neuroglot_exporter.tokenizer_files import write_tokenizer
        from neuroglot_exporter.verification.verify import verify

        checkpoint.check_attributes()
        progress("loading the checkpoint")
        local = checkpoint.fetch()
        tokenizer = checkpoint.load_tokenizer(local)
        model = checkpoint.load_model(local)
        progress("tracing and rewriting the graph")
        write_tokenizer(tokenizer, aside)
        component = write_component(model, checkpoint.family, checkpoint.family.ffns[0], aside)
        facts = ModelFacts(
            family=checkpoint.family.name,
            dtype="float32",
            vocabulary_size=model.get_output_embeddings().weight.shape[0],
            max_positions=checkpoint.family.max_positions(model.config),
            eos_token_ids=_end_tokens(model, tokenizer),
            decoder_start_token_id=None,
            components=(component,),
        )
        progress("comparing with transformers")
        verification = verify(model, tokenizer, checkpoint.family, facts, aside)
        progress("hashing the bundle")
        manifest = Manifest(
            model=facts,
            files=describe_files(aside),
            source=checkpoint.source,
            source_revision=checkpoint.commit,
            tools={tool: version(tool) for tool in _TOOLS},
            verification=dataclasses.asdict(verification),
        )
        write_manifest(aside, manifest)
    return manifest


def _require_packages(source: str) -> None:
    required = _REQUIRED | (_REQUIRED_FOR_GGUF if source.endswith(GGUF_SUFFIX) else {})
    for module, extras in required.items():
        if find_spec(module) is None:
            raise InstallationError(
                f"exporting needs the package {module}, which is not installed: pip install 'neuroglot[{extras}]'"
            )


def _end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a generation: what the generation config says, else the tokenizer."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    if ends is None:
        return ()
    return tuple(ends) if isinstance(ends, list | tuple) else (ends,)
