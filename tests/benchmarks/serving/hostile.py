"""What a hostile or broken client sends: requests that cost much, calls that send nothing, messages that never end."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from tests.server.hostile_requests import HOSTILE, Hostile, delimited, generated

SERVICE = "/neuroglot.v1.NeuroglotService"
REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.NOT_FOUND,
    }
)
"""How a hostile request may end, beside an answer."""


def requests(model: str) -> Iterator[Hostile]:
    """The requests of the tests, to a model of this name: of a field that comes twice, the last one counts."""
    for one in (*HOSTILE, *generated()):
        raw = one.raw() + delimited(1, model.encode())
        yield one._replace(raw=lambda raw=raw: raw)


def send(channel: grpc.Channel, request: Hostile, timeout: float = 60.0) -> grpc.StatusCode:
    """Send a request and wait for its end; the status."""
    answers = channel.unary_stream(f"{SERVICE}/{request.method}")(request.raw(), timeout=timeout)
    try:
        for _ in answers:
            pass
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


@contextmanager
def silent_calls(address: str, calls: int) -> Iterator[None]:
    """Open calls on one connection, and send nothing on them."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        opened = b"".join(_frame(_HEADERS, _END_HEADERS, 2 * call + 1, _headers(host)) for call in range(calls))
        connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + opened)
        yield


@contextmanager
def unfinished_message(address: str, announced: int, sent: int) -> Iterator[int]:
    """Send the beginning of a message that says it is longer, as far as the server takes it, and keep the call open.

    HTTP/2 by hand (RFC 9113), since no client library sends half a message.

    Yields:
        How many bytes of the message the server took.
    """
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_HEADERS, _END_HEADERS, 1, _headers(host)))
        message = struct.pack(">BI", 0, announced)  # not compressed; its length
        connection.sendall(_frame(_DATA, 0, 1, message))
        windows = {0: 65_535 - len(message), 1: 65_535 - len(message)}
        done = 0
        while done < sent:
            size = min(*windows.values(), 16_384, sent - done)
            if size > 0:
                try:
                    connection.sendall(_frame(_DATA, 0, 1, bytes(size)))
                except OSError:
                    break
                windows = {stream: window - size for stream, window in windows.items()}
                done += size
            elif not _more_window(connection, windows):
                break
        yield done


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_ACKNOWLEDGED = 1
_END_HEADERS = 4
_INITIAL_WINDOW = 4


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _headers(host: str) -> bytes:
    """Headers as literals without indexing, which needs no table of HPACK (RFC 7541, 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"{SERVICE}/AnalyzeGroup",
        ":authority": host,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in fields.items()
    )


def _more_window(connection: socket.socket, windows: dict[int, int]) -> bool:
    """Read one frame and take note of how much more may be sent; False when the server sends nothing or has left."""
    connection.settimeout(1.0)
    try:
        head = _exactly(connection, 9)
        payload = _exactly(connection, int.from_bytes(head[:3], "big"))
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        if kind == _WINDOW_UPDATE:
            windows[stream] += int.from_bytes(payload, "big")
        elif kind == _SETTINGS and not flags & _ACKNOWLEDGED:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == _INITIAL_WINDOW:
                    windows[1] += value - 65_535
            connection.sendall(_frame(_SETTINGS, _ACKNOWLEDGED, 0, b""))
        elif kind == _PING and not flags & _ACKNOWLEDGED:
            connection.sendall(_frame(_PING, _ACKNOWLEDGED, 0, payload))
    except (OSError, EOFError):
        return False
    return True


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            raise EOFError
        found += part
    return found
