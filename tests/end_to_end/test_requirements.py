"""What each command and each part of the API imports is declared in the base or in the extras that it names.

Without installing anything: imports are followed through our own modules. `make test-extras` installs each extra.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from neuroglot.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "neuroglot": ROOT / "client" / "neuroglot",
    "neuroglot_server": ROOT / "server" / "neuroglot_server",
    "neuroglot_exporter": ROOT / "exporter" / "neuroglot_exporter",
    "neuroglot_models": ROOT / "models" / "neuroglot_models",
}
DISTRIBUTIONS = {
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "opentelemetry": "opentelemetry-api",
    "opentelemetry.exporter.otlp.proto.grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "optimum": "optimum-onnx",
}
"""The distributions of modules that are called otherwise; of the longest prefix."""

ASKS_FOR_ITS_EXTRA = {("neuroglot.frames", "pandas")}
"""Imports for which a caller is told what to install, where they fail."""

PARTS = sorted(
    {
        ("neuroglot", ""),
        ("neuroglot.client", ""),
        ("neuroglot.tasks.registry", ""),
        ("neuroglot.analyses.registry", "analysis"),
        ("neuroglot.pipeline.pipeline", "analysis"),
        ("neuroglot_server.lifecycle", "cpu"),
        ("neuroglot_server.lifecycle", "gpu"),
        ("neuroglot_server.telemetry.tracing", "cpu,tracing"),
        *((command.module, command.extras) for command in COMMANDS.values()),
    }
)


@cache
def requirements(extras: str) -> frozenset[str]:
    """Names of the distributions that the base and some extras, `cpu,exporter`, ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"]]
    for extra in filter(None, extras.split(",")):
        asked += project["optional-dependencies"][extra]
    names = set()
    for requirement in asked:
        if found := re.match(r"neuroglot\[(.*)\]$", requirement):
            names |= requirements(found[1])
        else:
            names.add(re.match(r"[\w.-]+", requirement)[0].lower())
    return frozenset(names)


def file_of(module: str) -> Path | None:
    """The file of a module of this project; None if it does not exist."""
    package, *rest = module.split(".")
    if package not in PACKAGES:
        return None
    path = PACKAGES[package].joinpath(*rest)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.exists()), None)


@cache
def imports(file: Path) -> frozenset[str]:
    """What a file imports when it runs, in functions too; `a.b` of `from a import b`."""
    return frozenset(_imports(ast.parse(file.read_text(encoding="utf-8")), guarded=False))


def _imports(node: ast.AST, *, guarded: bool) -> Iterator[str]:
    """Those of a part of a file. A guarded import of our own says itself what to install, and is not followed."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Try):
        caught = {name.id for handler in node.handlers for name in ast.walk(handler) if isinstance(name, ast.Name)}
        guarded = guarded or not caught.isdisjoint({"ImportError", "ModuleNotFoundError"})
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    yield from (name for name in names if not (guarded and name.split(".")[0] in PACKAGES))
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, guarded=guarded)


def third_party(root: str) -> dict[str, str]:
    """The distributions that a module of ours needs, each with the module that imports it."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    waiting = [root]
    while waiting:
        module = waiting.pop()
        file = file_of(module)
        if module in seen or file is None:
            continue
        seen.add(module)
        waiting += [module.rpartition(".")[0]]
        for name in imports(file):
            if name.split(".")[0] in PACKAGES:
                waiting += [name, name.rpartition(".")[0]]
            elif name.split(".")[0] not in sys.stdlib_module_names and (module, name) not in ASKS_FOR_ITS_EXTRA:
                found.setdefault(distribution(name), module)
    return found


def distribution(name: str) -> str:
    parts = name.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    known = next((prefix for prefix in prefixes if prefix in DISTRIBUTIONS), None)
    return DISTRIBUTIONS[known] if known else parts[0].replace("_", "-")


@pytest.mark.parametrize(("module", "extras"), PARTS, ids=lambda part: part or "base")
def test_what_is_imported_is_declared(module: str, extras: str) -> None:
    assert file_of(module)
    allowed = requirements(extras)
    if "onnxruntime-gpu" in allowed:
        allowed |= {"onnxruntime"}  # the module of both builds
    missing = {name: where for name, where in third_party(module).items() if name not in allowed}
    assert not missing, f"neuroglot[{extras}] lacks what {module} reaches"


def test_imports_are_found_in_functions_and_guarded_ones_of_our_own_are_not_followed() -> None:
    assert third_party("neuroglot_server.engine.kv_graphs")["onnx"] == "neuroglot_server.engine.kv_graphs"
    assert not any(name.startswith("opentelemetry") for name in third_party("neuroglot_server.lifecycle"))
