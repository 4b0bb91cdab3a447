"""The bundle: the folder that the exporter writes and the server loads.

    bloomz-560m/
    ├── manifest.json         what this module reads and writes; always written last
    ├── decoder.onnx          one graph a component, without weights
    ├── weights.data          the weights of all graphs, each once
    ├── decoder.norms.npy     float32 [layers, neurons]: the norm of every neuron's value row
    └── tokenizer.json

A bundle is never changed once it stands: `staged` writes it aside and renames it into place, so a folder that bears the
bundle's name is whole. Its identity is the hash of all that decides an answer.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from neuroglot.errors import BundleError

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "weights.data"

_ITEM_BYTES = {"float32": 4, "float16": 2}

HASH_ON_LOAD_BYTES = 64 * 2**20
"""Files up to this size are hashed at every load; of larger ones only the size is checked, unless `check` is `full`."""


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix that lies in a file of the bundle, row-major and little-endian.

    Attributes:
        file: which file.
        offset: where it begins, in bytes.
        rows: number of rows.
        columns: number of columns.
        dtype: of its elements, `float32` or `float16`.
    """

    file: str
    offset: int
    rows: int
    columns: int
    dtype: str


@dataclass(frozen=True)
class Component:
    """One stack of layers.

    Attributes:
        name: `decoder` or `encoder`.
        graph: file of the ONNX graph.
        norms: file of the value rows' norms, float32 `[layers, neurons]`.
        layers: number of layers.
        neurons: FFN neurons a layer.
        hidden_size: width of the residual stream.
        activation_function: the FFN's non-linearity, `gelu`.
        gated: whether a second projection multiplies the activation; the graph then has `ffn.{i}.coefficient`.
        values: where the value matrix of each layer lies, `[neurons, hidden_size]`.
    """

    name: str
    graph: str
    norms: str
    layers: int
    neurons: int
    hidden_size: int
    activation_function: str
    gated: bool
    values: tuple[StoredMatrix, ...]


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle.

    Attributes:
        size: in bytes.
        sha256: of its content, hexadecimal.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class ModelFacts:
    """What the server must know about the model beside its files. Part of the bundle's identity.

    Attributes:
        family: `bloom`, `llama`, `xglm`, `mt0`.
        dtype: type of weights and activations, `float32` or `float16`.
        vocabulary_size: rows of the output embedding.
        max_positions: longest row that the position embedding allows, in tokens; None where nothing bounds it (ALiBi).
        eos_token_ids: tokens that end a generation.
        decoder_start_token_id: first decoder token of an encoder-decoder; None for a causal model.
        components: one, or encoder and decoder.
        output_embedding: where the matrix lies whose rows meet the last hidden state in the logits, `[vocabulary_size,
            hidden_size]`; where it is tied, the input embedding's.
        output_scale: what that hidden state is multiplied with before (T5 with a tied embedding), else 1.
    """

    family: str
    dtype: str
    vocabulary_size: int
    max_positions: int | None
    eos_token_ids: tuple[int, ...]
    decoder_start_token_id: int | None
    components: tuple[Component, ...]
    output_embedding: StoredMatrix
    output_scale: float

    @property
    def matrices(self) -> tuple[StoredMatrix, ...]:
        """Every matrix that lies in a file."""
        return (*(matrix for component in self.components for matrix in component.values), self.output_embedding)


@dataclass(frozen=True)
class Manifest:
    """What stands in `manifest.json`.

    Attributes:
        model: what the server must know.
        files: every file of the bundle but the manifest, by its path inside the folder.
        source: where the checkpoint came from: a Hub id, a folder's name, `embedded:bloom`.
        source_revision: its revision; empty where it has none.
        tools: versions of what made the bundle, by package.
        verification: what the comparison with transformers measured at the export.
        format_version: of this layout.
    """

    model: ModelFacts
    files: Mapping[str, FileEntry]
    source: str
    source_revision: str = ""
    tools: Mapping[str, str] = field(default_factory=dict)
    verification: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def identity(self) -> str:
        """SHA-256, hexadecimal, over the format version, the model's facts and every file's path and hash.

        Tool versions and measurements are left out: two exports that give the same answers share an identity.
        """
        hashes = {path: entry.sha256 for path, entry in self.files.items()}
        decisive = {"format_version": self.format_version, "model": asdict(self.model), "files": hashes}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps({"identity": self.identity, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, folder: Path) -> Manifest:
        """Read the text of `manifest.json`; `folder` is for the errors.

        Raises:
            BundleError: not JSON, a newer format version, a field missing or unknown, or an identity that does not fit.
        """
        try:
            content = json.loads(text)
            version = content.pop("format_version")
            identity = content.pop("identity")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{folder / MANIFEST} is damaged ({error}): export the model again") from None
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{folder} has bundle format {version}, this neuroglot reads format {FORMAT_VERSION}: "
                + ("upgrade neuroglot" if version > FORMAT_VERSION else "export the model again")
            )
        try:
            model = content.pop("model")
            components = tuple(_component(**component) for component in model.pop("components"))
            embedding = StoredMatrix(**model.pop("output_embedding"))
            eos = tuple(model.pop("eos_token_ids"))
            files = {_inside(path): FileEntry(**entry) for path, entry in content.pop("files").items()}
            facts = ModelFacts(components=components, output_embedding=embedding, eos_token_ids=eos, **model)
            manifest = cls(model=facts, files=files, **content)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BundleError(f"{folder / MANIFEST} is damaged ({error}): export the model again") from None
        if manifest.identity != identity:
            raise BundleError(
                f"{folder / MANIFEST} was changed: it says identity {identity[:12]}, its content has "
                f"{manifest.identity[:12]}: export the model again"
            )
        return manifest


