"""The demo on every embedded model that can be exported, beside the one that `test_the_way` looks at closely."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from neuroglot.definitions.bundle import open_bundle
from neuroglot_exporter import embedded
from neuroglot_exporter.families import FAMILIES

OTHERS = sorted({family.name for family in FAMILIES} & set(embedded.families()) - {"bloom"})


@pytest.mark.parametrize("family", OTHERS)
def test_the_demo_runs(family: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "neuroglot", "demo", "--family", family, "--out", str(tmp_path), "--limit", "4"]
    some = ["--analyses", "accuracy,types_by_layer"]
    done = subprocess.run([*command, *some], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    manifest = open_bundle(tmp_path / "bundles" / family, full=True)
    assert (manifest.source, manifest.source_revision) == (f"embedded:{family}", embedded.revision(family))
    results = tmp_path / f"{family}-capitals"
    assert (results / "report.html").is_file()
    accuracy = pd.read_csv(results / "tables" / "accuracy.csv")
    assert accuracy[accuracy.variant == "baseline"].exact_percent.mean() >= 90
    types = pd.read_csv(results / "tables" / "types_by_layer.csv")
    layers = types.groupby("component").layer.nunique().to_dict()
    assert layers == {component.name: component.layers for component in manifest.model.components}
