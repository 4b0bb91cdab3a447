"""What a bundle's graphs, norms and weights are checked for before a session starts.

A session reads whatever a graph names: other files, the same bytes as two tensors, memory. So the graph is read here
first, and what it says of the weights is compared with the manifest; then the weights themselves are read once.
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
"""Longer than that is no header of an array of two dimensions."""
_NORM_TOLERANCE = 1e-3
"""Relative; sums of up to a million squares in float32, in any order, and values that were rounded to float16."""
_MAX_GRAPH_FIELDS = 2**19
"""Of the graph's messages. That of a BLOOM of 24 layers has 44,000."""
_MAX_RANK = 8
_WITHOUT_TENSORS = {"OperatorSetIdProto", "StringStringEntryProto", "ValueInfoProto"}
"""Messages of ONNX that are not searched for tensors: they have none, and most graphs have many of them."""
_AGAIN = "export the model again"


class StoredTensor(NamedTuple):
    """A tensor of a graph whose values lie in a file of the bundle.

    Attributes:
        name: in the graph.
        file: which file.
        offset: where it begins, in bytes.
        shape: its dimensions.
        dtype: of its elements, `float32` or `float16`; they are little-endian and row-major.
    """

    name: str
    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def end(self) -> int:
        """The offset after its last byte."""
        return self.offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize


def check_bundle(folder: Path, manifest: Manifest) -> dict[str, NDArray[np.float32]]:
    """Check the graphs, norms and weights of a bundle.

    Args:
        folder: the bundle.
        manifest: of it, see `neuroglot.definitions.bundle.open_bundle`.

    Returns:
        The norms of each component's value rows, `[layers, neurons]`, by the component's name.

    Raises:
        BundleError: a graph cannot be read, names a file that is not in the manifest, has tensors that overlap or leave
            their file, or disagrees with the manifest about the value matrices or the vocabulary; norms are not those
            of the value rows; a weight is not finite.
    """
    components = manifest.model.components
    stored = [tensor for component in components for tensor in _check_graph(folder, manifest, component)]
    # What two graphs share, or two tensors of one, is there once.
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
    """The tensors of a graph that lie in files, if the graph agrees with the manifest.

    Raises:
        BundleError: it does not, or is none.
    """
    import onnx  # here: its import would add to that of a server which has no bundle yet

    file = folder / component.graph
    with open_file(folder, component.graph) as opened:
        content = opened.read()
    try:
        if count_fields(content, onnx.ModelProto.DESCRIPTOR, _MAX_GRAPH_FIELDS) > _MAX_GRAPH_FIELDS:
            raise BundleError(f"{file} has more than {_MAX_GRAPH_FIELDS} fields: {_AGAIN}")
        model = onnx.ModelProto.FromString(content)
    except (DecodeError, ValueError):
        raise BundleError(f"{file} is no ONNX graph: {_AGAIN}") from None
    stored = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if sum(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _all_tensors(model)) > len(stored):
        raise BundleError(f"{file} has values in other files for more than its initializers: {_AGAIN}")
    dtypes: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}
    tensors = [_stored_tensor(file, manifest, tensor, dtypes.get(tensor.data_type, "")) for tensor in stored]
    named = {tensor.name: tensor for tensor in tensors}
    if len(named) < len(tensors):
        raise BundleError(f"{file} has two initializers of one name: {_AGAIN}")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    expected = {f"value_matrix.{layer}": matrix for layer, matrix in enumerate(component.values)}
    if component.name == DECODER:
        expected["output_embedding"] = manifest.model.output_embedding
    for what, matrix in expected.items():
        _check_matrix(file, what, named.get(metadata.get(what, "")), matrix)
    _check_input_embedding(file, model.graph, manifest.model.vocabulary_size)
    return tensors


def _all_tensors(model: Any) -> Iterator[Any]:
    """Every TensorProto of a ModelProto, wherever it stands."""
    rest: list[Any] = [model]
    while rest:
        message = rest.pop()
        if message.DESCRIPTOR.name == "TensorProto":
            yield message
            continue
        for field, value in message.ListFields():
            if field.message_type is not None and field.message_type.name not in _WITHOUT_TENSORS:
                rest.extend([value] if isinstance(value, Message) else value)


def _stored_tensor(file: Path, manifest: Manifest, tensor: Any, dtype: str) -> StoredTensor:
    """What a TensorProto with external data says.

    Raises:
        BundleError: it is of another type, or its values are not inside a file that the manifest lists.
    """
    where = f"the tensor {shown(tensor.name)} of {file}"
    if not dtype:
        raise BundleError(f"{where} has data type {tensor.data_type}, expected float32 or float16: {_AGAIN}")
    if len(tensor.dims) > _MAX_RANK or any(size < 1 for size in tensor.dims):
        raise BundleError(
            f"{where} has the shape {list(tensor.dims)[:_MAX_RANK]}, expected at most {_MAX_RANK} positive sizes: "
            f"{_AGAIN}"
        )
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, offset, length = (entries.pop(key, "") for key in ("location", "offset", "length"))
    if entries or len(tensor.external_data) != 3 or not (_is_size(offset) and _is_size(length)):
        raise BundleError(f"{where} does not say where its values are with location, offset and length: {_AGAIN}")
    if location not in manifest.files:
        raise BundleError(f"{where} has its values in {shown(location)}, which the manifest does not list: {_AGAIN}")
    found = StoredTensor(tensor.name, location, int(offset), tuple(tensor.dims), dtype)
    if found.end - found.offset != int(length):
        raise BundleError(f"{where} takes {found.end - found.offset} bytes, and says {length}: {_AGAIN}")
    if found.end > manifest.files[location].size:
        raise BundleError(
            f"{where} ends at byte {found.end} of {location}, which has {manifest.files[location].size}: {_AGAIN}"
        )
    return found


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18  # fits into 64 bits


