"""Exported graphs as others see them: a checker, a viewer, a runtime without any of our code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from neuroglot.definitions.bundle import open_bundle
from neuroglot_exporter.families import FAMILIES
from tests.checkpoints import RandomModel


@pytest.fixture(scope="module", params=[family.name for family in FAMILIES])
def bundle(request: pytest.FixtureRequest, random_model: Callable[[str], RandomModel]) -> Path:
    return random_model(request.param).bundle


def test_every_graph_passes_the_full_check_with_its_weights(bundle: Path) -> None:
    for component in open_bundle(bundle).model.components:
        onnx.checker.check_model(bundle / component.graph, full_check=True)
        graph = onnx.load(bundle / component.graph).graph  # with the external data: a wrong place or size raises
        assert any(len(tensor.raw_data) > 1000 for tensor in graph.initializer)


def test_every_input_and_output_is_documented(bundle: Path) -> None:
    for component in open_bundle(bundle).model.components:
        model = onnx.load(bundle / component.graph, load_external_data=False)
        assert model.producer_name == "neuroglot"
        assert model.doc_string
        assert model.graph.name == component.name
        undocumented = [value.name for value in (*model.graph.input, *model.graph.output) if not value.doc_string]
        assert not undocumented


def test_a_viewer_finds_mask_and_override_at_the_node_that_reads_them(bundle: Path) -> None:
    """Netron leaves inputs that have a default out of its list of inputs: the nodes must say what they are."""
    for component in open_bundle(bundle).model.components:
        nodes = {node.name: node for node in onnx.load(bundle / component.graph, load_external_data=False).graph.node}
        for i in range(component.layers):
            for node, optional in ((nodes[f"/ffn.{i}/Mul"], "mask"), (nodes[f"/ffn.{i}/Add"], "override")):
                assert f"ffn.{i}.{optional}" in node.input
                assert f"ffn.{i}.{optional}" in node.doc_string
