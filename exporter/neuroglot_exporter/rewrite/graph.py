"""Finding and inserting nodes of an ONNX graph."""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import onnx

from neuroglot_exporter.errors import RewriteError

LAST_POSITION = 2**63 - 1
"""As an end of `Slice`: up to the end."""


def scope_of(module_path: str) -> str:
    """The scope that the tracer gives to a module's nodes: names of a list's entries keep their dot.

    >>> scope_of("transformer.h.0.mlp.gelu_impl")
    '/transformer/h.0/mlp/gelu_impl/'
    """
    return "/" + re.sub(r"\.(?!\d+(?:\.|$))", "/", module_path) + "/"


class GraphIndex:
    """Producers and consumers of the tensors of a graph.

    A snapshot: create a new index after inserting nodes.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.by_name: dict[str, onnx.NodeProto] = {}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            self.by_name[node.name] = node
            for output in node.output:
                self.producers[output] = node
            for tensor in dict.fromkeys(node.input):
                self.consumers[tensor].append(node)

    def matmul_of(self, module_path: str) -> onnx.NodeProto:
        """The `MatMul` of a linear layer.

        Raises:
            RewriteError: there is none in the layer's scope.
        """
        name = scope_of(module_path) + "MatMul"
        if name not in self.by_name:
            raise RewriteError(f"the traced graph has no node {name}: the family's module path is wrong")
        return self.by_name[name]

    def rename(self, tensor: str, name: str, *, read_as: str) -> None:
        """Rename the output of a tensor's producer to `name`, and let its consumers read `read_as`."""
        producer = self.producers[tensor]
        producer.output[list(producer.output).index(tensor)] = name
        self.redirect(tensor, read_as)

    def redirect(self, tensor: str, read_as: str) -> None:
        """Let the consumers of a tensor read another one."""
        for node in self.consumers[tensor]:
            for position, read in enumerate(node.input):
                if read == tensor:
                    node.input[position] = read_as


def insert_after(graph: onnx.GraphProto, additions: Mapping[str, Iterable[onnx.NodeProto]]) -> None:
    """Insert nodes after the producers of the named tensors, which keeps the order topological."""
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for output in node.output:
            nodes.extend(additions.get(output, ()))
    del graph.node[:]
    graph.node.extend(nodes)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Sort nodes topologically. The sort is stable: nodes move only behind their inputs.

    Raises:
        RewriteError: the graph has a cycle.
    """
    made = {output for node in graph.node for output in node.output}
    missing = {index: {name for name in node.input if name in made} for index, node in enumerate(graph.node)}
    readers: dict[str, list[int]] = defaultdict(list)
    for index, names in missing.items():
        for name in names:
            readers[name].append(index)
    ready = [index for index, names in missing.items() if not names]
    order = []
    while ready:
        node = graph.node[index := heapq.heappop(ready)]
        order.append(index)
        for output in node.output:
            for reader in readers[output]:
                missing[reader].discard(output)
                if not missing[reader]:
                    heapq.heappush(ready, reader)
    if len(order) < len(graph.node):
        stuck = next(graph.node[index].name for index, names in missing.items() if names)
        raise RewriteError(f"{stuck} waits for what it makes itself, by way of other nodes: the graph has a cycle")
    nodes = [graph.node[index] for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def optional_input(
    graph: onnx.GraphProto, default: onnx.TensorProto, dimensions: Iterable[str | int], documentation: str
) -> None:
    """Add an input that may be left out: an initializer and a graph input of one name (ONNX's overridable initializer).

    Args:
        graph: changed in place.
        default: the value if the input is left out; its name is the input's.
        dimensions: a symbol or a size for each dimension.
        documentation: the input's doc string.
    """
    graph.initializer.append(default)
    graph.input.append(
        onnx.helper.make_tensor_value_info(default.name, default.data_type, list(dimensions), doc_string=documentation)
    )
