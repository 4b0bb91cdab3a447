"""The process that `process.verify_apart` starts: `python -m neuroglot_exporter.verification BUNDLE SOURCE`."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import warnings
from pathlib import Path

from neuroglot.definitions.probe import to_json
from neuroglot.errors import NeuroglotError


def main(bundle: Path, source: str) -> None:
    """Verify a bundle and report on standard output, a JSON object a line."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")
    for library in ("torch", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as channel:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keeps the output of libraries out of the report

        def report(**what: object) -> None:
            channel.write(json.dumps(what) + "\n")
            channel.flush()

        # Heavy imports, after the thread has started: if the parent ends meanwhile, so does this process.
        from neuroglot_exporter.checkpoints import find_checkpoint
        from neuroglot_exporter.verification.verify import verify

        try:
            measured = verify(bundle, find_checkpoint(source, None), progress=lambda stage: report(stage=stage))
        except NeuroglotError as error:
            report(error=str(error))
        else:
            report(
                verification=measured.to_json(),
                excesses=measured.excesses,
                probe=to_json(measured.probe),
                probe_differences=measured.probe_differences,
            )


def _end_with_parent() -> None:
    """End this process when the parent's end of the pipe closes."""
    os.read(sys.stdin.fileno(), 1)  # os.read, since sys.stdin.read would hold its lock when this process ends
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
