"""What a hostile or broken client sends: requests that cost much, calls that send nothing, messages that never end."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import grpc

from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2

SERVICE = "/neuroglot.v1.NeuroglotService"
PROMPTS = {"en": "The capital of France is", "es": "La capital de Francia es"}
REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.NOT_FOUND,
    }
)
"""How a hostile request may end, beside an answer."""

_MIB = 2**20


class Request(NamedTuple):
    """A serialized request.

    Attributes:
        name: what is hostile about it.
        method: the RPC, `Tokenize`.
        raw: the bytes of its message.
    """

    name: str
    method: str
    raw: bytes


def requests(model: str) -> Iterator[Request]:
    """Requests that are small for what they ask, or large for no reason."""
    tokenize = service_pb2.TokenizeRequest
    yield Request("a long text", "Tokenize", _bytes(tokenize(model=model, texts=["a b " * (_MIB - 100)])))
    yield Request("a text of one word", "Tokenize", _bytes(tokenize(model=model, texts=["a" * 3 * _MIB])))
    yield Request("empty texts", "Tokenize", _bytes(tokenize(model=model, texts=[""] * 1_500_000)))
    yield Request("more than a message may have", "Tokenize", _bytes(tokenize(model=model, texts=["a" * 70 * _MIB])))
    yield _analyze("a long prompt", model, prompt="word " * 700_000)
    yield _analyze("an answer of dots", model, answers=["." * 3 * _MIB])
    yield _analyze("many answers", model, answers=["x"] * 1_000_000)
    yield _analyze("many choices", model, choices=["x"] * 1_000_000)
    yield _analyze("a long label", model, label="x" * 3 * _MIB)
    yield _analyze("many rows", model, rows=300_000)
    yield _analyze("empty variants", model, variants=[analysis_pb2.Variant()] * 1_500_000)
    types = analysis_pb2.TypeSelection(types=[analysis_pb2.NEURON_TYPE_SPECIFIC] * 3_000_000)
    yield _intervened("enum values", model, analysis_pb2.Selection(types=types))
    shared = analysis_pb2.Selection(types=analysis_pb2.TypeSelection(types=[analysis_pb2.NEURON_TYPE_ALL_SHARED]))
    override = analysis_pb2.Override(values=[1.0] * 900_000)
    yield _analyze(
        "override values",
        model,
        variants=[_variant("o", analysis_pb2.Intervention(selection=shared, override=override))],
    )
    controls = [
        analysis_pb2.Selection(
            control=analysis_pb2.Control(of=shared, kind=analysis_pb2.CONTROL_KIND_RANDOM_MASS, draw=draw)
        )
        for draw in range(511)
    ]
    union = analysis_pb2.Selection(union=analysis_pb2.SelectionList(selections=controls))
    yield _intervened("511 controls", model, union)
    yield _intervened("511 controls of 15 rows", model, union, rows=15)
    nested = shared
    for _ in range(60):
        nested = analysis_pb2.Selection(union=analysis_pb2.SelectionList(selections=[nested]))
    yield _intervened("nested selections", model, nested)
    yield Request("no message", "AnalyzeGroup", random.Random(0).randbytes(2 * _MIB))


def send(channel: grpc.Channel, request: Request, timeout: float = 60.0) -> grpc.StatusCode:
    """Send a request and wait for its end; the status."""
    call = channel.unary_unary(f"{SERVICE}/{request.method}")
    try:
        call(request.raw, timeout=timeout)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


async def silent_calls(address: str, calls: int, seconds: float) -> None:
    """Open calls and send nothing on them."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        opened = [channel.stream_unary(f"{SERVICE}/AnalyzeGroup")() for _ in range(calls)]
        await asyncio.sleep(seconds)
        for call in opened:
            call.cancel()


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


def _analyze(
    name: str,
    model: str,
    *,
    prompt: str = "",
    label: str = "",
    answers: list[str] | None = None,
    choices: list[str] | None = None,
    rows: int = 0,
    variants: list[analysis_pb2.Variant] | None = None,
) -> Request:
    group = group_pb2.Group(
        id=name,
        rows=[
            group_pb2.Row(label=key, text=text, answers=answers or ["Paris"], choices=choices or [])
            for key, text in PROMPTS.items()
        ],
    )
    if prompt:
        group.rows[0].text = prompt
    if label:
        group.rows[0].label = label
    group.rows.extend([group_pb2.Row(label=str(row), text=PROMPTS["en"]) for row in range(rows)])
    analysis = analysis_pb2.Analysis(variants=variants or [], prediction=analysis_pb2.Prediction())
    return Request(
        name,
        "AnalyzeGroup",
        _bytes(service_pb2.AnalyzeGroupRequest(model=model, group=group, analysis=analysis)),
    )


def _intervened(name: str, model: str, selection: analysis_pb2.Selection, rows: int = 0) -> Request:
    intervention = analysis_pb2.Intervention(selection=selection, deactivate=analysis_pb2.Deactivate())
    return _analyze(name, model, rows=rows, variants=[_variant("v", intervention)])


def _variant(name: str, intervention: analysis_pb2.Intervention) -> analysis_pb2.Variant:
    return analysis_pb2.Variant(name=name, interventions=[intervention])


def _bytes(message: service_pb2.TokenizeRequest | service_pb2.AnalyzeGroupRequest) -> bytes:
    return message.SerializeToString()
