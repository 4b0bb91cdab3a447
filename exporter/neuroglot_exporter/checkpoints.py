"""Finds the checkpoint that a source names, and loads it.

No heavy package is imported to find it, so that a misspelt source fails at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroglot_exporter import embedded
from neuroglot_exporter.errors import CheckpointError
from neuroglot_exporter.families import check_attributes, family_of
from neuroglot_exporter.families.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CONFIG = "config.json"
EMBEDDED_PREFIX = "embedded:"
GGUF_SUFFIX = ".gguf"

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model")
_HUB_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a known family.

    Attributes:
        source: its name in the manifest: a Hub id, the name of a folder or a GGUF file, `embedded:bloom`.
        folder: its folder; None if it is only on the Hub.
        commit: the commit of a Hub id, or the revision of an embedded model; empty for a folder.
        family: its family.
        raw_config: config.json, unchanged, or the config that transformers reads from a GGUF file.
        gguf_file: name of the GGUF file in the folder; None if the folder itself is the checkpoint.
    """

    source: str
    folder: Path | None
    commit: str
    family: Family
    raw_config: Mapping[str, Any]
    gguf_file: str | None = None

    def check_attributes(self) -> None:
        """Refuse a config that could change the FFN.

        Raises:
            CheckpointError: an attribute that is not known, or a known one with a value that is not supported.
        """
        from transformers import PretrainedConfig

        check_attributes(self.raw_config, self.family, frozenset(PretrainedConfig().to_dict()), self.source)

    def fetch(self) -> Path:
        """Return the checkpoint's folder, downloading it into the Hub's cache if needed.

        Raises:
            CheckpointError: the download failed.
        """
        if self.folder is not None:
            return self.folder
        from huggingface_hub import HfApi, snapshot_download

        try:
            files = HfApi().model_info(self.source, revision=self.commit, timeout=_HUB_TIMEOUT_SECONDS).siblings or []
            has_safetensors = any(file.rfilename.endswith(".safetensors") for file in files)
            weights = "*.safetensors" if has_safetensors else "*.bin"
            patterns = [weights, "*.json", "*.jinja", "*.model", "*.txt"]
            return Path(snapshot_download(self.source, revision=self.commit, allow_patterns=patterns))
        except OSError as error:
            raise CheckpointError(f"{self.source} cannot be downloaded: {_first_line(error)}") from None

    def load_model(self, folder: Path, dtype: str = "float32") -> PreTrainedModel:
        """The model on the CPU, in eval mode.

        Args:
            folder: of the checkpoint.
            dtype: of its weights: `float32`, or `float16`, in which some weights may stay float32 (T5's `wo`).

        Raises:
            CheckpointError: its weights cannot be loaded, or some are missing.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        kind: Any = AutoModelForSeq2SeqLM if self.family.encoder_decoder else AutoModelForCausalLM
        try:
            loaded: Any = kind.from_pretrained(
                folder, gguf_file=self.gguf_file, dtype=getattr(torch, dtype), output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the weights of {self.source} cannot be loaded: {_first_line(error)}") from None
        model: PreTrainedModel = loaded[0]
        report: dict[str, list[Any]] = loaded[1]
        missing = sorted([*report["missing_keys"], *report["mismatched_keys"]], key=str)
        if missing:
            raise CheckpointError(
                f"{self.source} lacks {len(missing)} of its weights, {missing[0]} for one: they would be random"
            )
        model.eval()
        return model

    def load_tokenizer(self, folder: Path) -> PreTrainedTokenizerFast:
        """The tokenizer.

        Raises:
            CheckpointError: there is none, or it works only within transformers.
        """
        from transformers import AutoTokenizer

        if self.gguf_file is None and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
            raise CheckpointError(f"{self.source} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)}")
        try:
            tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder, gguf_file=self.gguf_file)
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError(f"the tokenizer of {self.source} cannot be loaded: {_first_line(error)}") from None
        if not tokenizer.is_fast:
            raise CheckpointError(f"{self.source} has no tokenizer.json, and its tokenizer cannot be turned into one")
        return tokenizer


def find_checkpoint(source: str, revision: str | None) -> Checkpoint:
    """Find the checkpoint that a source names and read its config, but not its weights.

    Args:
        source: a Hub id, a folder, a GGUF file, or `embedded:NAME`.
        revision: branch, tag or commit of a Hub id.

    Raises:
        CheckpointError: the checkpoint does not exist, or its family is unknown.
    """
    if source.endswith(GGUF_SUFFIX):
        return _find_gguf(source, revision)
    name, folder, commit = _local(source)
    if folder is not None and revision is not None:
        raise CheckpointError(f"{source} is a folder and has no revisions: leave out {revision!r}")
    if folder is not None:
        config_file = folder / CONFIG
    else:
        config_file, folder, commit = _look_up(source, revision)
    try:
        raw_config = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source} is no checkpoint: {CONFIG} cannot be read ({_first_line(error)})") from None
    return Checkpoint(name, folder, commit, family_of(raw_config, name), raw_config)


def _find_gguf(source: str, revision: str | None) -> Checkpoint:
    """The checkpoint in a GGUF file, whose config transformers makes from its metadata."""
    file = Path(source).expanduser()
    if not file.is_file():
        raise CheckpointError(f"there is no file {source}; give a GGUF file that is here")
    if revision is not None:
        raise CheckpointError(f"{source} is a file and has no revisions: leave out {revision!r}")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # heavy: imported only if needed

    try:
        raw_config = load_gguf_checkpoint(str(file))["config"]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source} cannot be read as a GGUF file: {_first_line(error)}") from None
    return Checkpoint(file.name, file.parent, "", family_of(raw_config, file.name), raw_config, file.name)


def _local(source: str) -> tuple[str, Path | None, str]:
    """The source's name in the manifest, its folder and its revision; for a Hub id, no folder and no revision."""
    if source.startswith(EMBEDDED_PREFIX):
        try:
            family = source.removeprefix(EMBEDDED_PREFIX)
            return source, embedded.path(family), embedded.revision(family)
        except LookupError as error:
            raise CheckpointError(str(error.args[0])) from None
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.resolve().name, folder, ""
    if folder.exists() or source.startswith((".", "~", os.sep)) or source.count("/") > 1:
        raise CheckpointError(f"there is no folder {source}; give a checkpoint's folder, a Hub id or embedded:NAME")
    return source, None, ""


def _look_up(hub_id: str, revision: str | None) -> tuple[Path, Path | None, str]:
    """A Hub id's config file, its folder where the Hub cannot be asked but the cache has it, and its commit."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name = f"{hub_id} at revision {revision}" if revision else hub_id
    try:
        commit = HfApi().model_info(hub_id, revision=revision, timeout=_HUB_TIMEOUT_SECONDS).sha
        return Path(hf_hub_download(hub_id, CONFIG, revision=commit)), None, str(commit)
    except (HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(
            f"{name} is no folder here, and no checkpoint on the Hugging Face Hub: {_first_line(error)}"
        ) from None
    except OSError:  # the Hub cannot be reached, or is not to be (HF_HUB_OFFLINE)
        try:
            config_file = Path(hf_hub_download(hub_id, CONFIG, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            raise CheckpointError(
                f"{name} is no folder here and not in the Hub's cache, and the Hugging Face Hub cannot be reached"
            ) from None
        return config_file, config_file.parent, config_file.parent.name  # the cache has a folder for every commit


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
