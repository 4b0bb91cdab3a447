"""Checks of a bundle's graphs, norms and weights before a session starts.

A session trusts its graph: it would read any file that the graph names, or the same bytes as two tensors. So the graph
is parsed here first and its tensors are compared with the manifest; then all weights are read once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from neuroglot.definitions.bundle import Component, Manifest, StoredMatrix, open_file
from neuroglot.definitions.fields import shown
from neuroglot.errors import BundleError
from neuroglot_server.core import DECODER
from neuroglot_server.core.wire_fields import count_fields

_CHUNK_BYTES = 2**20
_NORMS_HEADER_BYTES = 4096
"""Maximum length of the header of a two-dimensional `.npy` array."""
_NORM_TOLERANCE = 1e-3
"""Relative. Allows for sums of up to a million squares in float32, in any order, and values rounded to float16."""
_MAX_GRAPH_FIELDS = 2**19
"""Maximum number of protobuf fields in a graph. That of a BLOOM of 24 layers has 44,000."""
_MAX_RANK = 8
_WITHOUT_TENSORS = {"OperatorSetIdProto", "StringStringEntryProto", "ValueInfoProto"}
"""ONNX messages that are not searched for tensors: they contain none, and graphs have many of them."""
_REMEDY = "export the model again"


class StoredTensor(NamedTuple):
    """A tensor of a graph with its values in a file of the bundle.

    Attributes:
        name: the tensor's name in the graph.
        file: the file's name in the bundle.
        offset: offset of the first value in the file, in bytes.
        shape: the dimensions.
        dtype: `float32` or `float16`, little-endian; the values are row-major.
    """

    name: str
    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def end(self) -> int:
        """Offset after the last byte."""
        return self.offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize


def check_bundle(folder: Path, manifest: Manifest) -> dict[str, NDArray[np.float32]]:
    """Check the graphs, norms and weights of a bundle.

    Args:
        folder: the bundle.
        manifest: the bundle's manifest, see `neuroglot.definitions.bundle.open_bundle`.

    Returns:
        The L2 norms of the value rows by component, float32 `[layers, neurons]`.

    Raises:
        BundleError: a graph cannot be parsed, names a file that is not in the manifest, has tensors that overlap or
            exceed their file, or disagrees with the manifest about the value matrices or the vocabulary; norms do not
            match the value rows; a weight is not finite.
    """
    components = manifest.model.components
    stored = [tensor for component in components for tensor in _check_graph(folder, manifest, component)]
    # Tensors that refer to the same bytes with the same shape and dtype are checked once.
    tensors = sorted(
        {tensor[1:]: tensor for tensor in stored}.values(), key=lambda tensor: (tensor.file, tensor.offset)
    )
    _check_overlaps(folder, tensors)
    norms = {component.name: _read_norms(folder, component) for component in components}
    for tensor in tensors:
        _check_finite(folder, tensor)
    for component in components:
        for layer, matrix in enumerate(component.values):
            _check_norms(folder, component, layer, matrix, norms[component.name][layer])
    return norms


def _check_graph(folder: Path, manifest: Manifest, component: Component) -> list[StoredTensor]:
    """Check a graph against the manifest, and return its tensors with external data.

    Raises:
        BundleError: the graph disagrees with the manifest, or is not an ONNX graph.
    """
    import onnx  # imported late: a server without a bundle starts faster

    file = folder / component.graph
    with open_file(folder, component.graph) as opened:
        content = opened.read()
    try:
        if count_fields(content, onnx.ModelProto.DESCRIPTOR, _MAX_GRAPH_FIELDS) > _MAX_GRAPH_FIELDS:
            raise BundleError(f"{file} has more than {_MAX_GRAPH_FIELDS} fields: {_REMEDY}")
        model = onnx.ModelProto.FromString(content)
    except (DecodeError, ValueError):
        raise BundleError(f"{file} is not an ONNX graph: {_REMEDY}") from None
    stored = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if sum(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _all_tensors(model)) > len(stored):
        raise BundleError(f"{file} has external data in a tensor that is not an initializer: {_REMEDY}")
    dtypes: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}
    tensors = [_stored_tensor(file, manifest, tensor, dtypes.get(tensor.data_type, "")) for tensor in stored]
    named = {tensor.name: tensor for tensor in tensors}
    if len(named) < len(tensors):
        raise BundleError(f"{file} has two initializers of one name: {_REMEDY}")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    expected = {f"value_matrix.{layer}": matrix for layer, matrix in enumerate(component.values)}
    if component.name == DECODER:
        expected["output_embedding"] = manifest.model.output_embedding
    for what, matrix in expected.items():
        _check_matrix(file, what, named.get(metadata.get(what, "")), matrix)
    _check_input_embedding(file, model.graph, manifest.model.vocabulary_size)
    return tensors


def _all_tensors(model: Any) -> Iterator[Any]:
    """Yield every TensorProto in a ModelProto, at any depth."""
    stack: list[Any] = [model]
    while stack:
        message = stack.pop()
        if message.DESCRIPTOR.name == "TensorProto":
            yield message
            continue
        for field, value in message.ListFields():
            if field.message_type is not None and field.message_type.name not in _WITHOUT_TENSORS:
                stack.extend([value] if isinstance(value, Message) else value)


def _stored_tensor(file: Path, manifest: Manifest, tensor: Any, dtype: str) -> StoredTensor:
    """Parse a TensorProto with external data.

    Raises:
        BundleError: the tensor has another data type, or its values are not within a file that the manifest lists.
    """
    where = f"the tensor {shown(tensor.name)} of {file}"
    if not dtype:
        raise BundleError(f"{where} has data type {tensor.data_type}, expected float32 or float16: {_REMEDY}")
    if len(tensor.dims) > _MAX_RANK or any(size < 1 for size in tensor.dims):
        raise BundleError(
            f"{where} has the shape {list(tensor.dims)[:_MAX_RANK]}, expected at most {_MAX_RANK} positive sizes: "
            f"{_REMEDY}"
        )
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, offset, length = (entries.pop(key, "") for key in ("location", "offset", "length"))
    if entries or len(tensor.external_data) != 3 or not (_is_size(offset) and _is_size(length)):
        raise BundleError(f"{where} has malformed external data, expected location, offset and length: {_REMEDY}")
    if location not in manifest.files:
        raise BundleError(f"{where} has its values in {shown(location)}, which the manifest does not list: {_REMEDY}")
    found = StoredTensor(tensor.name, location, int(offset), tuple(tensor.dims), dtype)
    if found.end - found.offset != int(length):
        raise BundleError(f"{where} has the length {length}, expected {found.end - found.offset} bytes: {_REMEDY}")
    if found.end > manifest.files[location].size:
        raise BundleError(
            f"{where} ends at byte {found.end} of {location}, which has {manifest.files[location].size}: {_REMEDY}"
        )
    return found


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18  # fits into 64 bits


def _check_matrix(file: Path, what: str, tensor: StoredTensor | None, matrix: StoredMatrix) -> None:
    """Compare a matrix of the manifest with the initializer named in the graph's metadata.

    Raises:
        BundleError: they differ.
    """
    if tensor is None:
        raise BundleError(f"{file} does not name an initializer with external data as its {what}: {_REMEDY}")
    found = StoredMatrix(
        tensor.file, tensor.offset, *(tensor.shape if len(tensor.shape) == 2 else (0, 0)), tensor.dtype
    )
    if found != matrix:
        raise BundleError(
            f"{what} is {tensor.dtype} {list(tensor.shape)} at byte {tensor.offset} of {tensor.file} in {file}, and "
            f"{matrix.dtype} {[matrix.rows, matrix.columns]} at byte {matrix.offset} of {shown(matrix.file)} in the "
            f"manifest: {_REMEDY}"
        )


def _check_input_embedding(file: Path, graph: Any, vocabulary: int) -> None:
    """Check that the graph's input embedding has a row for every token of the vocabulary.

    Raises:
        BundleError: it has fewer rows, or there is no input embedding.
    """
    tokens = {"input_ids"} | {
        node.output[0] for node in graph.node if node.op_type == "Reshape" and "input_ids" in node.input[:1]
    }
    matrices = {
        node.input[0]
        for node in graph.node
        if node.op_type == "Gather" and len(node.input) == 2 and node.input[1] in tokens
    }
    rows = [tensor.dims[0] for tensor in graph.initializer if tensor.name in matrices and len(tensor.dims) == 2]
    if not rows or min(rows) < vocabulary:
        found = f"has one of {min(rows)} rows" if rows else "looks up none"
        raise BundleError(f"{file} {found}, expected an input embedding of {vocabulary} tokens: {_REMEDY}")


def _check_overlaps(folder: Path, tensors: Sequence[StoredTensor]) -> None:
    """Check that no two tensors overlap; they must be sorted by file and offset.

    Raises:
        BundleError: two tensors overlap.
    """
    for before, after in pairwise(tensors):
        if before.file == after.file and after.offset < before.end:
            raise BundleError(
                f"the tensors {shown(before.name)} and {shown(after.name)} overlap at byte {after.offset} of "
                f"{folder / after.file}, expected each to have its bytes to itself: {_REMEDY}"
            )


def _read_norms(folder: Path, component: Component) -> NDArray[np.float32]:
    """Read the norms of a component's value rows, float32 `[layers, neurons]`.

    Raises:
        BundleError: the file holds anything else.
    """
    file = folder / component.norms
    shape = (component.layers, component.neurons)
    with open_file(folder, component.norms) as opened:
        try:
            if np.lib.format.read_magic(opened) != (1, 0):
                raise ValueError("it is not of version 1.0")
            found, by_column, dtype = np.lib.format.read_array_header_1_0(opened, _NORMS_HEADER_BYTES)
        except Exception as error:  # noqa: BLE001 - NumPy evaluates the header as Python, which may raise anything
            raise BundleError(f"{file} is not a NumPy array ({shown(str(error))}): {_REMEDY}") from None
        if found != shape or dtype != np.dtype("<f4") or by_column:
            raise BundleError(f"{file} has {f'{dtype} {found}'[:60]}, expected float32 {shape}: {_REMEDY}")
        content = opened.read()
    if len(content) != 4 * math.prod(shape):
        raise BundleError(f"{file} has {len(content)} bytes of norms, expected {4 * math.prod(shape)}: {_REMEDY}")
    norms = np.frombuffer(content, np.float32).reshape(shape)
    if not (np.isfinite(norms).all() and (norms >= 0).all()):
        raise BundleError(f"{file} has norms that are negative or not finite: {_REMEDY}")
    return norms


def _check_finite(folder: Path, tensor: StoredTensor) -> None:
    """Check that all values of a tensor are finite.

    Raises:
        BundleError: a value is NaN or infinite.
    """
    for values in _chunks(folder, tensor.file, tensor.offset, math.prod(tensor.shape), tensor.dtype):
        if not np.isfinite(values).all():
            raise BundleError(
                f"the tensor {shown(tensor.name)} in {folder / tensor.file} has a weight that is not finite: {_REMEDY}"
            )


def _check_norms(
    folder: Path, component: Component, layer: int, matrix: StoredMatrix, norms: NDArray[np.float32]
) -> None:
    """Compare the norms of a layer with those computed from its value rows.

    Raises:
        BundleError: they differ.
    """
    elements = matrix.rows * matrix.columns
    first = 0
    for values in _chunks(folder, matrix.file, matrix.offset, elements, matrix.dtype, matrix.columns):
        found = np.linalg.norm(values.reshape(-1, matrix.columns).astype(np.float64), axis=1)
        given = norms[first : first + len(found)]
        wrong = np.flatnonzero(np.abs(found - given) > _NORM_TOLERANCE * np.maximum(found, given))
        if len(wrong):
            row = int(wrong[0])
            raise BundleError(
                f"{folder / component.norms} has {given[row]:g} for neuron {first + row} of layer {layer}, whose value "
                f"row has the norm {found[row]:g}: {_REMEDY}"
            )
        first += len(found)


def _chunks(
    folder: Path, file: str, offset: int, elements: int, dtype: str, multiple: int = 1
) -> Iterator[NDArray[np.floating]]:
    """Read elements of a file in chunks, each into the same buffer.

    The file is read, not mapped: mapped pages would count as memory of the process.

    Args:
        folder: the bundle.
        file: the file's name.
        offset: offset of the first element, in bytes.
        elements: how many elements to read.
        dtype: dtype of the elements, little-endian.
        multiple: each chunk has a multiple of this number of elements.

    Raises:
        BundleError: the file is too short.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    chunk_size = max(_CHUNK_BYTES // kind.itemsize // multiple, 1) * multiple
    buffer = np.empty(min(chunk_size, elements), kind)
    with open_file(folder, file) as opened:
        opened.seek(offset)
        for start in range(0, elements, chunk_size):
            values = buffer[: elements - start]
            if opened.readinto(values.data) < values.nbytes:
                raise BundleError(f"{folder / file} ended while it was read: {_REMEDY}")
            yield values
