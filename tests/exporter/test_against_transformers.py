from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from neuroglot.definitions.bundle import open_bundle
from neuroglot_exporter import export
from tests.checkpoints import random_checkpoint
from tests.exporter.reference import TOLERANCE, Graph, Transformers, left_padded

LLAMA_3_POSITIONS = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,  # so few that the frequencies differ within the rows here
}

GEOMETRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {}),
    "bloom, one layer, one head": ("bloom", {"n_layer": 1, "n_head": 1, "hidden_size": 10}),
    "bloom, five heads, residual after the norm": (
        "bloom",
        {"n_layer": 2, "n_head": 5, "hidden_size": 35, "apply_residual_connection_post_layernorm": True},
    ),
    "bloom, large pre-activations": ("bloom", {"gain": 4.0}),
    "bloom, vocabulary larger than the tokenizer's": ("bloom", {"vocab_size": 333, "n_layer": 2}),
    "llama, six heads over two": ("llama", {}),
    "llama, one head, tied": (
        "llama",
        {"num_hidden_layers": 1, "hidden_size": 10, "num_attention_heads": 1, "num_key_value_heads": 1}
        | {"tie_word_embeddings": True},
    ),
    "llama, biases, wide heads, Llama 3's positions, tied": (
        "llama",
        {"num_hidden_layers": 2, "hidden_size": 20, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 14}
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rope_theta": 500_000.0}
        | {"rope_scaling": LLAMA_3_POSITIONS},
    ),
    "llama, large pre-activations": ("llama", {"gain": 4.0, "num_hidden_layers": 2}),
    "llama, gated gelu": ("llama", {"hidden_act": "gelu_new", "gain": 4.0, "num_hidden_layers": 2}),
    "xglm, three heads": ("xglm", {}),
    "xglm, one head, odd width, embedding as it is": (
        "xglm",
        {"num_layers": 1, "d_model": 11, "attention_heads": 1, "scale_embedding": False},
    ),
    "xglm, relu, untied": (
        "xglm",
        {"num_layers": 2, "d_model": 35, "attention_heads": 5, "activation_function": "relu"}
        | {"tie_word_embeddings": False},
    ),
    "xglm, large pre-activations": ("xglm", {"gain": 4.0, "num_layers": 2}),
}


class Exported(NamedTuple):
    reference: Transformers
    graph: Graph
    bundle: Path
    rows: list[list[int]]


@pytest.fixture(scope="module", params=GEOMETRIES.values(), ids=GEOMETRIES.keys())
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    family, geometry = request.param
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = random_checkpoint(folder / "checkpoint", family, **geometry)
    export(str(checkpoint), folder / "bundle", verify=False)
    generator = np.random.default_rng(0)
    rows = [generator.integers(4, 320, length).tolist() for length in (9, 1, 4, 14)]
    return Exported(Transformers(checkpoint, family), Graph(folder / "bundle"), folder / "bundle", rows)


def assert_row(got: dict[str, np.ndarray], r: int, expected: dict[str, np.ndarray]) -> None:
    """The last positions of a row of a batch are what is expected, as many as there are."""
    new = len(expected["logits"])
    assert np.abs(got["logits"][r, -new:] - expected["logits"]).max() <= TOLERANCE
    assert np.abs(got["activation"][:, r, -new:] - expected["activation"]).max() <= TOLERANCE
    if "coefficient" in got:
        # Products of two numbers, up to a hundred with large pre-activations.
        tolerance = TOLERANCE * max(1, np.abs(expected["coefficient"]).max())
        assert np.abs(got["coefficient"][:, r, -new:] - expected["coefficient"]).max() <= tolerance


def test_a_left_padded_batch_equals_each_row_alone_in_transformers(exported: Exported) -> None:
    got = exported.graph.run(*left_padded(exported.rows))
    for r, row in enumerate(exported.rows):
        expected = exported.reference.run(row)
        assert_row(got, r, expected)
        assert ("coefficient" in got) != np.array_equal(expected["coefficient"], expected["activation"])


