"""Prepacked weights, saved: servers of one machine that run the same bundle share their pages in memory.

    ~/.cache/neuroglot/prepacked/                 $XDG_CACHE_HOME/neuroglot/prepacked, or $NEUROGLOT_CACHE/prepacked
    └── 3f2a9c.../                                for one graph of one bundle, version of ONNX Runtime and processor
        ├── entry.json                            size and hash of the files, written last
        ├── graph.onnx
        └── graph.data                            weights as they are in the bundle, and prepacked: twice their size

ONNX Runtime writes and reads these files by its own session options. They are mapped, not copied. Answers are equal,
bit for bit: ONNX Runtime prepacks at every start, compares, and takes what is mapped where it is the same. So a start
takes about as long as without, and a folder from another processor does no harm.

What is saved loses the order of the nodes: a pass holds the keys and values that its rows fork from for all layers at
once, not one layer at a time. `budget.Sizes` counts them, so batches of long prompts have fewer rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from neuroglot.definitions.bundle import (
    HASH_ON_LOAD_BYTES,
    MANIFEST,
    FileEntry,
    describe_files,
    hash_file,
    read_manifest,
)
from neuroglot_server.engine.devices import Device, runtime, session_options, start_session

_logger = logging.getLogger(__name__)

_ENTRY = "entry.json"
_GRAPH = "graph.onnx"
DATA = "graph.data"
_LAYOUT = 3
"""Version of what is saved; graphs of version 2 had their nodes reordered after ONNX Runtime had written them."""
_IN_THE_GRAPH_BYTES = "1024"
"""Weights smaller than this are saved in the graph itself."""


def cache_folder() -> Path:
    """The folder for what is derived from bundles on this machine."""
    if given := os.environ.get("NEUROGLOT_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "neuroglot"


def place_of(graph: Path) -> Path:
    """The folder for a bundle's graph on this machine, whether or not it exists."""
    version = runtime(Device("cpu")).__version__
    decisive = (_LAYOUT, read_manifest(graph.parent).identity, graph.name, version, _processor())
    return cache_folder() / "prepacked" / hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]


def saved(graph: Path) -> Path | None:
    """The graph with prepacked weights, if it was saved and is whole; of large files only the size is checked."""
    if not (graph.parent / MANIFEST).exists() or not (place := place_of(graph)).exists():
        return None
    try:
        entries = json.loads((place / _ENTRY).read_text(encoding="utf-8"))
        files = {name: FileEntry(**entry) for name, entry in entries.items()}
        whole = files.keys() == {_GRAPH, DATA} and all(_is(place / name, entry) for name, entry in files.items())
    except (OSError, ValueError, TypeError, AttributeError):
        whole = False
    if not whole:
        _logger.warning("%s is damaged and not used: remove it, and run `neuroglot prepare` again", place)
        return None
    return place / _GRAPH


def save(graph: Path) -> Path:
    """Prepack a graph's weights and save them, unless that was done before.

    Returns:
        The folder.

    Raises:
        InstallationError: no usable ONNX Runtime.
        OSError: the folder cannot be written.
    """
    place = place_of(graph)
    if saved(graph) is not None:
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{place.name}.partial-", dir=place.parent))
    try:
        options = session_options(Device("cpu"), threads=0)
        options.optimized_model_filepath = str(aside / _GRAPH)
        for name, value in (
            ("session.optimized_model_external_initializers_file_name", DATA),
            ("session.optimized_model_external_initializers_min_size_in_bytes", _IN_THE_GRAPH_BYTES),
            ("session.save_external_prepacked_constant_initializers", "1"),
        ):
            options.add_session_config_entry(name, value)
        start_session(graph, Device("cpu"), options)
        files = {name: asdict(entry) for name, entry in describe_files(aside).items()}
        (aside / _ENTRY).write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)  # what is there is damaged
        aside.rename(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return place


def _is(file: Path, entry: FileEntry) -> bool:
    size = file.stat().st_size
    return size == entry.size and (size > HASH_ON_LOAD_BYTES or hash_file(file) == entry.sha256)


def _processor() -> str:
    """What decides how weights are prepacked: the architecture and its extensions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(("flags", "Features"))})])
