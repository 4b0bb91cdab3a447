"""Encoder-decoders: the two graphs against transformers, on random models of odd geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch

from neuroglot.definitions.bundle import WEIGHTS, open_bundle
from neuroglot_exporter import export
from tests.checkpoints import random_checkpoint
from tests.exporter.encoder_decoder import MODULES, START, Graphs, Row, Taps, Transformers
from tests.exporter.reference import TOLERANCE, Edit, Graph, left_padded, stored

GEOMETRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mt0": ("mt0", {}),
    "mt0, one layer, one head": ("mt0", {"num_layers": 1, "num_decoder_layers": 1, "num_heads": 1, "d_kv": 10}),
    "mt0, deeper decoder, large pre-activations": ("mt0", {"num_layers": 1, "num_decoder_layers": 3, "gain": 4.0}),
    "mt0, few distances": ("mt0", {"relative_attention_num_buckets": 6, "relative_attention_max_distance": 9}),
    "mt0, gated silu": ("mt0", {"feed_forward_proj": "gated-silu"}),
    "t5, relu, tied": ("t5", {}),
    "t5, relu, untied": ("t5", {"tie_word_embeddings": False, "num_heads": 5, "d_model": 35}),
    "t5, gated gelu, untied (Flan)": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}


class Exported(NamedTuple):
    reference: Transformers
    graphs: Graphs
    bundle: Path
    rows: list[Row]


@pytest.fixture(scope="module", params=GEOMETRIES.values(), ids=GEOMETRIES.keys())
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    family, geometry = request.param
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = random_checkpoint(folder / "checkpoint", family, **geometry)
    export(str(checkpoint), folder / "bundle", verify=False)
    generator = np.random.default_rng(0)
    rows = [
        Row(generator.integers(4, 320, prompt).tolist(), [START, *generator.integers(4, 320, answer).tolist()])
        for prompt, answer in ((9, 3), (1, 7), (40, 0), (14, 1))
    ]
    return Exported(Transformers(checkpoint), Graphs(folder / "bundle"), folder / "bundle", rows)


def assert_row(got: Mapping[str, Taps], r: int, expected: Mapping[str, Taps]) -> None:
    """The last positions of a row of a batch are what is expected, as many as there are."""
    for component, taps in expected.items():
        new = taps["activation"].shape[1]
        for tap in {"activation", "coefficient"} & got[component].keys():
            tolerance = TOLERANCE * max(1, np.abs(taps[tap]).max())
            assert np.abs(got[component][tap][:, r, -new:] - taps[tap]).max() <= tolerance, (component, tap)
    logits = expected["decoder"]["logits"]
    tolerance = TOLERANCE * max(1, np.abs(logits).max())
    assert np.abs(got["decoder"]["logits"][r, -len(logits) :] - logits).max() <= tolerance


def test_a_left_padded_batch_equals_each_row_alone_in_transformers(exported: Exported) -> None:
    got = exported.graphs.run(exported.rows)
    for r, row in enumerate(exported.rows):
        expected = exported.reference.run(row)
        assert_row(got, r, expected)
        for component in MODULES:
            taps = expected[component]
            assert ("coefficient" in got[component]) != np.array_equal(taps["coefficient"], taps["activation"])


def test_types_differ_only_within_tolerance_of_the_threshold(exported: Exported) -> None:
    got = exported.graphs.run(exported.rows)
    for r, row in enumerate(exported.rows):
        for component, taps in exported.reference.run(row).items():
            new = taps["activation"].shape[1]
            flipped = (got[component]["activation"][:, r, -new:] > 0) != (taps["activation"] > 0)
            assert np.abs(taps["pre_activation"][flipped]).max(initial=0) <= TOLERANCE
            assert flipped.mean() <= 1e-3


def test_padding_computes_no_nan(exported: Exported) -> None:
    prompts, prompt_mask = left_padded([row.prompt for row in exported.rows], width=50)
    steps, steps_mask = left_padded([row.steps for row in exported.rows], width=20)
    encoded = exported.graphs.encode(prompts, prompt_mask)
    decoded = exported.graphs.decode(steps, steps_mask, encoded, prompt_mask)
    assert all(np.isfinite(value).all() for values in (encoded, decoded) for value in values.values())


ACTIONS: dict[str, tuple[float, float]] = {
    "deactivate": (0.0, 0.0),
    "override": (0.0, 1.5),
    "scale": (2.5, 0.0),
    "add": (1.0, -0.75),
}
LAST, ALL = (lambda length: slice(length - 1, length)), (lambda length: slice(0, length))
FIRST = lambda _length: slice(0, 1)  # noqa: E731
SCOPES: dict[str, dict[str, Callable[[int], slice]]] = {
    "last prompt token": {"encoder": LAST, "decoder": FIRST},
    "all prompt tokens": {"encoder": ALL, "decoder": FIRST},
    "all tokens": {"encoder": ALL, "decoder": ALL},
}


@pytest.mark.parametrize("components", [("encoder",), ("decoder",), ("encoder", "decoder")], ids="+".join)
@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES.keys())
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
def test_every_row_gets_its_own_intervention(
    exported: Exported,
    action: tuple[float, float],
    scope: dict[str, Callable[[int], slice]],
    components: tuple[str, ...],
) -> None:
    factor, summand = action
    rows = exported.rows
    without = exported.graphs.run(rows)
    generator = np.random.default_rng(1)
    feeds: dict[str, dict[str, np.ndarray]] = {}
    chosen: dict[str, np.ndarray] = {}
    lengths = {"encoder": [len(row.prompt) for row in rows], "decoder": [len(row.steps) for row in rows]}
    for component in components:
        shape = without[component]["activation"].shape  # [layers, rows, positions, neurons]
        chosen[component] = generator.random((shape[0], shape[1], shape[3])) < 0.3
        masks, overrides = np.ones(shape, np.float32), np.zeros(shape, np.float32)
        for r, length in enumerate(lengths[component]):
            positions = np.arange(shape[2])[shape[2] - length :][scope[component](length)]
            masks[:, r, positions] = np.where(chosen[component][:, r, None], factor, 1)
            overrides[:, r, positions] = np.where(chosen[component][:, r, None], summand, 0)
        feeds[component] = {f"ffn.{i}.mask": masks[i] for i in range(shape[0])}
        feeds[component] |= {f"ffn.{i}.override": overrides[i] for i in range(shape[0])}
    got = exported.graphs.run(rows, feeds)
    effects = []

    for r, row in enumerate(rows):

        def edit_of(component: str, r: int = r) -> Edit:
            def edit(i: int, activation: torch.Tensor) -> torch.Tensor:
                changed = activation.clone()
                where = scope[component](lengths[component][r])
                neurons = torch.from_numpy(chosen[component][i, r])
                changed[:, where, neurons] = factor * activation[:, where, neurons] + summand
                return changed

            return edit

        expected = exported.reference.run(row, {component: edit_of(component) for component in components})
        effects.append(np.abs(expected["decoder"]["logits"] - exported.reference.run(row)["decoder"]["logits"]).max())
        assert_row(got, r, expected)
    assert min(effects) > TOLERANCE
    assert max(effects) >= 100 * TOLERANCE


def test_keys_and_values_of_a_prefix_continue_it(exported: Exported) -> None:
    prompts, prompt_mask = left_padded([row.prompt for row in exported.rows])
    steps, mask = left_padded([row.steps for row in exported.rows])
    encoded = exported.graphs.encode(prompts, prompt_mask)
    whole = exported.graphs.decode(steps, mask, encoded, prompt_mask)
    for split in (1, 5, 7):
        before = exported.graphs.decode(steps[:, :split], mask[:, :split], encoded, prompt_mask)
        rest = exported.graphs.decode(steps[:, split:], mask, encoded, prompt_mask, Graph.past_of(before))
        for r, row in enumerate(exported.rows):
            new = min(len(row.steps), 8 - split)
            assert np.abs(rest["logits"][r, -new:] - whole["logits"][r, -new:]).max() <= TOLERANCE * 10
            difference = rest["activation"][:, r, -new:] - whole["activation"][:, r, -new:]
            assert np.abs(difference).max() <= TOLERANCE * max(1, np.abs(whole["activation"]).max())


def test_padding_between_a_past_and_the_rest_changes_nothing(exported: Exported) -> None:
    prompts, prompt_mask = left_padded([row.prompt for row in exported.rows])
    encoded = exported.graphs.encode(prompts, prompt_mask)
    first = [row.steps[: len(row.steps) // 2] for row in exported.rows]  # one of them is empty
    second = [row.steps[len(row.steps) // 2 :] for row in exported.rows]
    first_ids, first_mask = left_padded(first, width=6)
    second_ids, second_mask = left_padded(second, width=7)
    past = Graph.past_of(exported.graphs.decode(first_ids, first_mask, encoded, prompt_mask))
    both = np.concatenate([first_mask, second_mask], axis=1)
    got = exported.graphs.decode(second_ids, both, encoded, prompt_mask, past)
    for r, (row, rest) in enumerate(zip(exported.rows, second, strict=True)):
        taps = exported.reference.run(row)["decoder"]
        expected = {tap: taps[tap][:, -len(rest) :] for tap in ("activation", "coefficient")}
        assert_row({"decoder": got}, r, {"decoder": expected | {"logits": taps["logits"][-len(rest) :]}})


@pytest.mark.parametrize(("start", "kept"), [(None, 1), (-1, 1), (-3, 3), (0, 8), (-99, 8), (2**62, 0)])
def test_outputs_are_given_from_a_start(exported: Exported, start: int | None, kept: int) -> None:
    prompts, prompt_mask = left_padded([row.prompt for row in exported.rows])
    whole = exported.graphs.encode(prompts, prompt_mask)
    cut = exported.graphs.encode(prompts, prompt_mask, start)
    kept_prompt = 40 if kept == 8 else kept
    assert np.array_equal(cut["ffn.0.activation"], whole["ffn.0.activation"][:, 40 - kept_prompt :])
    assert np.array_equal(cut["present.0.encoder.key"], whole["present.0.encoder.key"])
    steps, mask = left_padded([row.steps for row in exported.rows])
    decoded = exported.graphs.decode(steps, mask, whole, prompt_mask, None, start)
    assert decoded["logits"].shape[1] == decoded["ffn.0.activation"].shape[1] == kept


@pytest.mark.parametrize(("start", "kept"), [(-8, 8), (-2, 2), (0, 8), (2**62, 0)])
def test_the_decoder_s_keys_and_values_are_given_from_a_start(exported: Exported, start: int, kept: int) -> None:
    prompts, prompt_mask = left_padded([row.prompt for row in exported.rows])
    encoded = exported.graphs.encode(prompts, prompt_mask)
    steps, mask = left_padded([row.steps for row in exported.rows])
    whole = exported.graphs.decode(steps, mask, encoded, prompt_mask)
    cut = exported.graphs.decode(steps, mask, encoded, prompt_mask, present_from=np.array([start]))
    names = [name for name in whole if name.startswith("present.")]
    assert names
    assert all(np.array_equal(cut[name], whole[name][:, :, 8 - kept :]) for name in names)
    assert "present_from" not in {info.name for info in exported.graphs.encoder.session.get_overridable_initializers()}


def test_what_both_graphs_read_is_stored_once(exported: Exported) -> None:
    parameters = {parameter.data_ptr(): parameter.nbytes for parameter in exported.reference.model.parameters()}
    padding = 64 * len(list(exported.reference.model.named_parameters(remove_duplicate=False)))  # alignment
    assert (exported.bundle / WEIGHTS).stat().st_size <= sum(parameters.values()) + padding


def test_the_metadata_name_what_attribution_needs(exported: Exported) -> None:
    model = exported.reference.model
    for component, path in MODULES.items():
        graph = onnx.load(exported.bundle / f"{component}.onnx")
        tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        named = {prop.key: prop.value for prop in graph.metadata_props}
        for i in range(exported.reference.layers[component]):
            values = model.get_submodule(path.format(i=i)).wo.weight.detach().numpy()
            assert np.array_equal(tensors[named[f"value_matrix.{i}"]], values.T)
        assert ("output_embedding" in named) == (component == "decoder")
    assert np.array_equal(tensors[named["output_embedding"]], model.get_output_embeddings().weight.detach().numpy())


def test_the_manifest_says_where_those_matrices_lie(exported: Exported) -> None:
    model = exported.reference.model
    facts = open_bundle(exported.bundle).model
    for component in facts.components:
        assert len(component.values) == component.layers
        for i, matrix in enumerate(component.values):
            values = model.get_submodule(MODULES[component.name].format(i=i)).wo.weight.detach().numpy()
            assert np.array_equal(stored(exported.bundle, matrix), values.T)
    head = model.get_output_embeddings().weight.detach().numpy()
    assert np.array_equal(stored(exported.bundle, facts.output_embedding), head)
    assert facts.output_scale == (model.model_dim**-0.5 if model.config.tie_word_embeddings else 1)


def test_norms_and_facts_are_those_of_both_components(exported: Exported) -> None:
    facts = open_bundle(exported.bundle).model
    assert [component.name for component in facts.components] == ["encoder", "decoder"]
    assert facts.decoder_start_token_id == START
    for component in facts.components:
        norms = np.load(exported.bundle / component.norms)
        assert norms.shape == (exported.reference.layers[component.name], 70)
        for i in range(component.layers):
            path = MODULES[component.name].format(i=i)
            weight = exported.reference.model.get_submodule(path).wo.weight.detach().numpy()
            assert np.allclose(norms[i], np.sqrt((weight**2).sum(axis=0)), rtol=1e-6)
