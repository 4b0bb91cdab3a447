"""Small ONNX graphs that cut and put together keys and values where they lie: in a device's memory.

All of it is `[2 * layers, rows, heads, tokens, head_size]`; see `device_memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroglot.errors import InstallationError
from neuroglot_server.engine.devices import Device, runtime, session_options, start_session

_OPSET = 17
_IR_VERSION = 8
_DIMENSIONS = 5
_ROWS = 1
_TOKENS = 3
_MOST_GRAPHS = 32
"""Most graphs that are kept: there is one for each number of rows."""


class Assembly:
    """Cuts and puts together on one device.

    Attributes:
        dtype: of the keys and values.
    """

    def __init__(self, device: Device, dtype: np.dtype[np.floating]) -> None:
        """Prepare; graphs are made when they are first needed.

        Raises:
            InstallationError: the package onnx is missing, which makes them.
        """
        try:
            import onnx
        except ImportError as error:
            raise InstallationError(
                "keys and values on a device need the package onnx: install neuroglot[gpu]"
            ) from error
        self.dtype = dtype
        self._onnx: Any = onnx
        self._device = device
        self._runtime = runtime(device)
        # What a graph needs in between is given back: there are many graphs, and each has an arena of its own.
        self._options = self._runtime.RunOptions()
        arena = "cpu" if device.kind == "cpu" else "gpu"
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", f"{arena}:{device.index}")
        self._graph = lru_cache(_MOST_GRAPHS)(self._start)

    def empty(self, shape: Sequence[int]) -> Any:
        """Room for what is to be computed."""
        value = self._runtime.OrtValue
        return value.ortvalue_from_shape_and_type(list(shape), self.dtype, self._device.kind, self._device.index)

    def of_host(self, array: NDArray[np.generic]) -> Any:
        """An array of the host, for a pass; it is copied to the device where the graph wants it there."""
        return self._runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))

    def cut(self, value: Any, places: Sequence[tuple[int, range]]) -> list[Any]:
        """Pieces of one row each: the row's index, and which consecutive tokens."""
        layers, _, heads, _, head_size = value.shape()
        bounds: dict[str, NDArray[np.int64]] = {}
        for piece, (row, tokens) in enumerate(places):
            bounds[f"starts{piece}"] = np.array([row, tokens.start])
            bounds[f"ends{piece}"] = np.array([row + 1, tokens.stop])
        shapes = [(layers, 1, heads, len(tokens), head_size) for _, tokens in places]
        return self._run(self._graph("cut", len(places)), [value], bounds, shapes)

    def joined(self, values: Sequence[Any]) -> Any:
        """Tokens of one row that follow each other."""
        if len(values) == 1:
            return values[0]
        layers, rows, heads, _, head_size = values[0].shape()
        tokens = sum(value.shape()[_TOKENS] for value in values)
        (result,) = self._run(self._graph("join", len(values)), values, {}, [(layers, rows, heads, tokens, head_size)])
        return result

    def stacked(self, values: Sequence[Any], width: int, index: Sequence[int]) -> Any:
        """Rows among each other, with zeros on the left of those that are shorter.

        Args:
            values: of one row each.
            width: tokens of the longest.
            index: which of them each row of the result is.
        """
        layers, _, heads, _, head_size = values[0].shape()
        pads: dict[str, NDArray[np.int64]] = {}
        for place, value in enumerate(values):
            pads[f"pads{place}"] = np.zeros(2 * _DIMENSIONS, np.int64)
            pads[f"pads{place}"][_TOKENS] = width - value.shape()[_TOKENS]
        feeds = {**pads, "index": np.array(index)}
        shape = (layers, len(index), heads, width, head_size)
        (result,) = self._run(self._graph("stack", len(values)), values, feeds, [shape])
        return result

    def _run(
        self,
        session: Any,
        values: Sequence[Any],
        feeds: dict[str, NDArray[np.int64]],
        shapes: Sequence[Sequence[int]],
    ) -> list[Any]:
        """Results of these shapes."""
        results = [self.empty(shape) for shape in shapes]
        binding = session.io_binding()
        for place, value in enumerate(values):
            binding.bind_ortvalue_input(f"value{place}", value)
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, self.of_host(array))
        for place, result in enumerate(results):
            binding.bind_ortvalue_output(f"result{place}", result)
        session.run_with_iobinding(binding, self._options)
        return results

    def _start(self, kind: str, count: int) -> Any:
        """A session of the graph of one kind, for so many pieces or rows."""
        values, integers, nodes, results = _GRAPHS[kind](count, self._onnx.helper.make_node)
        make_input, tensor = self._onnx.helper.make_tensor_value_info, self._onnx.TensorProto
        element = self._onnx.helper.np_dtype_to_tensor_dtype(self.dtype)
        graph = self._onnx.helper.make_graph(
            nodes,
            kind,
            [make_input(name, element, [None] * _DIMENSIONS) for name in values]
            + [make_input(name, tensor.INT64, [None]) for name in integers],
            [make_input(name, element, [None] * _DIMENSIONS) for name in results],
            [self._onnx.helper.make_tensor("axes", tensor.INT64, [2], [_ROWS, _TOKENS])] if kind == "cut" else [],
        )
        opset = self._onnx.helper.make_opsetid("", _OPSET)
        model = self._onnx.helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
        return start_session(model.SerializeToString(), self._device, session_options(self._device, threads=1))


_Parts = tuple[list[str], list[str], list[Any], list[str]]
"""Of a graph: names of the keys and values that it takes, names of its integers, nodes, names of its results."""


def _cut_graph(count: int, make_node: Callable[..., Any]) -> _Parts:
    starts, ends, results = (_names(name, count) for name in ("starts", "ends", "result"))
    nodes = [
        make_node("Slice", ["value0", start, end, "axes"], [result])
        for start, end, result in zip(starts, ends, results, strict=True)
    ]
    return ["value0"], [*starts, *ends], nodes, results


def _join_graph(count: int, make_node: Callable[..., Any]) -> _Parts:
    values = _names("value", count)
    return values, [], [make_node("Concat", values, ["result0"], axis=_TOKENS)], ["result0"]


def _stack_graph(count: int, make_node: Callable[..., Any]) -> _Parts:
    values, pads, padded = (_names(name, count) for name in ("value", "pads", "padded"))
    nodes = [make_node("Pad", [value, pad], [out]) for value, pad, out in zip(values, pads, padded, strict=True)]
    nodes.append(make_node("Concat", padded, ["rows"], axis=_ROWS))
    nodes.append(make_node("Gather", ["rows", "index"], ["result0"], axis=_ROWS))
    return values, [*pads, "index"], nodes, ["result0"]


def _names(name: str, count: int) -> list[str]:
    return [f"{name}{place}" for place in range(count)]


_GRAPHS = {"cut": _cut_graph, "join": _join_graph, "stack": _stack_graph}
