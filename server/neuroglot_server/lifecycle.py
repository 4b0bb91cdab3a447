"""The life of a server: bind, load, serve, drain, stop; on the caller's event loop, or on one in a thread of its own.

Nothing of gRPC or ONNX Runtime is imported before it is known that what the server needs is installed.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from pathlib import Path
from threading import Thread, current_thread, main_thread
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Self

import click

from neuroglot.errors import InstallationError
from neuroglot_server.config.address import Address
from neuroglot_server.config.deployment import Deployment, by_name
from neuroglot_server.config.installation import execution_provider
from neuroglot_server.core import ModelDescription, Settings, Unobserved
from neuroglot_server.event_loop import run_in_loop

if TYPE_CHECKING:
    from neuroglot_server.telemetry.metrics import Metrics
    from neuroglot_server.telemetry.tracing import Tracing

_logger = logging.getLogger(__name__)

_LONGEST_SOCKET_PATH = 100
"""In bytes: the kernel's limit is 108 on Linux and 104 on macOS."""

_SHORT_START_SECONDS = 1.0
"""A start that takes no longer shows no progress."""


class Started(NamedTuple):
    """A server that answers.

    Attributes:
        target: what a client connects to, `127.0.0.1:50051` or `unix:/path`.
        models: what it serves, in the order of the bundles.
    """

    target: str
    models: tuple[ModelDescription, ...]


def show_on_stderr(line: str) -> None:
    """Print a line of progress, unless the log says the same."""
    if not _logger.isEnabledFor(logging.INFO):
        click.echo(line, err=True)


async def run(
    deployment: Deployment,
    stopping: asyncio.Event,
    started: Callable[[Started], None],
    progress: Callable[[str], None] = show_on_stderr,
) -> bool:
    """Serve until told to stop.

    Args:
        deployment: what, where, to whom and how.
        stopping: set it to have the server drained and stopped.
        started: called once, when the server answers.
        progress: is given a line when a model takes more than a second to load, and one when it is ready.

    Returns:
        Whether a thread is still loading a bundle: nothing can interrupt it, and the interpreter's end waits for it.

    Raises:
        AddressError: an address cannot be had.
        BundleError: a folder is no bundle, a damaged or a newer one, or its model gives another answer to its probe.
        CertificateError: files for TLS cannot be read or do not belong together.
        InstallationError: ONNX Runtime is missing or installed twice, or what tracing needs is missing.
        LoadTooSlow: a bundle was not loaded in time.
        TenantsError: the file of tenants does not say what it should.
    """
    execution_provider()
    from neuroglot_server.config.tenants import Tenants
    from neuroglot_server.models.model import Model
    from neuroglot_server.models.registry import Registry
    from neuroglot_server.transport.auth import Access
    from neuroglot_server.transport.endpoint import Endpoint
    from neuroglot_server.transport.probing import check_probe
    from neuroglot_server.transport.tls import ServerTls

    with ExitStack() as watchers:
        metrics = _metrics(deployment, watchers)
        tracing = _tracing(deployment, watchers)

        def load(folder: Path, name: str, hang_changed: Callable[[bool], None]) -> Model:
            settings = deployment.settings_of.get(name, deployment.settings)
            observer = metrics.of_model(name) if metrics else Unobserved()
            return Model.load(folder, name, settings, observer, hang_changed)

        registry = Registry(load, check_probe, deployment.bundles_folder, deployment.load_seconds)
        if metrics:
            metrics.memory(
                lambda: {model.description.name: model.memory for model in registry.models},
                deployment.transport.transport_bytes,
            )
        certificates = deployment.certificates
        endpoint = Endpoint(
            registry,
            Access(
                Tenants(deployment.tokens) if deployment.tokens else None,
                client_certificates=certificates is not None and certificates.client_ca is not None,
            ),
            deployment.transport,
            metrics,
            tracing,
        )
        async with AsyncExitStack() as stack:
            stack.push_async_callback(registry.close)
            stack.push_async_callback(endpoint.stop)
            tls = ServerTls(certificates, metrics.certificate_expires if metrics else None) if certificates else None
            target = _bind(partial(endpoint.bind, credentials=tls.credentials if tls else None), deployment.address)
            for name, folder in deployment.bundles.items():
                await _show_progress(registry.load(folder, name), folder, progress)
            await endpoint.start()
            started(Started(target, tuple(model.description for model in registry.models)))
            await stopping.wait()
            if deployment.grace_seconds:
                await endpoint.drain(deployment.grace_seconds)
        return registry.loading