def test_types_differ_only_within_tolerance_of_the_threshold(exported: Exported) -> None:
    got = exported.graph.run(*left_padded(exported.rows))["activation"]
    flips = neurons = 0
    for r, row in enumerate(exported.rows):
        expected = exported.reference.run(row)
        flipped = (got[:, r, -len(row) :] > 0) != (expected["activation"] > 0)
        assert np.abs(expected["pre_activation"][flipped]).max(initial=0) <= TOLERANCE
        flips, neurons = flips + int(flipped.sum()), neurons + flipped.size
    print(f"{flips} of {neurons} neurons flip")
    assert flips <= neurons / 1000


def test_padding_computes_no_nan(exported: Exported) -> None:
    ids, mask = left_padded(exported.rows, width=20)
    values = exported.graph.run(ids, mask)
    assert all(np.isfinite(value).all() for value in values.values())


ACTIONS: dict[str, tuple[float, float]] = {
    "deactivate": (0.0, 0.0),
    "override": (0.0, 1.5),
    "scale": (2.5, 0.0),
    "add": (1.0, -0.75),
}
SCOPES: dict[str, Callable[[int], slice]] = {
    "last position": lambda length: slice(length - 1, length),
    "all positions": lambda length: slice(0, length),
}


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES.keys())
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
def test_every_row_gets_its_own_intervention(
    exported: Exported, action: tuple[float, float], scope: Callable[[int], slice]
) -> None:
    factor, summand = action
    ids, mask = left_padded(exported.rows)
    shape = exported.graph.run(ids, mask)["activation"].shape
    chosen = np.random.default_rng(1).random((shape[0], shape[1], shape[3])) < 0.3  # [layers, rows, neurons]
    masks, overrides = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    for r, row in enumerate(exported.rows):
        positions = np.arange(shape[2])[shape[2] - len(row) :][scope(len(row))]
        masks[:, r, positions] = np.where(chosen[:, r, None], factor, 1)
        overrides[:, r, positions] = np.where(chosen[:, r, None], summand, 0)
    feeds = {f"ffn.{i}.mask": masks[i] for i in range(shape[0])}
    got = exported.graph.run(ids, mask, **feeds, **{f"ffn.{i}.override": overrides[i] for i in range(shape[0])})

    for r, row in enumerate(exported.rows):

        def edit(i: int, activation: torch.Tensor, r: int = r, length: int = len(row)) -> torch.Tensor:
            changed = activation.clone()
            neurons = torch.from_numpy(chosen[i, r])
            where = scope(length)
            changed[:, where, neurons] = factor * activation[:, where, neurons] + summand
            return changed

        without, expected = exported.reference.run(row), exported.reference.run(row, edit)
        assert np.abs(expected["logits"] - without["logits"]).max() >= 100 * TOLERANCE
        assert_row(got, r, expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 1), (1, 14, 1), (4, 1, None), (1, 1, None)])
def test_mask_and_override_broadcast(exported: Exported, shape: tuple[int, int, int | None]) -> None:
    ids, mask = left_padded(exported.rows)
    neurons = exported.graph.run(ids, mask)["activation"].shape[-1]
    small = (
        np.random.default_rng(2).normal(size=[neurons if size is None else size for size in shape]).astype(np.float32)
    )
    full = np.ascontiguousarray(np.broadcast_to(small, (4, 14, neurons)))
    got = exported.graph.run(ids, mask, **{"ffn.0.mask": small, "ffn.0.override": small})
    expected = exported.graph.run(ids, mask, **{"ffn.0.mask": full, "ffn.0.override": full})
    assert np.abs(got["logits"] - expected["logits"]).max() <= TOLERANCE


