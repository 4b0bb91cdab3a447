"""What `import neuroglot` gives and costs, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import neuroglot

REPORT = """
import json, sys, time
started = time.process_time()
import neuroglot
print(json.dumps({"seconds": time.process_time() - started, "modules": sorted(sys.modules)}))
"""


def test_all_names_what_the_package_offers() -> None:
    assert len(neuroglot.__all__) == len(set(neuroglot.__all__))
    offered = {
        name
        for name, thing in vars(neuroglot).items()
        if not name.startswith("_")
        and getattr(thing, "__module__", "neuroglot").startswith("neuroglot")
        and not isinstance(thing, type(neuroglot))
    }
    assert set(neuroglot.__all__) == offered


def test_every_error_is_offered() -> None:
    from neuroglot import errors

    names = {name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, Exception)}
    assert names <= set(neuroglot.__all__)


def test_importing_is_quick_and_brings_nothing_heavy() -> None:
    """Processor time, the best of three: wall time says more about what else the machine does."""
    reports = [
        json.loads(subprocess.run([sys.executable, "-c", REPORT], check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    packages = {module.split(".")[0] for module in reports[0]["modules"]}
    heavy = {"torch", "transformers", "onnx", "onnxruntime", "tokenizers", "pandas", "matplotlib", "scipy", "pyarrow"}
    assert not packages & (heavy | {"grpc", "neuroglot_server", "neuroglot_exporter", "rich", "click"})
    assert min(report["seconds"] for report in reports) < 0.3
