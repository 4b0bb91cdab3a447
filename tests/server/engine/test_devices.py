"""Where passes run: what was asked for, or an error that says what is missing."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from neuroglot.definitions.bundle import read_manifest
from neuroglot.errors import InstallationError
from neuroglot_server.engine.devices import (
    RECORD_ASSIGNMENT,
    Device,
    require_products_on,
    start_session,
)
from neuroglot_server.engine.graph import interfaces
from neuroglot_server.engine.session import Engine


def test_devices_are_read_as_they_are_written() -> None:
    assert [Device.parse(text) for text in ("cpu", "cuda", "cuda:0", "cuda:3")] == [
        Device("cpu"),
        Device("cuda", 0),
        Device("cuda", 0),
        Device("cuda", 3),
    ]


@pytest.mark.parametrize("text", ["", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:1 ", "rocm", "gpu"])
def test_other_devices_are_unknown(text: str) -> None:
    with pytest.raises(InstallationError, match=r"is unknown: give cpu, cuda, or cuda:1"):
        Device.parse(text)


def test_cuda_is_refused_where_the_runtime_has_none(bloom_bundle: Path) -> None:
    facts = read_manifest(bloom_bundle).model
    (component,) = facts.components
    with pytest.raises(InstallationError, match=r"onnxruntime is installed, which has no CUDA.*neuroglot\[gpu\]"):
        Engine(bloom_bundle / component.graph, component, interfaces(facts)[component.name], 1, "cuda:0")


def test_a_build_for_cuda_that_cannot_load_it_is_refused(
    bloom_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metadata says onnxruntime-gpu; what is imported has no such provider, as where its libraries are missing."""
    metadata = tmp_path / "onnxruntime_gpu-1.32.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.32.0\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(InstallationError, match=r"gives no CUDAExecutionProvider on this machine.*--device cpu"):
        start_session(bloom_bundle / "decoder.onnx", Device("cuda"), onnxruntime.SessionOptions())


def test_matrix_products_on_another_provider_are_refused(bloom_bundle: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    session = onnxruntime.InferenceSession(bloom_bundle / "decoder.onnx", options, providers=["CPUExecutionProvider"])
    require_products_on("CPUExecutionProvider", session)
    with pytest.raises(InstallationError, match=r"runs (MatMul|Gemm) .* on CPUExecutionProvider instead of CUDA"):
        require_products_on("CUDAExecutionProvider", session)
