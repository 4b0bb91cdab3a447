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
    """Who makes and who reads the tensors of a graph.

    It knows the graph as it stood when it was made; after nodes were inserted, make another.
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
        """Let the producer of a tensor call it `name`, and those who read it read `read_as`."""
        producer = self.producers[tensor]
        producer.output[list(producer.output).index(tensor)] = name
        self.redirect(tensor, read_as)

    def redirect(self, tensor: str, read_as: str) -> None:
        """Let those who read a tensor read another."""
        for node in self.consumers[tensor]:
            for position, read in enumerate(node.input):
                if read == tensor:
                    node.input[position] = read_as


def insert_after(graph: onnx.GraphProto, additions: Mapping[str, Iterable[onnx.NodeProto]]) -> None:
    """Insert nodes after those that make the named tensors, so that the order stays topological."""
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for output in node.output:
            nodes.extend(additions.get(output, ()))
    del graph.node[:]
    graph.node.extend(nodes)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Bring nodes into a topological order; those that stand in one stay as they stand, but for what they wait for.

    Raises:
        RewriteError: nodes wait for each other.
    """
    made = {output for node in graph.node for output in node.output}
    waits = {place: {name for name in node.input if name in made} for place, node in enumerate(graph.node)}
    readers: dict[str, list[int]] = defaultdict(list)
    for place, names in waits.items():
        for name in names:
            readers[name].append(place)
    ready = [place for place, names in waits.items() if not names]
    order = []
    while ready:
        node = graph.node[place := heapq.heappop(ready)]
        order.append(place)
        for output in node.output:
            for reader in readers[output]:
                waits[reader].discard(output)
                if not waits[reader]:
                    heapq.heappush(ready, reader)
    if len(order) < len(graph.node):
        stuck = next(graph.node[place].name for place, names in waits.items() if names)
        raise RewriteError(f"{stuck} waits for what it makes itself, by way of other nodes: the graph has a cycle")
    nodes = [graph.node[place] for place in order]
    del graph.node[:]
    graph.node.extend(nodes)


def optional_input(
    graph: onnx.GraphProto, default: onnx.TensorProto, dimensions: Iterable[str | int], documentation: str
) -> None:
    """Add an input that may be left out: an initializer and a graph input of one name (ONNX's overridable initializer).

    Args:
        graph: changed in place.
        default: the value that it has where it is left out; its name is the input's.
        dimensions: a symbol or a size for each dimension.
        documentation: the input's doc string.
    """
    graph.initializer.append(default)
    graph.input.append(
        onnx.helper.make_tensor_value_info(default.name, default.data_type, list(dimensions), doc_string=documentation)
    )
