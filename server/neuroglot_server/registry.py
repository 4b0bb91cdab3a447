"""The models of one server: which are served, loaded and unloaded while others run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from neuroglot.errors import BundleError, Violation
from neuroglot_server.core import InvalidRequest, ModelClosed, ModelNotFound

if TYPE_CHECKING:
    from neuroglot_server.model import Model

_logger = logging.getLogger(__name__)

_LONGEST_NAME = 100

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

    Attributes:
        changed: set whenever models come or go, hang or go on; cleared by whoever looks.
    """

    def __init__(self, load: Load, check: Check, bundles_folder: Path | None = None) -> None:
        """Hold no models yet.

        Args:
            load: how a bundle becomes a model.
            check: whether a model computes what it should.
            bundles_folder: where requests may load bundles from; None where they may not at all.
        """
        self.changed = asyncio.Event()
        self._load = load
        self._check = check
        self._bundles_folder = bundles_folder.resolve() if bundles_folder else None
        self._served: dict[str, _Served] = {}
        self._unserved: set[Model] = set()  # loaded, and not served before it has passed its check
        self._loading = asyncio.Lock()  # one after the other: each needs memory while it loads
        self._tasks: set[asyncio.Task[Any]] = set()
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
        """
        return await asyncio.shield(self._start(self._replace(folder, name)))

    async def load_by_request(self, bundle: str, name: str) -> Model:
        """Serve a bundle that a request names.

        Args:
            bundle: its folder, relative to the folder that bundles are loaded from.
            name: the name to serve it by; empty for the folder's.

        Raises:
            InvalidRequest: there is no such bundle, it cannot be loaded, or it does not pass its check.
        """
        folder = self._folder(bundle)
        name = name or folder.name
        if len(name) > _LONGEST_NAME or not name.isprintable():
            wrong = f"is {name[:_LONGEST_NAME]!r}, expected at most {_LONGEST_NAME} printable characters"
            raise InvalidRequest([Violation("name", wrong)])
        try:
            return await self.load(folder, name)
        except BundleError as error:
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
        """Close all models and load no more; requests that run fail, so end them first."""
        self._closed = True
        models = [*self.models, *self._unserved]
        for task in [*self._tasks, *(self._start(model.close()) for model in models)]:
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
        folder = (self._bundles_folder / bundle).resolve() if "\0" not in bundle else self._bundles_folder
        if folder == self._bundles_folder or self._bundles_folder not in folder.parents or not folder.is_dir():
            wrong = f"is {bundle!r}, expected a folder inside the one that this server loads bundles from"
            raise InvalidRequest([Violation("bundle", wrong)])
        return folder

    async def _replace(self, folder: Path, name: str) -> Model:
        async with self._loading:
            model = await asyncio.to_thread(self._load, folder, name, self._note_hangs)
            self._unserved.add(model)
            try:
                if not self._closed:
                    await self._check(model)
            except BaseException:
                await model.close()
                raise
            finally:
                self._unserved.remove(model)
        if self._closed:
            await model.close()
            raise ModelClosed("the server is going down and loads nothing: ask another")
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

    async def _retire(self, served: _Served) -> None:
        """Close a model that nobody can reach any more, when nobody uses it any more."""
        await served.unused.wait()
        await served.model.close()
        name, identity = served.model.description.name, served.model.description.bundle_identity
        _logger.info("model %s with bundle %s is closed", name, identity[:12])

    def _start(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run something that goes on whoever waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # Whoever asked has it too, unless they have left.
            _logger.debug("a model was not loaded or closed: %s", error)
