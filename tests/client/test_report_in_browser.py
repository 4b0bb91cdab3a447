"""Reports in a real browser, as wide as a phone and as wide as a desk."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from neuroglot.analyses.comparison.publish import write_page
from neuroglot.analyses.pipeline import study_of
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
    "--virtual-time-budget=5000",
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
  parent.postMessage(JSON.stringify(told), "*");
}, 100);
"""


def look(page: str, folder: Path) -> list[dict[str, Any]]:
    """What the probe tells of the page in a frame of each width."""
    watch = "<script>const errors = []; addEventListener('error', (event) => errors.push(event.message));</script>"
    page = page.replace("<head>", f"<head>{watch}").replace("</body>", f"<script>{PROBE}</script></body>")
    (folder / "page.html").write_text(page, encoding="utf-8")
    frames = "".join(
        f'<iframe src="page.html" style="width:{width}px;height:5000px;border:0"></iframe>' for width in WIDTHS
    )
    (folder / "frames.html").write_text(
        f'{frames}<pre id="told"></pre><script>const told = []; addEventListener("message", (event) => {{'
        'told.push(event.data); document.getElementById("told").textContent = `[${told}]`; });</script>',
        encoding="utf-8",
    )
    assert CHROMIUM is not None
    ended = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "frames.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert "CONSOLE" not in ended.stderr, ended.stderr
    found = re.search(r'<pre id="told">(.+?)</pre>', ended.stdout, re.DOTALL)
    assert found, ended.stderr[-2000:]
    told: list[dict[str, Any]] = json.loads(html.unescape(found[1]))
    assert sorted(one["width"] for one in told) == sorted(WIDTHS)
    return sorted(told, key=lambda one: one["width"])


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
