"""Server reflection under both of its names: v1, which clients try first, and v1alpha, for older clients.

grpcio-reflection implements only v1alpha. The messages of the two are the same, so one servicer serves both; the
descriptor of v1 is that of v1alpha under another package name.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf import descriptor, descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

SERVICE_NAMES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Add reflection to a server, for its services and for reflection itself.

    Args:
        server: a server that is not yet started.
        services: full names of its other services; their descriptors are in the default pool.
    """
    pool = descriptor_pool.DescriptorPool()
    for name in (*services, reflection.SERVICE_NAME):
        _add(descriptor_pool.Default().FindFileContainingSymbol(name), pool)
    pool.AddSerializedFile(_v1().SerializeToString())
    servicer = reflection.aio.ReflectionServicer((*services, *SERVICE_NAMES), pool)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in SERVICE_NAMES)
    )


def _add(file: descriptor.FileDescriptor, pool: descriptor_pool.DescriptorPool) -> None:
    """Add a file to a pool, after the files that it imports."""
    for imported in file.dependencies:
        _add(imported, pool)
    pool.AddSerializedFile(file.serialized_pb)


def _v1() -> descriptor_pb2.FileDescriptorProto:
    """Return the file descriptor of v1alpha, renamed to the package of v1."""
    v1alpha = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    text = text_format.MessageToString(v1alpha)
    for separator in "./":  # in the package name, and in the file's path
        text = text.replace(f"reflection{separator}v1alpha", f"reflection{separator}v1")
    return text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
