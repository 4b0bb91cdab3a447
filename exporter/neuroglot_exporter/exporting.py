"""The stages of an export, from a source to a bundle."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from neuroglot.definitions.bundle import (
    PROBE,
    Manifest,
    ModelFacts,
    describe_file,
    describe_files,
    staged,
    write_manifest,
)
from neuroglot.definitions.probe import to_json
from neuroglot_exporter.checkpoints import Checkpoint, find_checkpoint
from neuroglot_exporter.interrupts import ctrl_c_held_back
from neuroglot_exporter.packages import require_packages

Progress = Callable[[str], None]
"""Called with the name of every stage as it begins."""

DTYPES = ("float32", "float16")
"""Data types of a bundle's weights and activations."""

_TOOLS = ("neuroglot", "onnx", "optimum-onnx", "tokenizers", "torch", "transformers")


def export(
    source: str | Path,
    folder: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    verify: bool = True,
    progress: Progress = lambda _stage: None,
) -> Manifest:
    """Export a checkpoint: trace it, expose its FFN, write a bundle, verify it against transformers, record its probe.

    The verification runs in a separate process, once this one has released the model. The export is atomic: `folder`
    is created with a complete and verified bundle, or not at all.

    Args:
        source: a Hub id, a checkpoint's folder, a GGUF file, or `embedded:NAME`; a `Path` is never a Hub id.
        folder: the bundle; must not exist.
        revision: branch, tag or commit of a Hub id.
        dtype: of weights and activations: `float32`, or `float16`, which is for GPUs.
        verify: verify the bundle. Otherwise its manifest has no measurements, and the expected result of its probe is
            computed by its own graphs.
        progress: called with the name of every stage as it begins.

    Returns:
        The bundle's manifest, with the differences that the verification measured.

    Raises:
        BundleError: `folder` exists.
        CheckpointError: no such checkpoint, an unknown family, or an attribute of its config that could change the FFN.
        ExportError: too little of the disk is free.
        InstallationError: a package that exporting needs is missing.
        RewriteError: the traced graph does not match the family.
        VerificationError: the exported graph does not compute what transformers computes.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; a bundle has one of {', '.join(DTYPES)}")
    source = str(source.expanduser().absolute()) if isinstance(source, Path) else source
    with staged(Path(folder)) as aside:
        require_packages(source, "exporting")
        checkpoint = find_checkpoint(source, revision)
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is imported
        progress("importing torch and transformers")
        # Heavy imports, after the arguments were checked: a wrong argument fails at once.
        from neuroglot_exporter import needs
        from neuroglot_exporter.verification.probe import record_of_graphs
        from neuroglot_exporter.verification.process import verify_apart

        checkpoint.check_attributes()
        needed = needs.estimate(checkpoint, dtype)
        progress(str(needed))
        needs.check(needed, aside)
        facts = _write_model(checkpoint, dtype, aside, progress)
        progress("hashing the bundle")
        manifest = Manifest(
            model=facts,
            files=describe_files(aside),
            source=checkpoint.source,
            source_revision=checkpoint.commit,
            tools={tool: version(tool) for tool in _TOOLS},
        )
        write_manifest(aside, manifest)
        if verify:
            measured, probe = verify_apart(aside, checkpoint.fetch() / (checkpoint.gguf_file or ""), progress)
            manifest = dataclasses.replace(manifest, verification=measured)
        else:
            progress("recording the probe")
            probe = to_json(record_of_graphs(aside, facts))
        (aside / PROBE).write_text(probe, encoding="utf-8")
        manifest = dataclasses.replace(manifest, files={**manifest.files, PROBE: describe_file(aside / PROBE)})
        write_manifest(aside, manifest)
    return manifest


def _write_model(checkpoint: Checkpoint, dtype: str, folder: Path, progress: Progress) -> ModelFacts:
    """Write all files of a bundle except the manifest. The model's memory is released on return."""
    with ctrl_c_held_back():
        from neuroglot_exporter.components import write_components
    from neuroglot_exporter.tokenizer_files import write_tokenizer

    progress("loading the checkpoint")
    local = checkpoint.fetch()
    tokenizer = checkpoint.load_tokenizer(local)
    model = checkpoint.load_model(local, dtype)
    progress("tracing and rewriting the graph")
    write_tokenizer(tokenizer, folder)
    written = write_components(model, checkpoint.family, folder)
    facts = ModelFacts(
        family=checkpoint.family.name,
        dtype=dtype,
        vocabulary_size=model.get_output_embeddings().weight.shape[0],
        max_positions=checkpoint.family.max_positions(model.config),
        eos_token_ids=_end_tokens(model, tokenizer),
        decoder_start_token_id=model.config.decoder_start_token_id if checkpoint.family.encoder_decoder else None,
        components=written.components,
        output_embedding=written.output_embedding,
        output_scale=checkpoint.family.output_scale(model.config),
    )
    del model
    gc.collect()  # modules and hooks refer to each other
    return facts


def _end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a generation: those of the generation config, or else the tokenizer's."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    if ends is None:
        return ()
    return tuple(ends) if isinstance(ends, list | tuple) else (ends,)
