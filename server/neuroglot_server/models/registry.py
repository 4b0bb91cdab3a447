"""The model registry of a server: loads, replaces and unloads models while others run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from neuroglot.errors import BundleError, NeuroglotError, Violation
from neuroglot_server.config.deployment import Deployment
from neuroglot_server.core import InvalidRequest, LoadTooSlow, ModelClosed, ModelNotFound

if TYPE_CHECKING:
    from neuroglot_server.models.model import Model

_logger = logging.getLogger(__name__)

_SHUTTING_DOWN = "the server is shutting down and does not load models: load it on another server"
_MAX_NAME_LENGTH = 100
_MAX_SHOWN_LENGTH = 100
_CLOSE_LOADS_SECONDS = 2.0
"""How long `close` waits for a load in progress, so that the loaded model can be closed properly."""

Result = TypeVar("Result")
Load = Callable[[Path, str, Callable[[bool], None]], "Model"]
"""Loads the bundle in a folder under a name; called on a thread of its own.

The callback receives True when a pass hangs, and False when it ends after all.
"""

Check = Callable[["Model"], Awaitable[None]]
"""Runs a model's check; raises a `BundleError` if it computes wrong results."""


class _Served:
    """A served model with its reference count and the state of its check.

    Attributes:
        model: the model.
        unused: set while the reference count is 0.
        hangs: how many passes have hung.
        checked: value of `hangs` at the start of the last check that passed; the model needs a check while it is lower.
        checking: whether a check is running.
        failure: why the model is out of service; empty while it is in service.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.hangs = self.checked = 0
        self.checking = False
        self.failure = ""
        self.unused = asyncio.Event()
        self.unused.set()
        self._users = 0

    def __enter__(self) -> Model:
        self._users += 1
        self.unused.clear()
        return self.model

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            self.unused.set()


class Registry:
    """Models by name. Used on one event loop, except for loading, which runs on a thread.

    A replaced or unloaded model receives no new requests, and is closed when its last request has ended. During a
    replacement both models are in memory. A model is served once it has passed its check. After a pass that hung and
    then ended, the model is unhealthy until it passes again; if it fails, it is out of service until it is replaced.

    A load that exceeds its time limit fails, but a session that is starting cannot be interrupted: its thread
    continues, no other load starts before it has ended, and the loaded model is closed.

    Attributes:
        changed: set when models are added, removed, hang or recover; the reader clears it.
    """

    def __init__(
        self,
        load: Load,
        check: Check,
        bundles_folder: Path | None = None,
        load_seconds: float = Deployment.load_seconds,
    ) -> None:
        """Create an empty registry.

        Args:
            load: loads a bundle.
            check: checks that a model computes correct results.
            bundles_folder: the folder from which requests may load bundles; None to refuse such requests.
            load_seconds: time limit of a load; also the limit of its wait for other loads before it, and of its check.
        """
        self.changed = asyncio.Event()
        self._load = load
        self._check = check
        self._bundles_folder = bundles_folder.resolve() if bundles_folder else None
        self._served: dict[str, _Served] = {}
        self._unserved: set[Model] = set()  # loaded, but not checked yet
        self._load_seconds = load_seconds
        self._loading = asyncio.Lock()  # loads run one at a time, since each needs extra memory
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loads: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def models(self) -> tuple[Model, ...]:
        """The served models, in the order of loading."""
        return tuple(served.model for served in self._served.values())

    @property
    def health(self) -> dict[str, bool]:
        """By name: whether a model is responsive and has passed its check since its last hang."""
        return {
            name: not (served.model.hung or served.failure) and served.checked == served.hangs
            for name, served in self._served.items()
        }

    @property
    def loading(self) -> bool:
        """Whether a thread is loading a bundle, even if its request has timed out or was cancelled."""
        return self._loading.locked()

    def use(self, name: str) -> AbstractContextManager[Model]:
        """Return a context manager that keeps a model from being closed.

        Raises:
            ModelNotFound: no model has this name.
            ModelClosed: the model is out of service.
        """
        served = self._find(name)
        if served.failure:
            raise ModelClosed(f"model {name!r} is out of service until it is loaded again: {served.failure}")
        return served

    async def load(self, folder: Path, name: str) -> Model:
        """Load and serve a bundle, replacing a model of the same name once the new one has passed its check.

        Loading continues if the caller is cancelled.

        Raises:
            BundleError: the bundle is damaged, of another version, of a kind that this server does not support, or
                does not pass its check.
            InstallationError: no usable ONNX Runtime.
            LoadTooSlow: it exceeded the time limit of loads.
            ModelClosed: the registry was closed meanwhile.
        """
        return await asyncio.shield(self._start(self._replace(folder, name), self._loads))

    async def load_by_request(self, bundle: str, name: str) -> Model:
        """Load and serve a bundle named by a request.

        Args:
            bundle: its folder, relative to `bundles_folder`.
            name: the name to serve it under; empty for the folder's name.

        Raises:
            InvalidRequest: the bundle does not exist, cannot be loaded, or does not pass its check.
            LoadTooSlow: it exceeded the time limit of loads.
        """
        folder = self._folder(bundle)
        name = name or folder.name
        if len(name) > _MAX_NAME_LENGTH or not name.isprintable():
            wrong = f"is {name[:_MAX_NAME_LENGTH]!r}, expected at most {_MAX_NAME_LENGTH} printable characters"
            raise InvalidRequest([Violation("name", wrong)])
        try:
            return await self.load(folder, name)
        except LoadTooSlow:
            raise
        except NeuroglotError as error:
            reason = str(error).replace(str(folder), repr(bundle))
            raise InvalidRequest([Violation("bundle", f"cannot be loaded: {reason}")]) from error

    async def unload(self, name: str) -> None:
        """Stop serving a model to new requests, and return once its last request has ended and it is closed.

        Raises:
            ModelNotFound: no model has this name.
        """
        self._find(name)
        served = self._served.pop(name)
        self.changed.set()
        await asyncio.shield(self._start(self._retire(served)))

    async def close(self) -> None:
        """Close all models and refuse further loads. Running requests fail, so end them first.

        A load in progress is waited for at most two seconds; `loading` tells whether it is still running then.
        """
        self._closed = True
        closing = [self._start(model.close()) for model in (*self.models, *self._unserved)]
        if self._loads:
            await asyncio.wait(self._loads, timeout=_CLOSE_LOADS_SECONDS)
        for task in {*self._tasks, *closing}:
            await asyncio.wait([task])
        self._served.clear()

    def _find(self, name: str) -> _Served:
        if name not in self._served:
            raise ModelNotFound(name, tuple(self._served))
        return self._served[name]

    def _folder(self, bundle: str) -> Path:
        """Resolve the folder of a bundle named by a request; it must be in `bundles_folder` after following links."""
        if self._bundles_folder is None:
            raise InvalidRequest([Violation("bundle", "cannot be loaded: this server was given no folder of bundles")])
        try:
            folder = (self._bundles_folder / bundle).resolve()
            if self._bundles_folder in folder.parents and folder.is_dir():
                return folder
        except (OSError, RuntimeError, ValueError):
            pass  # a path that is too long, a loop of links, a NUL: not a folder
        wrong = (
            f"is {bundle[:_MAX_SHOWN_LENGTH]!r}, expected a folder inside the one that this server loads bundles from"
        )
        raise InvalidRequest([Violation("bundle", wrong)])

    async def _replace(self, folder: Path, name: str) -> Model:
        model = await self._loaded(folder, name)
        if self._closed:
            await model.close()
            raise ModelClosed(_SHUTTING_DOWN)
        old = self._served.pop(name, None)
        self._served[name] = _Served(model)
        self.changed.set()
        _logger.info("model %s is served: bundle %s", name, model.description.bundle_identity[:12])
        if old is not None:
            self._start(self._retire(old))
        return model

    def _note_hangs(self, hung: bool) -> None:
        """Handle a pass of one of the models that hangs, or that has ended after all."""
        for served in self._served.values():
            if hung and served.model.hung:
                served.hangs += 1
            elif not hung and served.checked < served.hangs and not served.checking and not served.failure:
                served.checking = True
                self._start(self._recheck(served))
        self.changed.set()

    async def _recheck(self, served: _Served) -> None:
        """Check a model after a pass that hung; take it out of service if it fails."""
        model, name = served.model, served.model.description.name
        try:
            with served:
                while served.checked < served.hangs and not model.hung:
                    hangs = served.hangs
                    await self._check(model)
                    served.checked = hangs
        except BundleError as error:
            served.failure = str(error)
            _logger.error("model %s is out of service: %s", name, error)
            await model.close()
        finally:
            served.checking = False
            self.changed.set()

    async def _loaded(self, folder: Path, name: str) -> Model:
        """Load a model on a thread, after other loads, and check it.

        Raises:
            BundleError: the bundle cannot be loaded, or does not pass its check.
            LoadTooSlow: it exceeded the time limit; the model is closed once it is loaded.
        """
        try:
            async with asyncio.timeout(self._load_seconds):
                await self._loading.acquire()
        except TimeoutError:
            raise LoadTooSlow(name, self._load_seconds, "another load has not ended") from None
        if self._closed:
            self._loading.release()
            raise ModelClosed(_SHUTTING_DOWN)
        work = _run_on_thread(lambda: self._load(folder, name, self._note_hangs))
        await asyncio.wait([work], timeout=self._load_seconds)
        if not work.done():
            _logger.warning("loading model %s from %s takes more than %g s", name, folder, self._load_seconds)
            self._start(self._close_late(work), self._loads)
            raise LoadTooSlow(name, self._load_seconds, "its session has not started")
        try:
            model = work.result()
            await self._checked(model)
            return model
        finally:
            self._loading.release()

    async def _checked(self, model: Model) -> None:
        """Check a model before it is served, and close it if it fails.

        Raises:
            BundleError: the model does not pass its check.
            LoadTooSlow: the check exceeded the time limit.
        """
        self._unserved.add(model)
        try:
            if not self._closed:
                async with asyncio.timeout(self._load_seconds):
                    await self._check(model)
        except TimeoutError:
            await model.close()
            raise LoadTooSlow(model.description.name, self._load_seconds, "its check has not ended") from None
        except BaseException:
            await model.close()
            raise
        finally:
            self._unserved.remove(model)

    async def _close_late(self, work: asyncio.Future[Model]) -> None:
        """Close the model of a load that exceeded its time limit, once it is loaded."""
        try:
            model = await work
            await model.close()
        finally:
            self._loading.release()

    async def _retire(self, served: _Served) -> None:
        """Close a model that is no longer served, once its last request has ended."""
        await served.unused.wait()
        await served.model.close()
        name, identity = served.model.description.name, served.model.description.bundle_identity
        _logger.info("model %s with bundle %s is closed", name, identity[:12])

    def _start(
        self, work: Coroutine[Any, Any, Result], tasks: set[asyncio.Task[Any]] | None = None
    ) -> asyncio.Task[Result]:
        """Run a coroutine as a task that outlives its caller.

        Args:
            work: the coroutine.
            tasks: the set that the task is added to until it has ended; by default the one that `close` awaits.
        """
        tasks = self._tasks if tasks is None else tasks
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(_log_failure)
        return task


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()):
        # The caller gets this error too, unless it was cancelled.
        _logger.debug("a model was not loaded or closed: %s", error)


def _run_on_thread(work: Callable[[], Result]) -> asyncio.Future[Result]:
    """Run a function on a thread of its own, which the event loop does not wait for when it closes."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - passed on to the future, as an executor does
            future.set_exception(error)
        else:
            future.set_result(result)

    future.set_running_or_notify_cancel()
    Thread(target=run, name="load").start()
    return asyncio.wrap_future(future)
