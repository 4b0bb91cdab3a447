"""The lifecycle of a server: bind, load, serve, drain, stop; on the caller's event loop, or in a separate thread.

gRPC and ONNX Runtime are imported only after checking that the server's requirements are installed.
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

_MAX_SOCKET_PATH = 100
"""Maximum length in bytes; the kernel's limit is 108 on Linux and 104 on macOS."""

_SHORT_LOAD_SECONDS = 1.0
"""Load time up to which no progress is shown."""


class Started(NamedTuple):
    """A running server.

    Attributes:
        target: target for clients to connect to, `127.0.0.1:50051` or `unix:/path`.
        models: the served models, in the order of the bundles.
    """

    target: str
    models: tuple[ModelDescription, ...]


def show_on_stderr(line: str) -> None:
    """Print a line of progress to standard error, unless the log level is INFO or lower, which logs the same."""
    if not _logger.isEnabledFor(logging.INFO):
        click.echo(line, err=True)


async def run(
    deployment: Deployment,
    stopping: asyncio.Event,
    started: Callable[[Started], None],
    progress: Callable[[str], None] = show_on_stderr,
) -> bool:
    """Serve until `stopping` is set.

    Args:
        deployment: definition of the server.
        stopping: event that makes the server drain and stop.
        started: called once, when the server is ready.
        progress: called with a line when a model takes more than a second to load, and with another when it is ready.

    Returns:
        Whether a thread is still loading a bundle. It cannot be interrupted, and the interpreter waits for it at exit.

    Raises:
        AddressError: an address cannot be bound.
        BundleError: a folder is not a bundle, is damaged or of a newer version, or its model fails its probe.
        CertificateError: files for TLS cannot be read or do not match.
        InstallationError: ONNX Runtime is missing or installed twice, or the packages for tracing are missing.
        LoadTooSlow: a bundle was not loaded within `load_seconds`.
        TenantsError: the file of tenants is invalid.
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
    """Wait until a bundle is loaded, and show progress if that takes long."""
    from neuroglot_server.engine.session import weights_size

    began = monotonic()
    task = asyncio.ensure_future(loading)
    _, pending = await asyncio.wait([task], timeout=_SHORT_LOAD_SECONDS)
    if pending:
        show(f"starting {folder}: {weights_size(folder)} of weights")
    await task
    if pending:
        show(f"{folder} is ready after {monotonic() - began:.1f} s")


def _metrics(deployment: Deployment, watchers: ExitStack) -> Metrics | None:
    """Create metrics and serve them, if an address is configured."""
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
    """Create tracing to a collector, if an endpoint is configured."""
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
    """Bind an address, and return the target for clients."""
    if isinstance(address, Path):
        target = f"unix:{address}"
        bind(target)
        return target
    address.check_free()
    return str(Address(address.host, bind(str(address))))


class LocalServer:
    """A server in a thread of this process, which only this user can reach.

    Close it, or use it as a context manager; otherwise it ends with the process.

    Attributes:
        target: target for clients to connect to.
        models: the served models.
    """

    def __init__(self, started: Started, end: Callable[[], None]) -> None:
        """Wrap a running server and the function that ends it."""
        self.target = started.target
        self.models = started.models
        self._end = weakref.finalize(self, end)

    def close(self) -> None:
        """Stop the server and remove its socket; cancels running requests. Further calls do nothing."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_in_thread(bundles: Sequence[str | Path], settings: Settings | None = None) -> LocalServer:
    """Serve bundles from a daemon thread of this process, on a unix socket that only this user can open.

    Without unix sockets it listens on a free port of 127.0.0.1.

    Args:
        bundles: folders of bundles, each served under its folder's name.
        settings: settings of the models; the defaults if None.

    Returns:
        The server, once it is ready.

    Raises:
        BundleError: a folder is not a bundle, is damaged or of a newer version, or two have the same name.
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
            # Otherwise the load failed because Python is exiting, which also ends the daemon thread that waits for it.
        finally:
            running.cancel()  # if the loop never ran

    thread = Thread(target=work, name="neuroglot-server", daemon=True)

    def stop() -> None:
        with suppress(RuntimeError, CancelledError):  # the loop is closed or never ran: the server has ended
            loop, stopping = running.result()
            loop.call_soon_threadsafe(stopping.set)

    def end() -> None:
        stop()
        thread.join()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)  # a program may end while models load; the interpreter must wait for this thread
    thread.start()
    try:
        server = starting.result()
    except Exception:
        atexit.unregister(end)
        thread.join()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:  # Ctrl-C: loading models cannot be interrupted, so do not wait
        stop()
        raise
    atexit.unregister(end)  # the server's own finalizer takes over
    return LocalServer(server, end)


def _private_address(folder: Path) -> Address | Path:
    """Return a socket in a private folder, or a loopback address if its path is too long or sockets are missing."""
    path = folder / "socket"
    if hasattr(socket, "AF_UNIX") and len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    return Address("127.0.0.1", 0)
