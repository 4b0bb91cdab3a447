"""An export of BLOOM-560m's geometry with random weights, against optimum's own export.

    make bench-export        writes build/bench/exporting.json and prints the table

Each runs in a process of its own. Memory is that of all its processes together; what the verification takes is told
apart. The first of each is a warm-up where `--rounds` is more than 1, and the median of the rest counts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from neuroglot_exporter.verification.process import STARTING
from tests.benchmarks.processes import Run, run, size_of
from tests.checkpoints import random_checkpoint

BLOOM_560M = {"hidden_size": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250_880}
SMALL = {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 1000}
SHARD = "500MB"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark itself")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=arguments.out) as folder:  # not in /tmp, which may be memory
        checkpoint = Path(folder) / "checkpoint"
        parameters = make_checkpoint(checkpoint, SMALL if arguments.small else BLOOM_560M)
        measured: dict[str, list[dict[str, Any]]] = {"optimum": [], "neuroglot": []}
        for _ in range(arguments.rounds):
            for exporter, found in measured.items():
                target = Path(folder) / exporter
                done = run(["-m", "tests.benchmarks.export_once", exporter, str(checkpoint), str(target), "float32"])
                found.append(describe(done, size_of(target), parameters))
                shutil.rmtree(target)
    result = {"parameter_bytes": parameters, "shards": SHARD, "runs": measured} | compared(measured)
    (arguments.out / "exporting.json").write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def make_checkpoint(folder: Path, geometry: dict[str, int]) -> int:
    """Write a random checkpoint in shards; the bytes of its parameters."""
    whole = random_checkpoint(folder.with_name("whole"), "bloom", **geometry)
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(folder, max_shard_size=SHARD)
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder)
    shutil.rmtree(whole)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def describe(done: Run, disk: int, parameters: int) -> dict[str, Any]:
    """What a run took; the verification's seconds apart."""
    verification = next((done.seconds - line["at"] for line in done.output if line["stage"] == STARTING), 0.0)
    return {
        "seconds": done.seconds - verification,
        "verification_seconds": verification,
        "peak_resident_bytes": done.peak.resident,
        "peak_resident_over_parameters": done.peak.resident / parameters,
        "peak_anonymous_bytes": done.peak.anonymous,
        "peak_anonymous_over_parameters": done.peak.anonymous / parameters,
        "disk_bytes": disk,
        "stages": [(line["stage"], line["at"]) for line in done.output],
    }


def compared(measured: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Ours over optimum's."""

    def median(exporter: str, what: str) -> float:
        found = [one[what] for one in measured[exporter]]
        return statistics.median(found[1:] or found)

    return {
        f"{what}_over_optimum": median("neuroglot", what) / median("optimum", what)
        for what in ("seconds", "peak_resident_bytes", "disk_bytes")
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"parameters: {result['parameter_bytes'] / 1e9:.2f} GB")
    print(f"{'':10} {'export':>9} {'verified':>9} {'peak':>9} {'x param.':>9} {'anonymous':>9} {'disk':>9}")
    for exporter, runs in result["runs"].items():
        for one in runs:
            print(
                f"{exporter:10} {one['seconds']:7.1f} s {one['verification_seconds']:7.1f} s "
                f"{one['peak_resident_bytes'] / 1e9:6.2f} GB {one['peak_resident_over_parameters']:9.2f} "
                f"{one['peak_anonymous_bytes'] / 1e9:6.2f} GB {one['disk_bytes'] / 1e9:6.2f} GB"
            )
    print(f"export: {result['seconds_over_optimum']:.2f} x optimum's time")


if __name__ == "__main__":
    main()
