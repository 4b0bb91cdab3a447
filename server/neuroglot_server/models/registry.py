"""The models of one server: which are served, loaded and unloaded while others run."""

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

_GOING_DOWN = "the server is going down and loads nothing: ask another"
_LONGEST_NAME = 100
_LONGEST_SHOWN = 100
_LAST_LOAD_SECONDS = 2.0
"""How long a load that still runs is waited for when the server closes: then it can be closed properly."""

Result = TypeVar("Result")
Load = Callable[[Path, str, Callable[[bool], None]], "Model"]
"""Loads the bundle of a folder under a name, and tells when it hangs; called on a thread of its own."""

Check = Callable[["Model"], Awaitable[None]]
"""Raises a `BundleError` where a model does not compute what it should."""


class _Served:
    """A model, how many blocks use it, and whether its numbers are known to be right.

    Attributes:
        model: the model.
        unused: set while no block uses it.
        hangs: how many passes have hung.
        checked: of how many of these it is known that the model computes what it should since.
        checking: whether a check runs.
        failure: why it is out of service; empty while it is not.
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
    """Models by name. Everything happens on one event loop, but for loading, which has a thread.

    A model that is replaced or unloaded is out of reach at once, and closed when its last request has ended. While one
    is replaced, both are in memory. A model is served once it has passed its check. After a pass that hung and ended it
    is unhealthy until it has passed again; one that does not pass then is out of service until it is replaced.

    A load that takes too long fails, but nothing can interrupt a session that is starting: its thread goes on, no other
    load begins before it has ended, and the model that comes of it is closed.

    Attributes:
        changed: set whenever models come or go, hang or go on; cleared by whoever looks.
    """

    def __init__(
        self,
        load: Load,
        check: Check,
        bundles_folder: Path | None = None,
        load_seconds: float = Deployment.load_seconds,
    ) -> None:
        """Hold no models yet.

        Args:
            load: how a bundle becomes a model.
            check: whether a model computes what it should.
            bundles_folder: where requests may load bundles from; None where they may not at all.
            load_seconds: how long a load may wait for others, and how long it may then take.
        """
        self.changed = asyncio.Event()
        self._load = load
        self._check = check
        self._bundles_folder = bundles_folder.resolve() if bundles_folder else None
        self._served: dict[str, _Served] = {}
        self._unserved: set[Model] = set()  # loaded, and not served before it has passed its check
        self._load_seconds = load_seconds
        self._loading = asyncio.Lock()  # one after the other: each needs memory while it loads
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loads: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def models(self) -> tuple[Model, ...]:
        """What is served, in the order in which it was loaded."""
        return tuple(served.model for served in self._served.values())

    @property
    def health(self) -> dict[str, bool]:
        """By name: whether a model answers, and its numbers are known to be right."""
        return {
            name: not (served.model.hung or served.failure) and served.checked == served.hangs
            for name, served in self._served.items()
        }

    @property
    def loading(self) -> bool:
        """Whether a thread is loading a bundle right now, for somebody or for nobody any more."""
        return self._loading.locked()

    def use(self, name: str) -> AbstractContextManager[Model]:
        """Hold a model for the length of a block: it is not closed meanwhile.

        Raises:
            ModelNotFound: there is none of this name.
            ModelClosed: it is out of service.
        """
        served = self._find(name)
        if served.failure:
            raise ModelClosed(f"model {name!r} is out of service until it is loaded again: {served.failure}")
        return served

    async def load(self, folder: Path, name: str) -> Model:
        """Serve a bundle; a model that has its name is replaced once the new one stands.

        Loading goes on if the caller is cancelled.

        Raises:
            BundleError: the bundle is damaged, of another version, of a kind that this server does not run, or does not
                pass its check.
            InstallationError: no usable ONNX Runtime.
            LoadTooSlow: it took more than the time that a load may take.
            ModelClosed: the registry was closed meanwhile.
        """
        return await asyncio.shield(self._start(self._replace(folder, name), self._loads))

    async def load_by_request(self, bundle: str, name: str) -> Model:
        """Serve a bundle that a request names.

        Args:
            bundle: its folder, relative to the folder that bundles are loaded from.
            name: the name to serve it by; empty for the folder's.

        Raises:
            InvalidRequest: there is no such bundle, it cannot be loaded, or it does not pass its check.
            LoadTooSlow: loading it took too long.
        """
        folder = self._folder(bundle)
        name = name or folder.name
        if len(name) > _LONGEST_NAME or not name.isprintable():
            wrong = f"is {name[:_LONGEST_NAME]!r}, expected at most {_LONGEST_NAME} printable characters"
            raise InvalidRequest([Violation("name", wrong)])
        try:
            return await self.load(folder, name)
        except LoadTooSlow:
            raise
        except NeuroglotError as error:
            said = str(error).replace(str(folder), repr(bundle))
            raise InvalidRequest([Violation("bundle", f"cannot be loaded: {said}")]) from error

    async def unload(self, name: str) -> None:
        """Take a model out of reach, now, and come back when its last request has ended.

        Raises:
            ModelNotFound: there is none of this name.
        """
        self._find(name)
        served = self._served.pop(name)
        self.changed.set()
        await asyncio.shield(self._start(self._retire(served)))

    async def close(self) -> None:
        """Close all models and load no more; requests that run fail, so end them first.

        A load that still runs is waited for no longer than a moment, see `loading`.
        """
        self._closed = True
        closing = [self._start(model.close()) for model in (*self.models, *self._unserved)]
        if self._loads:
            await asyncio.wait(self._loads, timeout=_LAST_LOAD_SECONDS)
        for task in {*self._tasks, *closing}:
            await asyncio.wait([task])
        self._served.clear()

    def _find(self, name: str) -> _Served:
        if name not in self._served:
            raise ModelNotFound(name, tuple(self._served))
        return self._served[name]

    def _folder(self, bundle: str) -> Path:
        """The folder of a bundle that a request names; links are followed before it is looked where it lies."""
        if self._bundles_folder is None:
            raise InvalidRequest([Violation("bundle", "cannot be loaded: this server was given no folder of bundles")])
        try:
            folder = (self._bundles_folder / bundle).resolve()
            if self._bundles_folder in folder.parents and folder.is_dir():
                return folder
        except (OSError, RuntimeError, ValueError):
            pass  # too long a path, links that lead to each other, a NUL: no folder either
        wrong = f"is {bundle[:_LONGEST_SHOWN]!r}, expected a folder inside the one that this server loads bundles from"
        raise InvalidRequest([Violation("bundle", wrong)])

    async def _replace(self, folder: Path, name: str) -> Model:
        model = await self._loaded(folder, name)
        if self._closed:
            await model.close()
            raise ModelClosed(_GOING_DOWN)
        old = self._served.pop(name, None)
        self._served[name] = _Served(model)
        self.changed.set()
        _logger.info("model %s is served: bundle %s", name, model.description.bundle_identity[:12])
        if old is not None:
            self._start(self._retire(old))
        return model

    def _note_hangs(self, hung: bool) -> None:
        """A pass of one of the models hangs, or has ended after all."""
        for served in self._served.values():
            if hung and served.model.hung:
                served.hangs += 1
            elif not hung and served.checked < served.hangs and not served.checking and not served.failure:
                served.checking = True
                self._start(self._check_again(served))
        self.changed.set()

    async def _check_again(self, served: _Served) -> None:
        """Check a model of which a pass had hung; one that does not pass is taken out of service."""
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
        """A model, loaded on a thread of its own once no other load runs, that has passed its check.

        Raises:
            BundleError: it cannot be loaded, or does not pass.
            LoadTooSlow: it took too long; what comes of it is closed.
        """
        try:
            async with asyncio.timeout(self._load_seconds):
                await self._loading.acquire()
        except TimeoutError:
            raise LoadTooSlow(name, self._load_seconds, "another load has not ended") from None
        if self._closed:
            self._loading.release()
            raise ModelClosed(_GOING_DOWN)
        work = _on_a_thread(lambda: self._load(folder, name, self._note_hangs))
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
        """Check a model before it is served, and close it if it does not pass.

        Raises:
            BundleError: it does not.
            LoadTooSlow: it took too long.
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
        """Close what a load gives that was given up."""
        try:
            model = await work
            await model.close()
        finally:
            self._loading.release()

    async def _retire(self, served: _Served) -> None:
        """Close a model that nobody can reach any more, when nobody uses it any more."""
        await served.unused.wait()
        await served.model.close()
        name, identity = served.model.description.name, served.model.description.bundle_identity
        _logger.info("model %s with bundle %s is closed", name, identity[:12])

    def _start(
        self, work: Coroutine[Any, Any, Result], tasks: set[asyncio.Task[Any]] | None = None
    ) -> asyncio.Task[Result]:
        """Run something that goes on whoever waits for it; one of `tasks`, by default of those that `close` awaits."""
        tasks = self._tasks if tasks is None else tasks
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(_log_failure)
        return task


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()):
        # Whoever asked has it too, unless they have left.
        _logger.debug("a model was not loaded or closed: %s", error)


def _on_a_thread(work: Callable[[], Result]) -> asyncio.Future[Result]:
    """What a function gives that runs on a thread of its own, which the event loop does not wait for when it ends."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - for whoever waits, as an executor does it
            future.set_exception(error)
        else:
            future.set_result(result)

    future.set_running_or_notify_cancel()
    Thread(target=run, name="load").start()
    return asyncio.wrap_future(future)
