"""The order of the nodes in an ONNX file, in which a session runs them as far as it can (`devices.session_options`).

ONNX Runtime saves a graph in an order of its own: all that only an output depends on comes last, and a pass in that
order would hold the keys and values of all layers at once until the new ones are cut off them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass


def restore_order(saved: Path, original: Path) -> None:
    """Bring the nodes of a saved graph into the order of the graph that it was made from.

    A node goes where the original gives what it gives, or before the first node that needs it: what several layers
    have in common may be there once, by the name that it has in the last of them.
    """
    model = _read(saved)
    nodes = model.graph.node
    wanted = {name: place for place, node in enumerate(_read(original).graph.node) for name in node.output}
    places = []
    for node in reversed(nodes):
        places.append(min(wanted[name] for name in node.output if name in wanted))
        wanted.update((name, min(places[-1], wanted.get(name, places[-1]))) for name in filter(None, node.input))
    order = sorted(range(len(nodes)), key=places[::-1].__getitem__)
    ordered = [nodes[number] for number in order]
    del nodes[:]
    nodes.extend(ordered)
    saved.write_bytes(model.SerializeToString())


def _read(file: Path) -> Any:
    return _model_class().FromString(file.read_bytes())


@cache
def _model_class() -> Any:
    """ONNX's ModelProto, as far as an order needs it: protobuf keeps the fields that it does not know as they are."""
    file = FileDescriptorProto(name="node_order.proto", package="neuroglot.onnx", syntax="proto2")
    repeated, single = FieldDescriptorProto.LABEL_REPEATED, FieldDescriptorProto.LABEL_OPTIONAL
    node = file.message_type.add(name="NodeProto")
    node.field.add(name="input", number=1, label=repeated, type=FieldDescriptorProto.TYPE_STRING)
    node.field.add(name="output", number=2, label=repeated, type=FieldDescriptorProto.TYPE_STRING)
    message = FieldDescriptorProto.TYPE_MESSAGE
    graph = file.message_type.add(name="GraphProto")
    graph.field.add(name="node", number=1, label=repeated, type=message, type_name="NodeProto")
    model = file.message_type.add(name="ModelProto")
    model.field.add(name="graph", number=7, label=single, type=message, type_name="GraphProto")
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("neuroglot.onnx.ModelProto"))
