"""A CUDA device against the processor: the same answers, and how much faster they come.

    python -m tests.benchmarks.gpu                        writes build/bench/gpu.json and prints the table
    python -m tests.benchmarks.gpu --device cpu --small   tries the benchmark itself where there is no such device
    python -m tests.benchmarks.gpu --bundles FOLDER       with bundles that were made elsewhere (see bundles.py)

Ends with 1 where the device's answers are not right, or where there is none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from neuroglot.errors import InstallationError
from neuroglot_server.engine.devices import Device, runtime
from tests.benchmarks.gpu import passes, served
from tests.benchmarks.gpu.bundles import DTYPES, FAMILIES, LARGE, SMALL, make


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--bundles", type=Path, help="a folder with the bundles; by default they are exported")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the benchmark itself")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--groups", type=int, default=40)
    parser.add_argument("--small", action="store_true", help="a tiny model in place of BLOOM-560m's geometry")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    bundles: Path = arguments.bundles or arguments.out / "bundles" / "gpu"
    large = bundles / (SMALL if arguments.small else LARGE)
    try:
        runtime(Device.parse(arguments.device))
    except InstallationError as error:
        sys.exit(f"nothing was measured: {error}")
    if arguments.bundles is None:
        make(bundles, small=arguments.small)
    agreements = list(_agreements(bundles, arguments.device))
    compared = list(_passes(large, arguments.device, arguments.rounds))
    rates = {dtype: served.groups_a_second(large / dtype, arguments.device, arguments.groups) for dtype in DTYPES}
    for dtype, by_kind in rates.items():
        print(f"served in {dtype}:", ", ".join(f"{rate:.1f} groups/s {what}" for what, rate in by_kind.items()))
    content = {
        "device": arguments.device,
        "passes": [asdict(one) for one in compared],
        "agreements": [asdict(one) for one in agreements],
        "groups_a_second": rates,
    }
    (arguments.out / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(0 if all([one.right for one in compared] + [one.right for one in agreements]) else 1)


def _agreements(bundles: Path, device: str) -> Iterator[served.Agreement]:
    for family in FAMILIES:
        for dtype in DTYPES:
            one = served.agreement(bundles / family / dtype, device)
            print(
                f"{one.bundle}: {_verdict(right=one.right)} (types of {one.types:.3%}, log-probabilities "
                f"{one.log_probabilities:.1e} apart, {one.texts:.1%} of the texts the same)",
                flush=True,
            )
            yield one


def _passes(bundles: Path, device: str, rounds: int) -> Iterator[passes.Compared]:
    for one in passes.outcomes(bundles, device, rounds):
        faster = ", ".join(f"{kind} {times:.1f} x" for kind, times in one.times_as_fast.items())
        print(
            f"{bundles.name} {one.dtype}: {_verdict(right=one.right)} (signs of {one.signs:.4%}, log-probabilities "
            f"{one.log_probabilities:.1e} apart), as fast as the processor in float32: {faster}",
            flush=True,
        )
        yield one


def _verdict(*, right: bool) -> str:
    return "right" if right else "WRONG"


if __name__ == "__main__":
    main()
