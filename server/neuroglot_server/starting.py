"""Weights are packed on a thread of their own, while a session without packed weights answers already.

Almost all of what a start takes on the processor is to bring the weights into the order in which they are multiplied
(ONNX Runtime does it at every start, with saved packed weights too). A session that multiplies them as they lie in the
file is there at once, and takes up to twice as long for a pass; what it gives is equal to rounding.

No pass runs while they are packed: both together would take twice as long, and hold the weights up to three times, as
the one session multiplies them, as the other one reads them, and packed.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Thread, main_thread
from time import monotonic, sleep
from typing import Any

from neuroglot.bundle import WEIGHTS
from neuroglot_server.devices import Device, session_options, start_session
from neuroglot_server.packed import DATA, saved
from neuroglot_server.resident import let_go, resident

_logger = logging.getLogger(__name__)

_WORTH_A_THREAD_BYTES = 64 * 2**20
_FIRST_SECONDS = 1.0
"""How long the machine is left to the first pass, if none comes."""
_QUIET_SECONDS = 0.2
"""How long no pass must have run: the passes of the first request follow each other."""
_LAST_SECONDS = 3.0
"""When the weights are packed whatever waits."""
_LONGEST_PAUSE_SECONDS = 10.0
"""How long a pass waits for that. A model so large that it takes longer answers beside it, slowly."""
_LOOK_SECONDS = 0.05
_MOST_LOOKED_UP_BYTES = 64 * 2**20
"""Pages of the embedding that stay in memory: to have them back takes less than a millisecond a MiB."""
_MOST_HELD = 1.25
"""Times the weights that a process may hold on their account while they are packed."""


def takes_long(graph: Path, device: Device) -> bool:
    """Whether a graph has so much to be packed that it is worth a thread."""
    weights = graph.with_name(WEIGHTS)
    return device.kind == "cpu" and weights.exists() and weights.stat().st_size >= _WORTH_A_THREAD_BYTES


class Mapped:
    """Pages of the files of weights: those around the rows that are looked up in the embedding add up.

    A row brings its neighbours with it, so that in the end all of the embedding would be there beside the packed one.
    """

    def __init__(self, files: Sequence[Path] = (), needed: int = 0) -> None:
        """Watch files, of which passes read so many bytes all the same."""
        self._files = files
        self._most = needed + _MOST_LOOKED_UP_BYTES
        self._look_from = 0

    def trim(self, mapped: int) -> None:
        """Take them all out of this process if too many are there that are not needed; it has so many bytes mapped."""
        if self._files and mapped > self._look_from:  # to look takes milliseconds
            self._look_from = 0 if let_go(self._files, self._most) else mapped + _MOST_LOOKED_UP_BYTES // 4


class Packing:
    """A session with packed weights that is on its way.

    It is given up when its owner is gone, and when the interpreter ends, which waits until the matrix that is being
    packed is done. Meanwhile pages of the weights' files are let go whenever too many are in memory.

    Attributes:
        session: None until it is there, and where there is none in the end, which was logged.
        over: whether nothing is to be expected any more.
        files: of weights, which sessions map.
        mapped_bytes: how much of them a pass of the session reads, but for the embedding's rows that it looks up.
    """

    def __init__(self, graph: Path, threads: int, owner: object) -> None:
        """Begin in a moment: the machine is left to the first request.

        Args:
            graph: an ONNX file, of which an unpacked session has shown that it can be read.
            threads: threads within one pass; 0 for one a core.
            owner: for whom it is; it may hold on to this object.
        """
        self.session: Any = None
        self.over = False
        self._graph = graph
        self._saved = saved(graph)
        sources = ((graph, WEIGHTS), (self._saved, DATA))
        self.files = [source.with_name(data) for source, data in sources if source]
        weights_bytes = self.files[0].stat().st_size
        self.mapped_bytes = weights_bytes if self._saved else 0
        self._allowance = int(_MOST_HELD * weights_bytes)
        self._owner = weakref.ref(owner)
        self._options = session_options(Device("cpu"), threads)
        self._given_up = False
        self._machine = Lock()
        self._latest = monotonic() + _LAST_SECONDS
        self._beginning = monotonic() + _FIRST_SECONDS
        Thread(target=self._run, name="packing").start()

    @contextmanager
    def beside_a_pass(self, stopped: Callable[[], bool]) -> Iterator[None]:
        """Leave the machine to a pass for the length of a block, and to those that follow it at once.

        While weights are packed it is waited for that, unless the pass is stopped.
        """
        self._beginning = self._latest
        until = monotonic() + _LONGEST_PAUSE_SECONDS
        while not (held := self._machine.acquire(timeout=_LOOK_SECONDS)) and monotonic() < until:
            if stopped():
                break
        try:
            yield
        finally:
            if held:
                self._machine.release()
            self._beginning = min(self._latest, monotonic() + _QUIET_SECONDS)

    def _run(self) -> None:
        while monotonic() < self._beginning:
            if self._unwanted():
                return
            sleep(_LOOK_SECONDS)
        with self._machine:
            self._pack_and_look()
            self.over = True

    def _pack_and_look(self) -> None:
        """Pack, and meanwhile look at what is held."""
        before = resident()
        most = self._allowance + (before.own if before else 0)
        packing = Thread(target=self._pack, name="packing")
        packing.start()
        while packing.is_alive():
            packing.join(_LOOK_SECONDS)
            if self._unwanted():
                self._given_up = True
                self._options.set_load_cancellation_flag(True)
            if (now := resident()) and now.own + now.mapped > most:
                let_go(self.files)
        let_go(self.files)  # all but the embedding's rows that are looked up is there packed

    def _unwanted(self) -> bool:
        return self._owner() is None or not main_thread().is_alive()

    def _pack(self) -> None:
        began = monotonic()
        try:
            self.session = self._packed()
        except Exception:
            if not self._given_up:
                _logger.exception("%s runs without packed weights, which takes up to twice as long", self._graph)
        else:
            _logger.info("weights of %s were packed in %.1f s", self._graph, monotonic() - began)

    def _packed(self) -> Any:
        """A session, with the packed weights that were saved if there are any that can be used."""
        device = Device("cpu")
        if self._saved is not None:
            try:
                return start_session(self._saved, device, self._options)
            except Exception:
                if self._given_up:
                    raise
                folder = self._saved.parent
                _logger.exception("%s cannot be used, and is left aside: remove it, and prepare again", folder)
        return start_session(self._graph, device, self._options)