async def _show_progress(loading: Awaitable[object], folder: Path, show: Callable[[str], None]) -> None:
    """Wait for a bundle to be loaded, and show lines about it if that takes long."""
    from neuroglot_server.engine.session import weights_size

    began = monotonic()
    task = asyncio.ensure_future(loading)
    _, pending = await asyncio.wait([task], timeout=_SHORT_START_SECONDS)
    if pending:
        show(f"starting {folder}: {weights_size(folder)} of weights")
    await task
    if pending:
        show(f"{folder} is ready after {monotonic() - began:.1f} s")


def _metrics(deployment: Deployment, watchers: ExitStack) -> Metrics | None:
    """Numbers, at an address, if there is one."""
    if deployment.metrics_address is None:
        return None
    from neuroglot_server.telemetry.metrics import Metrics
    from neuroglot_server.telemetry.monitoring import monitoring_at

    metrics = Metrics()
    monitoring = monitoring_at(deployment.metrics_address, metrics.registry, lambda: metrics.problem)
    address = watchers.enter_context(monitoring)
    _logger.info("metrics are at http://%s/metrics", address)
    return metrics


def _tracing(deployment: Deployment, watchers: ExitStack) -> Tracing | None:
    """Spans, sent to a collector, if there is one."""
    if not deployment.tracing_endpoint:
        return None
    try:
        from neuroglot_server.telemetry.tracing import to_collector
    except ModuleNotFoundError as error:
        raise InstallationError(
            f"tracing needs {error.name}, which is not installed: pip install 'neuroglot[tracing]', or leave out "
            "--tracing-endpoint"
        ) from error
    tracing = to_collector(deployment.tracing_endpoint)
    watchers.callback(tracing.close)
    return tracing


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
    running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    starting: Future[Started] = Future()
    for_daemon = current_thread().daemon

    async def serve() -> None:
        stopping = asyncio.Event()
        running.set_result((asyncio.get_running_loop(), stopping))
        await run(Deployment(named, _private_address(folder), settings or Settings()), stopping, starting.set_result)

    def work() -> None:
        try:
            run_in_loop(serve)
        except Exception as error:
            if starting.done():
                _logger.exception("the server in this process failed")
            elif not (for_daemon and not main_thread().is_alive()):
                starting.set_exception(error)
            # Otherwise Python ends, which is what the load failed of, and ends the daemon thread that waits for it.
        finally:
            running.cancel()  # where it has not even begun

    thread = Thread(target=work, name="neuroglot-server", daemon=True)

    def stop() -> None:
        with suppress(RuntimeError, CancelledError):  # the loop is closed, or never ran: the server has ended
            loop, stopping = running.result()
            loop.call_soon_threadsafe(stopping.set)

    def end() -> None:
        stop()
        thread.join()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)  # a program may end while models load; the interpreter must not go before this thread
    thread.start()
    try:
        server = starting.result()
    except Exception:
        atexit.unregister(end)
        thread.join()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:  # Ctrl-C: models that load cannot be interrupted, and are not waited for
        stop()
        raise
    atexit.unregister(end)  # the server's own finalizer takes over
    return LocalServer(server, end)


def _private_address(folder: Path) -> Address | Path:
    """A socket in a private folder, or a port that only this machine can reach."""
    path = folder / "socket"
    if hasattr(socket, "AF_UNIX") and len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    return Address("127.0.0.1", 0)
