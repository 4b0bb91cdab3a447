"""The bundle: the folder that the exporter writes and the server loads.

    bloomz-560m/
    ├── manifest.json         what this module reads and writes; always written last
    ├── decoder.onnx          one graph a component, without weights
    ├── weights.data          the weights of all graphs, each once
    ├── decoder.norms.npy     float32 [layers, neurons]: the norm of every neuron's value row
    ├── tokenizer.json
    └── probe.json            a fixed request and its expected answer, see `neuroglot.definitions.probe`

A bundle is never changed once it stands: `staged` writes it aside and renames it into place, so a folder that bears the
bundle's name is whole. Its identity is the hash of all that decides an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from neuroglot.definitions.fields import (
    FieldError,
    Fields,
    depth_at_most,
    is_one_line,
    parse,
    shown,
)
from neuroglot.errors import BundleError

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
PROBE = "probe.json"
WEIGHTS = "weights.data"

_ITEM_BYTES = {"float32": 4, "float16": 2}

HASH_ON_LOAD_BYTES = 64 * 2**20
"""Files up to this size are hashed at every load; of larger ones only the size is checked, unless `full` is set.

All files but those of weights are that small: a bundle with a larger graph, norms or tokenizer is refused.
"""

MANIFEST_BYTES = 2**20
"""Largest manifest that is read."""
_MAX_FILES = 1000
_MAX_FILE_BYTES = 2**50
_MAX_LAYERS = 1024
_MAX_WIDTH = 2**20
"""Neurons of a layer, and width of the residual stream."""
_MAX_VOCABULARY = 2**24
_MAX_POSITIONS = 2**31 - 1
_MAX_END_TOKENS = 1024
_MAX_TOOLS = 100
_MAX_TEXT = 1000
_MAX_VERIFICATION_DEPTH = 8
_SHA256_DIGITS = 64
_COMPONENTS = (["decoder"], ["encoder", "decoder"])


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

        Tool versions and measurements are left out, and the probe, whose numbers were measured, too: two exports that
        give the same answers share an identity.
        """
        hashes = {path: entry.sha256 for path, entry in self.files.items() if path != PROBE}
        decisive = {"format_version": self.format_version, "model": asdict(self.model), "files": hashes}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps({"identity": self.identity, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, folder: Path) -> Manifest:
        """Read the text of `manifest.json`; `folder` is for the errors.

        Raises:
            BundleError: not JSON, another format version, a field that is missing, unknown, of another type or out of
                its bounds, or an identity that does not fit.
        """
        try:
            fields = Fields(parse(text))
            version = fields.whole("format_version", 0, _MAX_POSITIONS)
            if version != FORMAT_VERSION:
                raise BundleError(
                    f"{folder} has bundle format {version}, this neuroglot reads format {FORMAT_VERSION}: "
                    + ("upgrade neuroglot" if version > FORMAT_VERSION else "export the model again")
                )
            identity = fields.hexadecimal("identity", _SHA256_DIGITS)
            manifest = _manifest(fields)
        except FieldError as error:
            raise BundleError(f"{folder / MANIFEST} is damaged ({error}): export the model again") from None
        if manifest.identity != identity:
            raise BundleError(
                f"{folder / MANIFEST} was changed: it says identity {identity[:12]}, its content has "
                f"{manifest.identity[:12]}: export the model again"
            )
        return manifest


def _manifest(fields: Fields) -> Manifest:
    """All fields but format version and identity."""
    optional: dict[str, Any] = {}
    if "source_revision" in fields:
        optional["source_revision"] = fields.text("source_revision", _MAX_TEXT, empty=True)
    if "tools" in fields:
        optional["tools"] = _tools(fields.object("tools"))
    if "verification" in fields:
        optional["verification"] = fields.take(
            "verification",
            f"an object with finite numbers and at most {_MAX_VERIFICATION_DEPTH} objects and lists inside each other",
            lambda value: isinstance(value, dict) and depth_at_most(value, _MAX_VERIFICATION_DEPTH),
        )
    manifest = Manifest(
        model=_facts(fields.object("model")),
        files=_files(fields.object("files")),
        source=fields.text("source", _MAX_TEXT),
        **optional,
    )
    fields.end()
    return manifest


def _tools(fields: Fields) -> dict[str, str]:
    names = fields.names
    if len(names) > _MAX_TOOLS:
        raise FieldError(f"tools has {len(names)} fields, expected at most {_MAX_TOOLS}")
    return {name: fields.text(name, _MAX_TEXT) for name in names}


def _files(fields: Fields) -> dict[str, FileEntry]:
    names = fields.names
    if len(names) > _MAX_FILES:
        raise FieldError(f"files has {len(names)} fields, expected at most {_MAX_FILES}")
    files = {}
    for name in names:
        entry = fields.object(name)
        files[_inside(name)] = FileEntry(
            size=entry.whole("size", 0, _MAX_FILE_BYTES), sha256=entry.hexadecimal("sha256", _SHA256_DIGITS)
        )
        entry.end()
    return files


def _facts(fields: Fields) -> ModelFacts:
    vocabulary = fields.whole("vocabulary_size", 1, _MAX_VOCABULARY)

    def is_tokens(value: Any) -> bool:
        return isinstance(value, list) and len(value) <= _MAX_END_TOKENS and all(map(is_token, value))

    def is_token(value: Any) -> bool:
        return type(value) is int and 0 <= value < vocabulary

    components = tuple(_component(Fields(value, path)) for path, value in fields.items("components", 1, 2))
    names = [component.name for component in components]
    if names not in _COMPONENTS:
        raise FieldError(f"model.components are {', '.join(names)}, expected decoder, or encoder and decoder")
    decoder = components[-1]
    facts = ModelFacts(
        family=fields.text("family", _MAX_TEXT),
        dtype=fields.one_of("dtype", *_ITEM_BYTES),
        vocabulary_size=vocabulary,
        max_positions=fields.optional("max_positions", lambda name: fields.whole(name, 1, _MAX_POSITIONS)),
        eos_token_ids=tuple(
            fields.take("eos_token_ids", f"a list of at most {_MAX_END_TOKENS} tokens below {vocabulary}", is_tokens)
        ),
        decoder_start_token_id=fields.optional(
            "decoder_start_token_id", lambda name: fields.whole(name, 0, vocabulary - 1)
        ),
        components=components,
        output_embedding=_matrix(fields.object("output_embedding"), vocabulary, decoder.hidden_size),
        output_scale=fields.number("output_scale", 1e-6, 1e6),
    )
    fields.end()
    return facts


def _component(fields: Fields) -> Component:
    name = fields.one_of("name", "decoder", "encoder")
    layers = fields.whole("layers", 1, _MAX_LAYERS)
    neurons = fields.whole("neurons", 1, _MAX_WIDTH)
    hidden_size = fields.whole("hidden_size", 1, _MAX_WIDTH)
    component = Component(
        name=name,
        graph=fields.one_of("graph", f"{name}.onnx"),
        norms=fields.one_of("norms", f"{name}.norms.npy"),
        layers=layers,
        neurons=neurons,
        hidden_size=hidden_size,
        activation_function=fields.text("activation_function", _MAX_TEXT),
        gated=fields.flag("gated"),
        values=tuple(
            _matrix(Fields(value, path), neurons, hidden_size) for path, value in fields.items("values", layers, layers)
        ),
    )
    fields.end()
    return component


def _matrix(fields: Fields, rows: int, columns: int) -> StoredMatrix:
    """A matrix of which the shape is known."""
    matrix = StoredMatrix(
        file=fields.text("file", _MAX_TEXT),
        offset=fields.whole("offset", 0, _MAX_FILE_BYTES),
        rows=fields.whole("rows", rows, rows),
        columns=fields.whole("columns", columns, columns),
        dtype=fields.one_of("dtype", *_ITEM_BYTES),
    )
    fields.end()
    return matrix


def _inside(path: str) -> str:
    """A path of the manifest, if it is a plain one that stays inside the bundle's folder."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or not pure.parts:
        raise FieldError(f"the path {shown(path)} leaves the bundle's folder")
    if pure.as_posix() != path or len(path) > _MAX_TEXT or not is_one_line(path):
        raise FieldError(f"the path {shown(path)} is not in its plain form")
    return path


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return _hash(file)


def _hash(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Size and hash of every file under a folder, but for the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): describe_file(path) for path in paths}


def describe_file(path: Path) -> FileEntry:
    """Size and hash of a file."""
    return FileEntry(path.stat().st_size, hash_file(path))


@contextmanager
def open_file(folder: Path, path: str) -> Iterator[BufferedReader]:
    """A file of a bundle, opened for reading for the length of a block.

    Only a regular file is opened, so that nothing waits for the other end of a pipe, and only one that has no other
    name: neither a link, symbolic or hard, nor through one. The bundle's folder itself may be a link.

    Args:
        folder: the bundle.
        path: inside it.

    Raises:
        BundleError: it is missing, is no such file, or cannot be read.
    """
    file = folder / path
    try:
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{file} is {_kind(status.st_mode)}, expected a regular file: export the model again")
        if status.st_nlink != 1:
            raise BundleError(
                f"{file} has {status.st_nlink} hard links, expected a file with one name: copy the bundle without links"
            )
        if file.resolve() != folder.resolve() / path:
            raise BundleError(f"{file} is reached through a symbolic link: copy the bundle without links")
        # The file may have been replaced in between; a pipe is then not waited for, and a link not followed.
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb") as opened:
            if not os.path.samestat(os.fstat(descriptor), status):
                raise BundleError(f"{file} was replaced while it was read: load the bundle again")
            yield opened
    except FileNotFoundError:
        raise BundleError(f"{folder} is incomplete: {path} is missing; export the model again") from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror or error}") from None


def _kind(mode: int) -> str:
    """What an entry of a folder is, in words."""
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle, without a look at its files.

    Raises:
        BundleError: no such folder, no manifest in it, no regular file of at most `MANIFEST_BYTES`, or a manifest that
            `Manifest.from_json` refuses.
    """
    try:
        there = folder.is_dir()
    except OSError as error:
        raise BundleError(f"{folder} cannot be read: {error.strerror}") from None
    if not there:
        raise BundleError(f"{folder} is no bundle: there is no such folder; make one with `neuroglot export`")
    if not os.path.lexists(folder / MANIFEST):
        raise BundleError(
            f"{folder} is no bundle: it has no {MANIFEST}; an export that was interrupted leaves none, so run "
            "`neuroglot export` again"
        )
    with open_file(folder, MANIFEST) as file:
        content = file.read(MANIFEST_BYTES + 1)
    if len(content) > MANIFEST_BYTES:
        raise BundleError(f"{folder / MANIFEST} is larger than {MANIFEST_BYTES} bytes: export the model again")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise BundleError(f"{folder / MANIFEST} is damaged (not UTF-8): export the model again") from None
    return Manifest.from_json(text, folder)


def open_bundle(folder: Path, *, full: bool = False) -> Manifest:
    """The manifest of a bundle whose files are what it says.

    Sizes of all files are compared, and hashes of those up to `HASH_ON_LOAD_BYTES`; with `full`, of all.

    Raises:
        BundleError: as `read_manifest`, or a file is missing, is no regular file with one name, or was changed.
    """
    manifest = read_manifest(folder)
    _check_references(manifest, folder)
    for path, entry in manifest.files.items():
        file = folder / path
        with open_file(folder, path) as opened:
            size = os.fstat(opened.fileno()).st_size
            if size != entry.size:
                raise BundleError(
                    f"{file} was changed: it has {size} bytes, the manifest says {entry.size}; export the model again"
                )
            if (full or size <= HASH_ON_LOAD_BYTES) and _hash(opened) != entry.sha256:
                raise BundleError(f"{file} was changed: its hash is not the manifest's; export the model again")
    return manifest


def _check_references(manifest: Manifest, folder: Path) -> None:
    """Compare what a manifest says of the model with its list of files.

    Raises:
        BundleError: a file or a part of one is named that the list does not have.
    """
    for name in (TOKENIZER, WEIGHTS):
        if name not in manifest.files:
            raise BundleError(f"{folder} has no {name}: export the model again")
    small = [
        TOKENIZER,
        *(path for component in manifest.model.components for path in (component.graph, component.norms)),
    ]
    for path in small:
        if path not in manifest.files:
            raise BundleError(f"{folder / MANIFEST} is damaged ({path!r} is not among its files): export again")
        size = manifest.files[path].size
        if size > HASH_ON_LOAD_BYTES:
            raise BundleError(f"{folder / path} has {size} bytes, expected at most {HASH_ON_LOAD_BYTES}: export again")
    for matrix in manifest.model.matrices:
        if not _lies_inside(matrix, manifest.files):
            raise BundleError(f"{folder / MANIFEST} is damaged ({matrix} is not inside a file of it): export again")


def _lies_inside(matrix: StoredMatrix, files: Mapping[str, FileEntry]) -> bool:
    """Whether a matrix is within its file, and begins where an element may."""
    if matrix.file not in files:
        return False
    item = _ITEM_BYTES[matrix.dtype]
    size = matrix.rows * matrix.columns * item
    return matrix.offset % item == 0 and matrix.offset <= files[matrix.file].size - size


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
