"""Reports in a real browser, as wide as a phone and as wide as a desk."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import pandas as pd
import pytest

from neuroglot.pipeline.pipeline import study_of
from neuroglot.pipeline.publish_comparison import write_page
from tests.client.pages import long_run, page_of
from tests.client.random_results import random_run

CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (Debian: apt-get install chromium)")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--hide-scrollbars",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--remote-debugging-port=0",  # or it ends when the page is there
)

WIDTHS = (375, 1000)

PROBE = """
const root = document.documentElement;
const told = { errors, width: root.clientWidth, wide: root.scrollWidth };
const rectangles = [...document.querySelectorAll("figure")].map((one) => one.getBoundingClientRect());
told.figures = rectangles.map(({ left, width }) => [left, width]);
const cells = (table) => [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent));
const button = (table, name) => table.tHead.querySelector(`th[data-value="${name}"] button`);
const saved = [];
URL.createObjectURL = (blob) => saved.push(blob) && "blob:none";
HTMLAnchorElement.prototype.click = function () { told.file = this.download; };
const open = document.getElementById("accuracy_by_language");
told.written = cells(open);
button(open, "variant").click();
told.rendered = cells(open);
document.querySelectorAll("details").forEach((one) => (one.open = true));
setTimeout(async () => { // when they have told that they are open
  told.wideOpen = root.scrollWidth;
  const long = document.getElementById("thresholds");
  const column = [...long.tHead.rows[0].cells].findIndex((head) => head.dataset.value === "share_percent");
  const read = () => cells(long).map((row) => Number(row[column]));
  told.rows = long.tBodies[0].rows.length;
  button(long, "share_percent").click();
  told.up = read();
  told.said = long.tHead.rows[0].cells[column].getAttribute("aria-sort");
  button(long, "share_percent").click();
  told.down = read();
  document.querySelector("button.download[data-table=types_by_layer]").click();
  told.csv = await saved[0].text();
  fetch("told", { method: "POST", body: JSON.stringify(told) });
}, 100);
"""


class _Desk(SimpleHTTPRequestHandler):
    """Gives the pages of a folder to a browser, and keeps what a page sends back."""

    def __init__(self, *args: Any, told: SimpleQueue[bytes], **named: Any) -> None:
        self.told = told
        super().__init__(*args, **named)

    def do_POST(self) -> None:
        self.told.put(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing: the browser says what goes wrong."""


@contextmanager
def desk(folder: Path) -> Iterator[tuple[str, SimpleQueue[bytes]]]:
    """An address at which a folder's pages are, and what they send back."""
    told: SimpleQueue[bytes] = SimpleQueue()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Desk, directory=str(folder), told=told)) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", told
        finally:
            server.shutdown()


def look(page: str, folder: Path) -> list[dict[str, Any]]:
    """What the probe tells of the page in a frame of each width."""
    site = folder / "site"
    site.mkdir()
    watch = "<script>const errors = []; addEventListener('error', (event) => errors.push(event.message));</script>"
    page = page.replace("<head>", f"<head>{watch}").replace("</body>", f"<script>{PROBE}</script></body>")
    (site / "page.html").write_text(page, encoding="utf-8")
    frames = "".join(
        f'<iframe src="page.html" style="width:{width}px;height:5000px;border:0"></iframe>' for width in WIDTHS
    )
    (site / "frames.html").write_text(frames, encoding="utf-8")
    assert CHROMIUM is not None
    with desk(site) as (address, told), (folder / "browser.log").open("w+") as log:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"{address}/frames.html"]
        browser = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            answers: list[dict[str, Any]] = [json.loads(told.get(timeout=90)) for _ in WIDTHS]
        except Empty:
            pytest.fail(f"a page sent nothing back: {(folder / 'browser.log').read_text()[-2000:]}")
        finally:
            browser.terminate()
            browser.wait(timeout=30)
        log.seek(0)
        said = log.read()
    assert "CONSOLE" not in said, said
    assert sorted(one["width"] for one in answers) == sorted(WIDTHS)
    return sorted(answers, key=lambda one: one["width"])


def check(told: dict[str, Any], rows: int) -> None:
    """What holds of every report at every width."""
    assert told["errors"] == []
    assert told["wide"] <= told["width"]
    assert told["wideOpen"] <= told["width"]
    assert told["rows"] == min(200, rows)
    assert told["up"] == sorted(told["up"])
    assert told["down"] == sorted(told["down"], reverse=True)
    assert told["said"] == "ascending"
    assert told["file"] == "types_by_layer.csv"


def test_the_report_of_a_run_fits_sorts_and_downloads(tmp_path: Path) -> None:
    page, study = page_of(long_run(tmp_path / "run"))
    shares = study.folds["thresholds"].table()["share_percent"]
    for told in look(page, tmp_path):
        check(told, len(shares))
        assert told["up"][0] == pytest.approx(shares.min(), abs=0.01)  # of all rows, also of those that are not shown
        assert told["down"][0] == pytest.approx(shares.max(), abs=0.01)
        assert told["csv"] == study.folds["types_by_layer"].table().to_csv(index=False)
        assert len(told["written"]) == 14
        assert sorted(told["rendered"]) == sorted(told["written"])
        assert [width for _, width in told["figures"]] == [pytest.approx(min(told["width"] - 32, 704))] * 5


def test_several_runs_stand_beside_each_other_where_there_is_room(tmp_path: Path) -> None:
    chosen = ("accuracy", "types_by_layer", "thresholds")
    runs = [random_run(tmp_path / name, count=6, layers=3 + place, analyses=chosen) for place, name in enumerate("ab")]
    write_page([run.folder for run in runs], tmp_path / "both.html")
    phone, desk = look((tmp_path / "both.html").read_text(encoding="utf-8"), tmp_path)
    csv = pd.concat(
        study_of(run).folds["types_by_layer"].table().assign(run=name) for run, name in zip(runs, "ab", strict=True)
    )
    for told in (phone, desk):
        check(told, 56)
        assert told["csv"].splitlines()[0].startswith("run,component,layer,type,share_percent,")
        assert told["csv"].count("\n") == len(csv) + 1
    assert len({left for left, _ in phone["figures"]}) == 1
    assert len({left for left, _ in desk["figures"]}) == 2
