"""The probe that an export records: its request, and that it detects graphs that are not the checkpoint's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from neuroglot.definitions.bundle import PROBE, open_bundle
from neuroglot.definitions.probe import compare, from_json, read_probe, to_json
from neuroglot.v1.probe_pb2 import Probe
from neuroglot_exporter import export
from neuroglot_exporter.checkpoints import find_checkpoint
from neuroglot_exporter.verification.probe import record_of_graphs
from neuroglot_exporter.verification.verify import verify
from tests.checkpoints import CONFIGS, RandomModel, random_checkpoint
from tests.exporter.damage import change_graph, change_weight, damaged_copy
from tests.exporter.test_verification import ignore


def recorded(bundle: Path) -> Probe:
    probe = read_probe(bundle, open_bundle(bundle, full=True))
    assert probe is not None
    return probe


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_records_it(family: str, random_model: Callable[[str], RandomModel]) -> None:
    model = random_model(family)
    probe, facts = recorded(model.bundle), open_bundle(model.bundle).model
    assert probe.computed_by == ("transformers" if family == "bloom" else "onnxruntime")
    lengths = [len(row.token_ids.ids) for row in probe.group.rows]
    assert len(set(lengths)) == len(lengths) == 3
    assert all(row.answers and row.choices for row in probe.group.rows)
    names = [f"{kind}.{part.name}" for part in facts.components for kind in ("deactivate", "add")]
    assert [variant.name for variant in probe.analysis.variants] == names
    baseline, *variants = probe.expected.variants
    for variant in variants:  # an intervention that moves nothing would prove nothing
        moved = variant.predictions[0].gold_log_probability - baseline.predictions[0].gold_log_probability
        assert abs(moved) > 3 * probe.log_probability_tolerance, variant.name
    for part, uncertain in zip(facts.components, probe.uncertain, strict=True):
        bits = [np.unpackbits(np.frombuffer(one, np.uint8)).mean() for one in uncertain.bitmaps]
        # What a ReLU makes 0 may have been just below it, or far.
        assert max(bits) < (0.6 if part.activation_function == "relu" else 0.1), "nearly all neurons are certain"


@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_recorded_of_the_graphs_is_what_transformers_computes(
    family: str, random_model: Callable[[str], RandomModel]
) -> None:
    model = random_model(family)
    verification = verify(model.bundle, find_checkpoint(str(model.checkpoint), None))
    assert verification.probe.computed_by == "transformers"
    assert not verification.probe_differences
    assert not compare(verification.probe, recorded(model.bundle).expected).differences


@pytest.mark.parametrize("family", ["bloom", "mt0"])
def test_float16(family: str, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "checkpoint", family)
    manifest = export(str(checkpoint), tmp_path / "bundle", dtype="float16")
    probe = recorded(tmp_path / "bundle")
    assert probe.computed_by == "transformers"
    by_graphs = record_of_graphs(tmp_path / "bundle", manifest.model)
    compared = compare(probe, by_graphs.expected)
    assert not compared.differences
    assert 0 < compared.largest_difference < compared.allowed_difference


def test_it_is_no_part_of_the_identity_and_its_content_is_hashed(bloom_bundle: Path, tmp_path: Path) -> None:
    manifest = open_bundle(bloom_bundle)
    assert PROBE in manifest.files
    without = damaged_copy(bloom_bundle, tmp_path / "without", lambda copy: (copy / PROBE).unlink())
    assert open_bundle(without).identity == manifest.identity
    assert read_probe(without, open_bundle(without)) is None
    probe = recorded(bloom_bundle)
    assert from_json(to_json(probe)) == probe


class TestFinds:
    """Differences of a probe of damaged graphs."""

    def differences(self, bundle: Path, folder: Path, damage: Callable[[Path], None]) -> str:
        damaged = damaged_copy(bundle, folder, damage)
        by_graphs = record_of_graphs(damaged, open_bundle(damaged).model)
        return "; ".join(compare(recorded(bundle), by_graphs.expected).differences)

    def test_other_weights(self, bloom_bundle: Path, tmp_path: Path) -> None:
        def flip(weight: np.ndarray) -> None:
            weight[:4] *= -1

        name = "transformer.h.0.mlp.dense_4h_to_h.weight"
        assert "neuron " in self.differences(bloom_bundle, tmp_path / "a", lambda copy: change_weight(copy, name, flip))

    def test_a_mask_that_masks_nothing(self, bloom_bundle: Path, tmp_path: Path) -> None:
        damage = partial(change_graph, change=partial(ignore, "/ffn.1/Mul", 1.0))
        found = self.differences(bloom_bundle, tmp_path / "a", damage)
        assert "under 'deactivate.decoder'" in found
        assert "under 'baseline'" not in found

    def test_an_override_that_overrides_nothing(self, bloom_bundle: Path, tmp_path: Path) -> None:
        damage = partial(change_graph, change=partial(ignore, "/ffn.1/Add", 0.0))
        found = self.differences(bloom_bundle, tmp_path / "a", damage)
        assert "under 'add.decoder'" in found
        assert "under 'deactivate.decoder'" not in found

    def test_another_tokenizer(self, bloom_bundle: Path) -> None:
        probe = recorded(bloom_bundle)
        answer = type(probe.expected)()
        answer.CopyFrom(probe.expected)
        answer.rows[1].gold_token_ids[0] += 1
        (difference,) = compare(probe, answer).differences
        assert "the tokenizer is not the export's" in difference

    def test_numbers_that_are_not_finite_or_missing(self, bloom_bundle: Path) -> None:
        probe = recorded(bloom_bundle)
        answer = type(probe.expected)()
        answer.CopyFrom(probe.expected)
        answer.variants[0].predictions[0].gold_log_probability = float("nan")
        del answer.variants[2].predictions[:]
        compared = compare(probe, answer)
        assert len(compared.differences) == 1 + 2 * 3
        assert np.isnan(compared.largest_difference)
        answer.CopyFrom(probe.expected)
        del answer.components[:]
        (difference,) = compare(probe, answer).differences
        assert difference.startswith("the decoder has no active neurons and types of every row")
