"""Verification in a separate process, which releases its memory at the end and can be killed at any time.

The process reports on its standard output, a JSON object a line: `{"stage": ...}` as a stage begins, and at the end
either `{"verification": ..., "excesses": ..., "probe": ..., "probe_differences": ...}` or `{"error": ...}`. Its
standard input is a pipe without data: it closes when the parent ends, for any reason, and the process ends, too.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from neuroglot_exporter.errors import VerificationError
from neuroglot_exporter.verification.measurement import difference_message, probe_message

STARTING = "starting the verification"
"""First stage of a verification."""


class Verified(NamedTuple):
    """The result of a verification that passed.

    Attributes:
        measured: `Verification.to_json`.
        probe: the content of the bundle's `probe.json`.
    """

    measured: dict[str, Any]
    probe: str


def verify_apart(bundle: Path, source: Path, progress: Callable[[str], object]) -> Verified:
    """Compare a bundle's graphs with transformers in a separate process.

    Args:
        bundle: its folder.
        source: the checkpoint's folder, or a GGUF file.
        progress: called with the name of every stage as it begins.

    Raises:
        VerificationError: something differs by more than the tolerance, or the process failed.
    """
    command = [sys.executable, "-m", "neuroglot_exporter.verification", str(bundle), str(source)]
    report: dict[str, Any] = {}
    progress(STARTING)
    # A session of its own: Ctrl-C is for the parent, which kills the process.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                report = json.loads(line)
                if "stage" in report:
                    progress(report["stage"])
        except BaseException:
            process.kill()
            raise
    if "error" in report:
        raise VerificationError(report["error"])
    if "verification" not in report:
        raise VerificationError(f"the verification did not end: its process {_ending(process.returncode)}")
    if report["excesses"]:
        raise VerificationError(difference_message(report["excesses"]))
    if report["probe_differences"]:
        raise VerificationError(probe_message(report["probe_differences"]))
    return Verified(report["verification"], report["probe"])


def _ending(status: int) -> str:
    if status == -signal.SIGKILL:
        return "was killed, for which too little memory is the usual reason"
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}, see above"
