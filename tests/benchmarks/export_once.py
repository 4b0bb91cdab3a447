"""One export, for a process that is measured: `python -m tests.benchmarks.export_once EXPORTER SOURCE FOLDER DTYPE`.

Says on standard output, a JSON object a line, which stage begins.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def neuroglot(source: str, folder: Path, dtype: str) -> None:
    """Ours, with the verification."""
    from neuroglot_exporter import export

    export(source, folder, dtype=dtype, progress=say)


def optimum(source: str, folder: Path, _dtype: str) -> None:
    """optimum's own: as `optimum-cli export onnx` does it, but without its comparison with transformers."""
    from optimum.exporters.onnx import main_export

    say("exporting")
    main_export(source, folder, task="text-generation-with-past", do_validation=False)


def say(stage: str) -> None:
    """Report that a stage begins."""
    print(json.dumps({"stage": stage}), flush=True)


if __name__ == "__main__":
    exporter, given, target, bits = sys.argv[1:]
    {"neuroglot": neuroglot, "optimum": optimum}[exporter](given, Path(target), bits)
