"""Hostile bundles: each is a valid bundle with one change, and hashes that match the changed files."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from neuroglot.definitions.bundle import (
    HASH_ON_LOAD_BYTES,
    MANIFEST,
    MANIFEST_BYTES,
    PROBE,
    TOKENIZER,
    WEIGHTS,
    hash_file,
)

GRAPH, NORMS = "decoder.onnx", "decoder.norms.npy"
Change = Callable[[Path], None]

VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "negative": -1,
    "zero": 0,
    "huge": 2**62,
    "fraction": 0.25,
    "nan": float("nan"),
    "empty": "",
    "lines": "a\nb",
    "surrogate": "\ud800",
    "long": "x" * 5000,
    "list": [],
    "object": {},
}
"""Values to set fields to, by name."""

_ALLOWED = {
    "source_revision": {"empty", "missing"},
    "tools": {"object", "missing"},
    "verification": {"object", "missing"},
    "model.max_positions": {"null"},
    "model.eos_token_ids": {"list"},
    "model.decoder_start_token_id": {"null"},
    "model.output_scale": {"fraction"},
    "model.output_embedding.offset": {"zero"},
}
"""Values with which a bundle is still valid, by field."""


def changes() -> Iterator[tuple[str, Change]]:
    """Yield all changes, each with a description."""
    yield from _fields()
    yield from _manifests()
    yield from _files()
    yield from _graphs()
    yield from _norms()
    for name, value in (("nan", np.nan), ("infinite", np.inf)):
        yield f"weights/{name}", functools.partial(_write_weight, value=value)
    for name, text in (("garbage", "\x00" * 100), ("empty", "{}"), ("nested", "[" * 100_000), ("list", "[1, 2]")):
        yield f"tokenizer/{name}", functools.partial(_rewrite, name=TOKENIZER, content=text.encode())
    yield "tokenizer/large", _enlarge_tokenizer


# The manifest


def _load(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return content


def _store(folder: Path, content: dict[str, Any]) -> None:
    """Write a manifest, with the identity that matches its content if that can be computed."""
    with suppress(KeyError, TypeError, AttributeError, ValueError):
        hashes = {path: entry["sha256"] for path, entry in content["files"].items() if path != PROBE}
        decisive = {"format_version": content["format_version"], "model": content["model"], "files": hashes}
        identity = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        content["identity"] = identity if content.get("identity") == _load(folder)["identity"] else content["identity"]
    (folder / MANIFEST).write_text(json.dumps(content))


def rehash(folder: Path) -> None:
    """Update the sizes and hashes in the manifest to those of the files."""
    content = _load(folder)
    for path, entry in content["files"].items():
        entry.update(size=(folder / path).stat().st_size, sha256=hash_file(folder / path))
    _store(folder, content)


def _fields() -> Iterator[tuple[str, Change]]:
    matrix = ("file", "offset", "rows", "columns", "dtype")
    component = ("name", "graph", "norms", "layers", "neurons", "hidden_size", "activation_function", "gated", "values")
    facts = ("family", "dtype", "vocabulary_size", "max_positions", "eos_token_ids", "decoder_start_token_id")
    paths = [
        *("format_version", "identity", "source", "source_revision", "tools", "verification", "files", "model"),
        *(f"model.{name}" for name in (*facts, "components", "output_embedding", "output_scale")),
        *(f"model.components.0.{name}" for name in component),
        *(f"model.components.0.values.1.{name}" for name in matrix),
        *(f"model.output_embedding.{name}" for name in matrix),
        *(f"files/{WEIGHTS}/{name}" for name in ("size", "sha256")),
    ]
    for path in paths:
        for name, value in VALUES.items():
            if name not in _ALLOWED.get(path, ()):
                yield f"{path}={name}", functools.partial(_set_field, path=path, value=value)
        if "missing" not in _ALLOWED.get(path, ()):
            yield f"{path} missing", functools.partial(_set_field, path=path)
    for path in ("more", "model.more", "model.components.0.more", "model.output_embedding.more"):
        yield path, functools.partial(_set_field, path=path, value=1)


_MISSING = object()


def _set_field(folder: Path, path: str, value: Any = _MISSING) -> None:
    content = _load(folder)
    *parents, last = path.split("/" if "/" in path else ".")
    target: Any = content
    for parent in parents:
        target = target[int(parent) if isinstance(target, list) else parent]
    if value is _MISSING:
        del target[last]
    else:
        target[last] = copy.deepcopy(value)
    _store(folder, content)


def _manifests() -> Iterator[tuple[str, Change]]:
    texts = {
        "empty": b"",
        "half": b'{"identity": "',
        "list": b"[]",
        "null": b"null",
        "nested": b"[" * 500_000,
        "nested objects": b'{"a":' * 100_000,
        "binary": bytes(range(256)),
        "large": b" " * MANIFEST_BYTES + b"{}",
        "digits": b'{"format_version": ' + b"9" * 10_000 + b"}",
    }
    for name, text in texts.items():
        yield f"manifest/{name}", functools.partial(_write_manifest, content=text)

    def twice(folder: Path) -> None:
        text = (folder / MANIFEST).read_text()
        (folder / MANIFEST).write_text(text.replace('"source"', '"source": "other", "source"'))

    yield "manifest/twice", twice
    facts: dict[str, dict[str, Any]] = {
        "more tokens": {"vocabulary_size": 321, "output_embedding.rows": 321},
        "fewer tokens": {"vocabulary_size": 319, "output_embedding.rows": 319},
        "fewer layers": {"components.0.layers": 2, "components.0.values": slice(2)},
        "fewer neurons": {"components.0.neurons": 95, **{f"components.0.values.{i}.rows": 95 for i in range(3)}},
        "wider": {
            "components.0.hidden_size": 25,
            "output_embedding.columns": 25,
            **{f"components.0.values.{i}.columns": 25 for i in range(3)},
        },
        "eos outside": {"eos_token_ids": [2, 320]},
        "eos bool": {"eos_token_ids": [True]},
        "many eos": {"eos_token_ids": [2] * 2000},
        "start outside": {"decoder_start_token_id": 320},
        "start of a causal model": {"decoder_start_token_id": 2},
        "other dtype": {"dtype": "float16"},
        "matrix of another dtype": {"output_embedding.dtype": "float16"},
        "matrix elsewhere": {"output_embedding.offset": 64},
        "odd offset": {"components.0.values.0.offset": 50753},
        "matrix beyond": {"components.0.values.0.offset": 118_556},
        "matrix in another file": {"components.0.values.0.file": TOKENIZER},
        "gated": {"components.0.gated": True},
        "other graph": {"components.0.graph": "../decoder.onnx"},
        "graph of another runtime": {"components.0.graph": "decoder.ort"},
        "encoder": {"components.0.name": "encoder"},
    }
    for name, values in facts.items():
        yield f"facts/{name}", functools.partial(_set_facts, values=values)
    for name in ("../x", "/etc/passwd", "a/../../b", "..\\x", "./x", "a//b", "", "\x00", "a\nb", "\ud800", "x" * 2000):
        yield f"path {name[:20]!r}", functools.partial(_list_file, name=name)


def _write_manifest(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)


def _set_facts(folder: Path, values: dict[str, Any]) -> None:
    for path, value in values.items():
        if isinstance(value, slice):
            value = _load(folder)["model"]["components"][0]["values"][value]
        _set_field(folder, f"model.{path}", value)


def _list_file(folder: Path, name: str) -> None:
    content = _load(folder)
    content["files"][name] = {"size": 1, "sha256": "0" * 64}
    _store(folder, content)


# Files


def _files() -> Iterator[tuple[str, Change]]:
    def directory(file: Path) -> None:
        file.mkdir()

    def bound_socket(file: Path) -> None:
        here = Path.cwd()
        os.chdir(file.parent)  # the path of a Unix socket is limited to 108 bytes
        try:
            with socket.socket(socket.AF_UNIX) as unix:
                unix.bind(file.name)
        finally:
            os.chdir(here)

    def elsewhere(file: Path) -> Path:
        there = file.parent.with_suffix(".outside")
        there.mkdir(exist_ok=True)
        return Path(shutil.copy(file.parent.with_suffix(".good") / file.name, there / file.name))

    kinds: dict[str, Callable[[Path], object]] = {
        "missing": lambda _: None,
        "pipe": os.mkfifo,
        "directory": directory,
        "socket": bound_socket,
        "zeros": lambda file: file.symlink_to("/dev/zero"),
        "dangling link": lambda file: file.symlink_to("nowhere"),
        "link to itself": lambda file: file.symlink_to(file.name),
        "link out": lambda file: file.symlink_to(elsewhere(file)),
        "hard link": lambda file: file.hardlink_to(elsewhere(file)),
        "empty": lambda file: file.write_bytes(b""),
        "half": lambda file: file.write_bytes(elsewhere(file).read_bytes()[: elsewhere(file).stat().st_size // 2]),
        "flipped": lambda file: file.write_bytes(_flipped(elsewhere(file).read_bytes())),
    }
    for name in (MANIFEST, GRAPH, NORMS, TOKENIZER, PROBE, WEIGHTS):
        for kind, make in kinds.items():
            if (name, kind) == (MANIFEST, "flipped"):
                continue  # its middle is in the measurements, which are not checked
            yield f"{name} {kind}", functools.partial(_replace, name=name, make=make)
    yield "folder is a link", _link_a_folder


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _replace(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    good = folder.with_suffix(".good")
    good.mkdir()
    (folder / name).rename(good / name)
    make(folder / name)


def _link_a_folder(folder: Path) -> None:
    outside = folder.with_suffix(".outside")
    outside.mkdir()
    (outside / "notes.txt").write_text("x")
    (folder / "sub").symlink_to(outside)
    content = _load(folder)
    content["files"]["sub/notes.txt"] = {"size": 1, "sha256": hash_file(outside / "notes.txt")}
    _store(folder, content)


def _rewrite(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    rehash(folder)


def _enlarge_tokenizer(folder: Path) -> None:
    os.truncate(folder / TOKENIZER, HASH_ON_LOAD_BYTES + 1)
    rehash(folder)


def _write_weight(folder: Path, value: float) -> None:
    weights = np.fromfile(folder / WEIGHTS, np.float32)
    weights[1000] = value
    weights.tofile(folder / WEIGHTS)
    rehash(folder)


# Graphs


def change_graph(folder: Path, change: Callable[[Any], None]) -> None:
    """Change the graph of a bundle in place, without its external data."""
    model = onnx.load(folder / GRAPH, load_external_data=False)
    change(model)
    (folder / GRAPH).write_bytes(model.SerializeToString())
    rehash(folder)


def _external(model: Any, index: int = 3) -> Any:
    """An initializer with external data."""
    return [tensor for tensor in model.graph.initializer if tensor.data_location][index]


def _set_external(model: Any, **values: str) -> None:
    tensor = _external(model)
    entries = {entry.key: entry.value for entry in tensor.external_data} | values
    del tensor.external_data[:]
    for key, value in entries.items():
        if value:
            tensor.external_data.add(key=key, value=value)


def _graphs() -> Iterator[tuple[str, Change]]:
    for name, content in (
        ("empty", b""),
        ("garbage", b"\xff" * 1000),
        ("text", b"hello"),
        ("nested", _nested()),
        ("nodes", _nodes()),
    ):
        yield f"graph/{name}", functools.partial(_rewrite, name=GRAPH, content=content)
    locations: dict[str, dict[str, str]] = {
        "outside": {"location": "../weights.data"},
        "absolute": {"location": "/etc/passwd"},
        "zeros": {"location": "/dev/zero"},
        "memory": {"location": "*/_ORT_MEM_ADDR_/*"},
        "unlisted": {"location": MANIFEST},
        "no location": {"location": ""},
        "offset beyond": {"offset": "118560"},
        "offset just beyond": {"offset": "118500"},
        "negative offset": {"offset": "-64"},
        "huge offset": {"offset": "9" * 30},
        "offset is a word": {"offset": "zero"},
        "other digits": {"offset": "٣"},
        "overlap": {"offset": "4"},
        "short": {"length": "4"},
        "long": {"length": "1000000"},
        "no length": {"length": ""},
        "more keys": {"checksum": "x"},
    }
    for name, values in locations.items():
        yield f"data/{name}", functools.partial(change_graph, change=functools.partial(_set_external, **values))
    for change in _GRAPH_CHANGES:
        yield f"graph/{change.__name__.strip('_')}", functools.partial(change_graph, change=change)


def _nested() -> bytes:
    """A graph in an attribute of a node of a graph, nested a thousand times."""
    content = b""
    for _ in range(1000):
        for tag in (0x32, 0x2A, 0x0A):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            content = bytes([tag]) + _varint(len(content)) + content
    return b"\x3a" + _varint(len(content)) + content


def _nodes() -> bytes:
    """A graph of two million empty nodes, four megabytes that take up a hundred times as much once parsed."""
    content = b"\x0a\x00" * 2_000_000
    return b"\x3a" + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def slow_to_start(model: Any) -> None:
    """Make a session multiply constants for a minute while it starts."""
    size, products = 2048, 200
    model.graph.initializer.append(helper.make_tensor("slow.shape", onnx.TensorProto.INT64, [2], [size, size]))
    first = helper.make_node("ConstantOfShape", ["slow.shape"], ["slow.0"])
    chain = [helper.make_node("MatMul", [f"slow.{i}", "slow.0"], [f"slow.{i + 1}"]) for i in range(products)]
    model.graph.node.extend([first, *chain])
    last = helper.make_tensor_value_info(f"slow.{products}", onnx.TensorProto.FLOAT, [size, size])
    model.graph.output.append(last)


def _no_graph(model: Any) -> None:
    model.ClearField("graph")


def _doubles(model: Any) -> None:
    _external(model).data_type = onnx.TensorProto.DOUBLE


def _integers(model: Any) -> None:
    _external(model).data_type = onnx.TensorProto.INT32


def _half_as_many_bytes(model: Any) -> None:
    _external(model).data_type = onnx.TensorProto.FLOAT16


def _no_elements(model: Any) -> None:
    _external(model).dims[0] = 0


def _negative_elements(model: Any) -> None:
    _external(model).dims[0] = -1


def _many_dimensions(model: Any) -> None:
    tensor = _external(model)
    tensor.dims[:] = [1] * 10_000 + list(tensor.dims)


def _overflowing_dimensions(model: Any) -> None:
    _external(model).dims[:] = [2**62, 2**62]


def _twice(model: Any) -> None:
    model.graph.initializer.append(_external(model))


def _transposed_embedding(model: Any) -> None:
    (name,) = [entry.value for entry in model.metadata_props if entry.key == "output_embedding"]
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.dims[:] = reversed(tensor.dims)


def _no_metadata(model: Any) -> None:
    del model.metadata_props[:]


def _other_value_matrix(model: Any) -> None:
    entries = {entry.key: entry for entry in model.metadata_props}
    entries["value_matrix.0"].value = entries["value_matrix.1"].value


def _no_value_matrix(model: Any) -> None:
    {entry.key: entry for entry in model.metadata_props}["value_matrix.0"].value = "nowhere"


def _constant_elsewhere(model: Any) -> None:
    node = model.graph.node.add(op_type="Constant", output=["elsewhere"])
    node.attribute.append(helper.make_attribute("value", _external(model)))


def _constant_in_a_branch(model: Any) -> None:
    branch = helper.make_graph([], "branch", [], [], [_external(model)])
    node = model.graph.node.add(op_type="If", input=["none"], output=["elsewhere"])
    node.attribute.append(helper.make_attribute("then_branch", branch))


def _constant_in_a_function(model: Any) -> None:
    function = model.functions.add(name="f", domain="x")
    node = function.node.add(op_type="Constant", output=["elsewhere"])
    node.attribute.append(helper.make_attribute("value", _external(model)))


def _sparse_elsewhere(model: Any) -> None:
    model.graph.sparse_initializer.add(values=_external(model))


def _small_input_embedding(model: Any) -> None:
    (lookup,) = [node for node in model.graph.node if node.op_type == "Gather" and "input_ids" in node.input]
    model.graph.initializer.append(helper.make_tensor("small", onnx.TensorProto.FLOAT, [10, 24], [0.5] * 240))
    lookup.input[0] = "small"


def _no_input_embedding(model: Any) -> None:
    (lookup,) = [node for node in model.graph.node if node.op_type == "Gather" and "input_ids" in node.input]
    lookup.op_type = "GatherElements"


def _unknown_operator(model: Any) -> None:
    model.graph.node[5].op_type = "Nothing"


def _unknown_domain(model: Any) -> None:
    model.graph.node[5].domain = "nowhere"


def _no_nodes(model: Any) -> None:
    del model.graph.node[:]


def _cycle(model: Any) -> None:
    model.graph.node[5].input[0] = model.graph.node[5].output[0]


def _one_more_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))


def _no_mask(model: Any) -> None:
    _rename(model, "ffn.0.mask", "ffn.0.other")


def _no_tap(model: Any) -> None:
    _rename(model, "ffn.1.activation", "ffn.1.other")


def _rename(model: Any, before: str, after: str) -> None:
    for node in model.graph.node:
        node.input[:] = [after if name == before else name for name in node.input]
        node.output[:] = [after if name == before else name for name in node.output]
    for info in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        info.name = after if info.name == before else info.name


def _integer_masks(model: Any) -> None:
    for info in model.graph.input:
        if info.name.endswith(".mask"):
            info.type.tensor_type.elem_type = onnx.TensorProto.INT64


def _some_vocabulary(model: Any) -> None:
    (logits,) = [info for info in model.graph.output if info.name == "logits"]
    logits.type.tensor_type.shape.dim[2].dim_param = "vocabulary"
    del model.graph.value_info[:]
    name = next(entry.value for entry in model.metadata_props if entry.key == "output_embedding")
    for node in model.graph.node:  # through a matrix of unknown shape
        if name in node.input and node.op_type != "Gather":
            node.input[:] = ["any" if each == name else each for each in node.input]
    model.graph.node.insert(0, helper.make_node("Reshape", [name, "shape"], ["any"]))
    model.graph.input.append(helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [2]))


def _no_outputs(model: Any) -> None:
    del model.graph.output[:]


def _opset_of_the_future(model: Any) -> None:
    model.opset_import[0].version = 999


_GRAPH_CHANGES: tuple[Callable[[Any], None], ...] = (
    _no_graph,
    _doubles,
    _integers,
    _half_as_many_bytes,
    _no_elements,
    _negative_elements,
    _many_dimensions,
    _overflowing_dimensions,
    _twice,
    _transposed_embedding,
    _no_metadata,
    _other_value_matrix,
    _no_value_matrix,
    _constant_elsewhere,
    _constant_in_a_branch,
    _constant_in_a_function,
    _sparse_elsewhere,
    _small_input_embedding,
    _no_input_embedding,
    _unknown_operator,
    _unknown_domain,
    _no_nodes,
    _cycle,
    _one_more_input,
    _no_mask,
    _no_tap,
    _integer_masks,
    _some_vocabulary,
    _no_outputs,
    _opset_of_the_future,
)


# Norms


def _norms() -> Iterator[tuple[str, Change]]:
    norms = np.full((3, 96), 2.0, np.float32)
    arrays = {
        "other numbers": norms,
        "negative": -norms,
        "nan": np.full_like(norms, np.nan),
        "infinite": np.full_like(norms, np.inf),
        "flat": norms.ravel(),
        "wider": np.ones((3, 97), np.float32),
        "scalar": np.float32(1),
        "doubles": norms.astype(np.float64),
        "big-endian": norms.astype(">f4"),
        "by column": np.asfortranarray(norms),
        "structure": np.zeros((3, 96), [("x" * 50, "f4")]),
        "objects": np.full((3, 96), None),
    }
    for name, array in arrays.items():
        content = io.BytesIO()
        np.save(content, array, allow_pickle=True)
        yield f"norms/{name}", functools.partial(_rewrite, name=NORMS, content=content.getvalue())
    content = io.BytesIO()
    np.savez(content, norms=norms)
    yield "norms/archive", functools.partial(_rewrite, name=NORMS, content=content.getvalue())
    for name, shape in (("huge", "(10**9, 10**9)"), ("promised", "(1000000000, 1000000000)"), ("deep", "(" * 3000)):
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
        content = io.BytesIO(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + norms.tobytes())
        yield f"norms/{name}", functools.partial(_rewrite, name=NORMS, content=content.getvalue())
    yield "norms/pickle", functools.partial(_rewrite, name=NORMS, content=b"cos\nsystem\n(S'true'\ntR.")
