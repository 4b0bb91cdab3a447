"""A Hugging Face Hub of one checkpoint, on loopback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve_hub(checkpoint: Path, hub_id: str, revision: str) -> Iterator[str]:
    """Serve a checkpoint's files as revision `revision` of `hub_id`, which stands for `COMMIT`; yields the endpoint."""
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, headers = self.answer()
            self.send_response(404 if body is None else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        do_HEAD = do_GET  # noqa: N815

        def answer(self) -> tuple[bytes | None, dict[str, str]]:
            path = self.path.partition("?")[0].strip("/")
            model = f"api/models/{hub_id}"
            if path in {model, *(f"{model}/revision/{name}" for name in (revision, "main", COMMIT))}:
                siblings = [{"rfilename": name} for name in files]
                described = {"id": hub_id, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
                return json.dumps(described).encode(), {"Content-Type": "application/json"}
            if path.startswith(f"api/models/{hub_id}/revision/"):
                return None, {"X-Error-Code": "RevisionNotFound"}
            prefix = f"{hub_id}/resolve/{COMMIT}/"
            if not path.startswith(prefix):
                return None, {"X-Error-Code": "RepoNotFound"}
            body = files.get(path.removeprefix(prefix))
            if body is None:
                return None, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            return body, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
