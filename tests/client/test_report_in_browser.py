"""The report in a real browser, as wide as a phone and as wide as a desk."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from neuroglot.analyses.pipeline import publish
from tests.client.random_results import random_run

CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (Debian: apt-get install chromium)")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
)

PROBE = """
const told = { errors, width: document.documentElement.clientWidth, wide: document.documentElement.scrollWidth };
told.svgs = [...document.querySelectorAll("svg")].map((svg) => svg.getBoundingClientRect().width);
document.querySelectorAll("details").forEach((one) => (one.open = true));
told.wideOpen = document.documentElement.scrollWidth;
const table = document.getElementById("types_by_layer");
const column = [...table.tHead.rows[0].cells].findIndex((head) => head.dataset.value === "share_percent");
const read = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[column].dataset.value));
told.before = read();
table.tHead.rows[0].cells[column].firstElementChild.click();
told.up = read();
told.said = table.tHead.rows[0].cells[column].getAttribute("aria-sort");
table.tHead.rows[0].cells[column].firstElementChild.click();
told.down = read();
told.csv = toCsv(document.getElementById("effects"));
let saved = null;
HTMLAnchorElement.prototype.click = function () { saved = [this.download, this.href.slice(0, 5)]; };
document.querySelector("button.download[data-table=accuracy]").click();
told.saved = saved;
parent.postMessage(JSON.stringify(told), "*");
"""


@pytest.fixture(scope="module", params=[None, (5, 57)], ids=["decoder", "encoder and decoder"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(random_run(tmp_path_factory.mktemp("runs") / "run", count=9, encoder=request.param)).report


def look(report: Path, width: int, tmp_path: Path) -> dict[str, Any]:
    """What the probe tells of the report in a frame of that width."""
    page = report.read_text(encoding="utf-8")
    watch = "<script>const errors = []; addEventListener('error', (event) => errors.push(event.message));</script>"
    page = page.replace("<head>", f"<head>{watch}").replace("</body>", f"<script>{PROBE}</script></body>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        f'<iframe src="page.html" style="width:{width}px;height:5000px;border:0"></iframe><pre id="told"></pre><script>'
        "addEventListener('message', (event) => (document.getElementById('told').textContent = event.data));</script>",
        encoding="utf-8",
    )
    assert CHROMIUM is not None
    ended = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert "CONSOLE" not in ended.stderr
    found = re.search(r'<pre id="told">(.+?)</pre>', ended.stdout, re.DOTALL)
    assert found, ended.stderr[-2000:]
    told: dict[str, Any] = json.loads(html.unescape(found[1]))
    return told


@pytest.mark.parametrize("width", [375, 1000])
def test_the_report_fits_sorts_and_downloads(report: Path, width: int, tmp_path: Path) -> None:
    told = look(report, width, tmp_path)
    assert told["errors"] == []
    assert told["wide"] <= told["width"] <= width
    assert told["wideOpen"] <= told["width"]
    assert len(told["svgs"]) == 5
    assert min(told["svgs"]) > min(0.85 * width, 400)
    assert told["before"] != told["up"] == sorted(told["before"])
    assert told["down"] == sorted(told["before"], reverse=True)
    assert told["said"] == "ascending"
    effects = (report.parent / "tables" / "effects.csv").read_text(encoding="utf-8")
    assert told["csv"] == effects
    assert told["saved"] == ["accuracy.csv", "blob:"]