def _check_matrix(file: Path, what: str, tensor: StoredTensor | None, matrix: StoredMatrix) -> None:
    """Compare a matrix of the manifest with the initializer that the graph's metadata name.

    Raises:
        BundleError: they differ.
    """
    if tensor is None:
        raise BundleError(f"{file} does not name an initializer with external data as its {what}: {_AGAIN}")
    found = StoredMatrix(
        tensor.file, tensor.offset, *(tensor.shape if len(tensor.shape) == 2 else (0, 0)), tensor.dtype
    )
    if found != matrix:
        raise BundleError(
            f"{what} is {tensor.dtype} {list(tensor.shape)} at byte {tensor.offset} of {tensor.file} in {file}, and "
            f"{matrix.dtype} {[matrix.rows, matrix.columns]} at byte {matrix.offset} of {shown(matrix.file)} in the "
            f"manifest: {_AGAIN}"
        )


def _check_input_embedding(file: Path, graph: Any, vocabulary: int) -> None:
    """Make sure that every token of the vocabulary has a row in the matrix that the graph looks tokens up in.

    Raises:
        BundleError: it has fewer, or there is no such matrix.
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
        raise BundleError(f"{file} {found}, expected an input embedding of {vocabulary} tokens: {_AGAIN}")


def _check_overlaps(folder: Path, tensors: Sequence[StoredTensor]) -> None:
    """Make sure that tensors, in the order in which they lie, have their bytes to themselves.

    Raises:
        BundleError: two overlap.
    """
    for before, after in pairwise(tensors):
        if before.file == after.file and after.offset < before.end:
            raise BundleError(
                f"the tensors {shown(before.name)} and {shown(after.name)} overlap at byte {after.offset} of "
                f"{folder / after.file}, expected each to have its bytes to itself: {_AGAIN}"
            )


def _read_norms(folder: Path, component: Component) -> NDArray[np.float32]:
    """The norms of a component's value rows, `[layers, neurons]`.

    Raises:
        BundleError: the file holds something else.
    """
    file = folder / component.norms
    shape = (component.layers, component.neurons)
    with open_file(folder, component.norms) as opened:
        try:
            if np.lib.format.read_magic(opened) != (1, 0):
                raise ValueError("it is not of version 1.0")
            found, by_column, dtype = np.lib.format.read_array_header_1_0(opened, _NORMS_HEADER_BYTES)
        except Exception as error:  # noqa: BLE001 - the header is a text that NumPy evaluates
            raise BundleError(f"{file} is no array of NumPy ({shown(str(error))}): {_AGAIN}") from None
        if found != shape or dtype != np.dtype("<f4") or by_column:
            raise BundleError(f"{file} has {f'{dtype} {found}'[:60]}, expected float32 {shape}: {_AGAIN}")
        content = opened.read()
    if len(content) != 4 * math.prod(shape):
        raise BundleError(f"{file} has {len(content)} bytes of norms, expected {4 * math.prod(shape)}: {_AGAIN}")
    norms = np.frombuffer(content, np.float32).reshape(shape)
    if not (np.isfinite(norms).all() and (norms >= 0).all()):
        raise BundleError(f"{file} has norms that are negative or not finite: {_AGAIN}")
    return norms


def _check_finite(folder: Path, tensor: StoredTensor) -> None:
    """Read a tensor's values once.

    Raises:
        BundleError: one is NaN or infinite.
    """
    for values in _chunks(folder, tensor.file, tensor.offset, math.prod(tensor.shape), tensor.dtype):
        if not np.isfinite(values).all():
            raise BundleError(
                f"the tensor {shown(tensor.name)} in {folder / tensor.file} has a weight that is not finite: {_AGAIN}"
            )


def _check_norms(
    folder: Path, component: Component, layer: int, matrix: StoredMatrix, norms: NDArray[np.float32]
) -> None:
    """Compare norms with those of the value rows.

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
                f"row has the norm {found[row]:g}: {_AGAIN}"
            )
        first += len(found)


def _chunks(
    folder: Path, file: str, offset: int, elements: int, dtype: str, multiple: int = 1
) -> Iterator[NDArray[np.floating]]:
    """So many elements of a file, some at a time, each time a multiple of some number; in memory that is used again.

    They are read and not mapped: pages that are mapped would count as memory of the process.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    most = max(_CHUNK_BYTES // kind.itemsize // multiple, 1) * multiple
    buffer = np.empty(min(most, elements), kind)
    with open_file(folder, file) as opened:
        opened.seek(offset)
        for start in range(0, elements, most):
            values = buffer[: elements - start]
            if opened.readinto(values.data) < values.nbytes:
                raise BundleError(f"{folder / file} ended while it was read: {_AGAIN}")
            yield values
