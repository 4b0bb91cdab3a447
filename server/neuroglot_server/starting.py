"""Sessions that start on a thread of their own, while all else of a server does.

Almost all of what a start takes on the processor is to bring the weights into the order in which they are multiplied
(ONNX Runtime does it at every start, with saved packed weights too). Until then a server can say what it serves, and
take requests in; its first pass waits for what is left.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

from neuroglot.bundle import WEIGHTS
from neuroglot_server.devices import Device, session_options, start_session
from neuroglot_server.packed import saved

_logger = logging.getLogger(__name__)

_WORTH_A_THREAD_BYTES = 64 * 2**20


def takes_long(graph: Path, device: Device) -> bool:
    """Whether a graph has so much to be packed that it is worth a thread."""
    weights = graph.with_name(WEIGHTS)
    return device.kind == "cpu" and weights.exists() and weights.stat().st_size >= _WORTH_A_THREAD_BYTES


def starting(graph: Path, threads: int) -> Future[Any]:
    """Begin to start a session on the processor; the interpreter does not end before it is there.

    Args:
        graph: an ONNX file, of which an unpacked session has shown that it can be read.
        threads: threads within one pass; 0 for one a core.

    Returns:
        The session, or what ONNX Runtime raised, such as a lack of memory.
    """
    session: Future[Any] = Future()

    def start() -> None:
        try:
            session.set_result(_started(graph, threads))
        except Exception as error:  # noqa: BLE001 - it is raised where the session is asked for
            session.set_exception(error)

    Thread(target=start, name="packing").start()
    return session


def _started(graph: Path, threads: int) -> Any:
    """A session, with the packed weights that were saved if there are any that can be used."""
    device = Device("cpu")
    packed = saved(graph)
    if packed is not None:
        try:
            return start_session(packed, device, session_options(device, threads))
        except Exception:
            _logger.exception("%s cannot be used, and is left aside: remove it, and prepare again", packed.parent)
    return start_session(graph, device, session_options(device, threads))