def _component(values: Iterable[Mapping[str, Any]], **facts: Any) -> Component:
    """A component of the manifest."""
    return Component(values=tuple(StoredMatrix(**matrix) for matrix in values), **facts)


def _inside(path: str) -> str:
    """A path of the manifest, if it stays inside the bundle's folder."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or not pure.parts:
        raise ValueError(f"the path {path!r} leaves the bundle's folder")
    return path


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Size and hash of every file under a folder, but for the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): FileEntry(path.stat().st_size, hash_file(path)) for path in paths}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle, without a look at its files.

    Raises:
        BundleError: no such folder, no manifest in it, or a manifest that `Manifest.from_json` refuses.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder} is no bundle: there is no such folder; make one with `neuroglot export`")
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BundleError(
            f"{folder} is no bundle: it has no {MANIFEST}; an export that was interrupted leaves none, so run "
            "`neuroglot export` again"
        ) from None
    except UnicodeDecodeError:
        raise BundleError(f"{folder / MANIFEST} is damaged (not UTF-8): export the model again") from None
    return Manifest.from_json(text, folder)


def open_bundle(folder: Path, *, full: bool = False) -> Manifest:
    """The manifest of a bundle whose files are what it says.

    Sizes of all files are compared, and hashes of those up to `HASH_ON_LOAD_BYTES`; with `full`, of all.

    Raises:
        BundleError: as `read_manifest`, or a file is missing or was changed.
    """
    manifest = read_manifest(folder)
    for path, entry in manifest.files.items():
        file = folder / path
        if not file.is_file():
            raise BundleError(f"{folder} is incomplete: {path} is missing; export the model again")
        size = file.stat().st_size
        if size != entry.size:
            raise BundleError(
                f"{file} was changed: it has {size} bytes, the manifest says {entry.size}; export the model again"
            )
        if (full or size <= HASH_ON_LOAD_BYTES) and hash_file(file) != entry.sha256:
            raise BundleError(f"{file} was changed: its hash is not the manifest's; export the model again")
    for component in manifest.model.components:
        for path in (component.graph, component.norms):
            if path not in manifest.files:
                raise BundleError(f"{folder / MANIFEST} is damaged ({path!r} is not among its files): export again")
    for matrix in manifest.model.matrices:
        if not _lies_inside(matrix, manifest.files):
            raise BundleError(f"{folder / MANIFEST} is damaged ({matrix} is not inside a file of it): export again")
    if TOKENIZER not in manifest.files:
        raise BundleError(f"{folder} has no {TOKENIZER}: export the model again")
    return manifest


def _lies_inside(matrix: StoredMatrix, files: Mapping[str, FileEntry]) -> bool:
    """Whether a matrix is of a known type and within its file."""
    if matrix.dtype not in _ITEM_BYTES or matrix.file not in files:
        return False
    size = matrix.rows * matrix.columns * _ITEM_BYTES[matrix.dtype]
    return 0 <= matrix.offset <= files[matrix.file].size - size


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into, renamed into its place at the end, and removed if anything goes wrong.

    The block must leave a manifest in it, written last (`write_manifest`).

    Raises:
        BundleError: `folder` exists already: bundles are never changed; or the block left no manifest.
    """
    if folder.exists():
        raise BundleError(f"{folder} exists already and a bundle is never changed: remove it or choose another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        yield aside
        if not (aside / MANIFEST).is_file():
            raise BundleError(f"the bundle written for {folder} has no {MANIFEST}")
        aside.chmod(0o755)  # mkdtemp made it private
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, the last file of a bundle."""
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
