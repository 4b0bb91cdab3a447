"""The life of a server: bind, load, serve, drain, stop; on the caller's event loop, or on one in a thread of its own.

Nothing of gRPC or ONNX Runtime is imported before it is known that what the server needs is installed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from pathlib import Path
from threading import Thread
from typing import NamedTuple, Self

from neuroglot.errors import BundleError
from neuroglot_server.address import Address
from neuroglot_server.core import ModelDescription, Settings
from neuroglot_server.installation import execution_provider

_logger = logging.getLogger(__name__)

_LONGEST_SOCKET_PATH = 100
"""In bytes: the kernel's limit is 108 on Linux and 104 on macOS."""


class Started(NamedTuple):
    """A server that answers.

    Attributes:
        target: what a client connects to, `127.0.0.1:50051` or `unix:/path`.
        models: what it serves, in the order of the bundles.
    """

    target: str
    models: tuple[ModelDescription, ...]


def by_name(bundles: Iterable[Path]) -> dict[str, Path]:
    """Bundles under the names that their models are served by, which are those of their folders.

    Raises:
        BundleError: two have the same name.
    """
    named: dict[str, Path] = {}
    for folder in bundles:
        name = folder.resolve().name
        if name in named:
            raise BundleError(f"{named[name]} and {folder} would both be served as {name!r}: rename one of the folders")
        named[name] = folder
    return named


async def run(
    bundles: Mapping[str, Path],
    address: Address | Path,
    settings: Settings,
    stopping: asyncio.Event,
    started: Callable[[Started], None],
    grace_seconds: float = 0.0,
) -> None:
    """Serve bundles until told to stop.

    Args:
        bundles: the folders, by the names of their models.
        address: where to listen; a path is that of a unix socket.
        settings: how the models are run.
        stopping: set it to have the server drained and stopped.
        started: called once, when the server answers.
        grace_seconds: how long requests that run may go on when the server is told to stop; by default not at all.

    Raises:
        AddressError: the address cannot be had.
        BundleError: a folder is no bundle, a damaged or a newer one.
        InstallationError: ONNX Runtime is missing, or installed twice.
    """
    execution_provider()
    from neuroglot_server.adapter.endpoint import Endpoint
    from neuroglot_server.model import Model

    endpoint = Endpoint()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(endpoint.stop)
        target = _bind(endpoint.bind, address)
        models = []
        for name, folder in bundles.items():
            model = Model.load(folder, name=name, settings=settings)
            stack.push_async_callback(model.close)
            models.append(model)
        await endpoint.start(models)
        started(Started(target, tuple(model.description for model in models)))
        await stopping.wait()
        if grace_seconds:
            await endpoint.drain(grace_seconds)
        await endpoint.stop()


def _bind(bind: Callable[[str], int], address: Address | Path) -> str:
    """Listen, and say under which target a client finds it."""
    if isinstance(address, Path):
        target = f"unix:{address}"
        bind(target)
        return target
    address.check_free()
    return str(Address(address.host, bind(str(address))))


class LocalServer:
    """A server in a thread of this process, which nobody else can reach.

    Close it, or use it as a context manager; at the latest it ends with the process.

    Attributes:
        target: what a client connects to.
        models: what it serves.
    """

    def __init__(self, started: Started, end: Callable[[], None]) -> None:
        """Hold a server that runs, and what ends it."""
        self.target = started.target
        self.models = started.models
        self._end = weakref.finalize(self, end)

    def close(self) -> None:
        """Stop the server and remove its socket; requests that run are cut off. A second time does nothing."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_in_thread(bundles: Sequence[str | Path], settings: Settings | None = None) -> LocalServer:
    """Serve bundles from a daemon thread of this process, on a unix socket that only this user can open.

    Where there are no unix sockets it listens on a free port of 127.0.0.1.

    Args:
        bundles: folders, each served under its name.
        settings: how the models are run; the defaults if None.

    Returns:
        The server, once it answers.

    Raises:
        BundleError: a folder is no bundle, a damaged or a newer one, or two have the same name.
        InstallationError: ONNX Runtime is missing, or installed twice.
    """
    named = by_name(Path(bundle) for bundle in bundles)
    folder = Path(tempfile.mkdtemp(prefix="neuroglot-"))  # readable by this user only
    starting: Future[tuple[Started, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()

        def started(server: Started) -> None:
            starting.set_result((server, loop, stopping))

        await run(named, _private_address(folder), settings or Settings(), stopping, started)

    def work() -> None:
        try:
            asyncio.run(serve())
        except Exception as error:
            if starting.done():
                _logger.exception("the server in this process failed")
            else:
                starting.set_exception(error)

    thread = Thread(target=work, name="neuroglot-server", daemon=True)
    thread.start()
    try:
        server, loop, stopping = starting.result()
    except BaseException:
        shutil.rmtree(folder)
        raise

    def end() -> None:
        if thread.is_alive():
            loop.call_soon_threadsafe(stopping.set)
            thread.join()
        shutil.rmtree(folder, ignore_errors=True)

    return LocalServer(server, end)


def _private_address(folder: Path) -> Address | Path:
    """A socket in a private folder, or a port that only this machine can reach."""
    path = folder / "socket"
    if hasattr(socket, "AF_UNIX") and len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    return Address("127.0.0.1", 0)