def test_keys_and_values_of_a_prefix_continue_it(exported: Exported) -> None:
    ids, mask = left_padded(exported.rows)
    whole = exported.graph.run(ids, mask)
    for split in (1, 6, 13):
        past = exported.graph.past_of(exported.graph.run(ids[:, :split], mask[:, :split]))
        rest = exported.graph.run(ids[:, split:], mask, past)
        for r, row in enumerate(exported.rows):
            new = min(len(row), 14 - split)
            assert np.abs(rest["logits"][r, -new:] - whole["logits"][r, -new:]).max() <= TOLERANCE
            assert np.abs(rest["activation"][:, r, -new:] - whole["activation"][:, r, -new:]).max() <= TOLERANCE


def test_padding_between_a_cached_prefix_and_the_rest_changes_nothing(exported: Exported) -> None:
    prefixes = [row[: len(row) // 2] for row in exported.rows]  # one of them is empty
    suffixes = [row[len(row) // 2 :] for row in exported.rows]
    prefix_ids, prefix_mask = left_padded(prefixes, width=8)
    suffix_ids, suffix_mask = left_padded(suffixes, width=9)
    past = exported.graph.past_of(exported.graph.run(prefix_ids, prefix_mask))
    got = exported.graph.run(suffix_ids, np.concatenate([prefix_mask, suffix_mask], axis=1), past)
    for r, (row, suffix) in enumerate(zip(exported.rows, suffixes, strict=True)):
        expected = exported.reference.run(row)
        of_suffix = {tap: expected[tap][:, -len(suffix) :] for tap in ("activation", "coefficient")}
        assert_row(got, r, of_suffix | {"logits": expected["logits"][-len(suffix) :]})


@pytest.mark.parametrize(("start", "kept"), [(-1, 1), (-3, 3), (0, 14), (-99, 14), (14, 0), (2**62, 0), (12, 2)])
def test_outputs_are_given_from_a_start(exported: Exported, start: int, kept: int) -> None:
    ids, mask = left_padded(exported.rows)
    whole, got = exported.graph.run(ids, mask), exported.graph.run(ids, mask, start=start)
    assert got["logits"].shape[1] == got["activation"].shape[2] == kept
    assert np.abs(got["logits"] - whole["logits"][:, 14 - kept :]).max(initial=0) <= TOLERANCE
    assert np.array_equal(got["activation"], whole["activation"][:, :, 14 - kept :])


@pytest.mark.parametrize(("start", "kept"), [(-8, 8), (-3, 3), (0, 14), (-99, 14), (2**62, 0)])
def test_keys_and_values_are_given_from_a_start(exported: Exported, start: int, kept: int) -> None:
    ids, mask = left_padded(exported.rows)
    past = exported.graph.past_of(exported.graph.run(ids[:, :6], mask[:, :6]))
    whole = exported.graph.run(ids[:, 6:], mask, past)
    got = exported.graph.run(ids[:, 6:], mask, past, present_from=np.array([start]))
    for name, given in exported.graph.past_of(got).items():
        expected = exported.graph.past_of(whole)[name]
        assert expected.shape[2] == 14
        assert np.array_equal(given, expected[:, :, 14 - kept :])
    assert np.array_equal(got["logits"], whole["logits"])


def test_by_default_the_last_position_is_given(exported: Exported) -> None:
    ids, mask = left_padded(exported.rows)
    values = exported.graph.run(ids, mask, start=None)
    assert values["logits"].shape[:2] == values["ffn.0.activation"].shape[:2] == (4, 1)


def test_norms_are_those_of_the_value_rows(exported: Exported) -> None:
    norms = np.load(exported.bundle / "decoder.norms.npy")
    component = open_bundle(exported.bundle).model.components[0]
    assert norms.shape == (component.layers, component.neurons)
    assert norms.dtype == np.float32
    for i in range(component.layers):
        path = exported.reference.modules.down_projection.format(i=i)
        weight = exported.reference.model.get_submodule(path).weight.detach().numpy()
        assert np.allclose(norms[i], [np.sqrt(np.sum(weight[:, j] ** 2)) for j in range(component.neurons)], rtol=1e-6)
