"""Results of a served encoder-decoder, against the definitions and transformers with hooks."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer

from neuroglot.definitions.bundle import describe_files, read_manifest, write_manifest
from neuroglot.definitions.packing import pack_bits, unpack_bits, unpack_codes
from neuroglot_exporter import embedded
from neuroglot_server.core import (
    Add,
    Analysis,
    ByNeuron,
    ByType,
    Contribution,
    Control,
    ControlKind,
    Deactivate,
    Group,
    GroupResult,
    Intervention,
    Limits,
    NeuronType,
    NotFinite,
    Override,
    Prediction,
    Row,
    RowPrediction,
    Scope,
    Settings,
    Variant,
)
from neuroglot_server.intake.encoding import encode_rows
from neuroglot_server.intake.text import Text
from neuroglot_server.models.model import Model
from tests import definitions
from tests.checkpoints import RandomModel
from tests.exporter.reference import TOLERANCE
from tests.server import reference
from tests.server.models.test_model import assert_same
from tests.server.reference import ACTIONS, COMPONENTS, ENCODER_DECODERS, START, Change, EncoderDecoder
from tests.server.serving import CAPITALS, analyze, served

EOS = 2
THREE = Group("FR", CAPITALS.rows[:3])
PARTIAL = ByType((NeuronType.PARTIAL_SHARED,))
EVERYTHING = Analysis(
    thresholds=(0.0, 0.5),
    type_map=True,
    active_bitmaps=True,
    contribution=Contribution(),
    prediction=Prediction(generate=True),
)
WHERE = {"encoder": "encoder", "decoder": "decoder", "both": ""}
VARIANTS = {
    f"{action}, {scope}, {where}": (action, scope, where) for action, scope, where in product(ACTIONS, Scope, WHERE)
}
INTERVENED = dataclasses.replace(
    EVERYTHING,
    variants=tuple(
        Variant(name, (Intervention(PARTIAL, ACTIONS[action][0], component=WHERE[where], scope=scope),))
        for name, (action, scope, where) in VARIANTS.items()
    ),
)


class Served(NamedTuple):
    bundle: Path
    tokenizer: Tokenizer
    transformers: EncoderDecoder
    prompts: list[list[int]]
    activations: dict[str, np.ndarray]
    """Activations of transformers by component, `[rows, layers, neurons]`, at its last prompt token."""
    result: GroupResult


@pytest.fixture(scope="module", params=ENCODER_DECODERS)
def model(request: pytest.FixtureRequest, random_model: Callable[[str], RandomModel]) -> Served:
    _, checkpoint, bundle = random_model(request.param)
    transformers = EncoderDecoder(checkpoint)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    prompts = [tokenizer.encode(row.prompt).ids for row in THREE.rows]
    activations = reference.taps(transformers, prompts)
    return Served(bundle, tokenizer, transformers, prompts, activations, analyze(bundle, THREE, INTERVENED))


def test_types_and_active_neurons_of_both_components_are_those_of_transformers(model: Served) -> None:
    assert [component.component for component in model.result.components] == ["encoder", "decoder"]
    for component in model.result.components:
        activations = model.activations[component.component]
        shape = activations.shape[1:]
        assert (component.layers, component.neurons) == shape
        for result in component.thresholds:
            codes = definitions.type_codes(activations, result.threshold)
            assert len(np.unique(codes)) == 4
            assert (unpack_codes(result.type_map, shape) == codes).all()
            active = activations > result.threshold
            assert result.active_counts.tolist() == active.sum(axis=2).T.tolist()
            for packed, of_row in zip(result.active_bitmaps, active, strict=True):
                assert (unpack_bits(packed, shape) == of_row).all()
    layers = [component.layers for component in model.result.components]
    assert layers == [3, 2], "or one component could pass for the other"


def test_contributions_use_each_components_coefficients(model: Served) -> None:
    blocks = {"encoder": "encoder.block.{}.layer.1", "decoder": "decoder.block.{}.layer.2"}
    coefficients = reference.taps(model.transformers, model.prompts, "coefficient")
    for component in model.result.components:
        name = component.component
        result = component.thresholds[0].contribution
        assert result is not None
        for layer, sets in enumerate(definitions.types(model.activations[name])):
            module = model.transformers.model.get_submodule(f"{blocks[name].format(layer)}.DenseReluDense.wo")
            values = module.weight.detach().numpy().T
            for row in range(len(model.prompts)):
                shares = definitions.contributions(coefficients[name][row, layer].tolist(), values)
                top = definitions.top_neurons(shares, 5)
                assert result.top_counts[row, layer].tolist() == [len(top & members) for members in sets.values()]
                expected = [sum(shares[neuron] for neuron in members) for members in sets.values()]
                np.testing.assert_allclose(result.sums[row, layer], expected, atol=1e-5)


def test_gold_tokens_are_those_of_the_answer_alone(model: Served) -> None:
    for row, given, prompt in zip(model.result.rows, THREE.rows, model.prompts, strict=True):
        assert list(row.gold_token_ids) == model.tokenizer.encode(given.answers[0], add_special_tokens=False).ids
        assert row.gold_is_joint
        assert (row.prompt_tokens, row.last_token_id) == (len(prompt), prompt[-1])
    apart = Group("", tuple(row._replace(separator="") for row in THREE.rows))
    assert analyze(model.bundle, apart, Analysis()).rows == model.result.rows, "nothing separates prompt and answer"


def test_r_is_the_first_gold_token_that_is_more_than_a_space() -> None:
    async def ask() -> None:
        text = Text.load(embedded.path("mt0") / "tokenizer.json", encoder_decoder=True)
        for label, answer, r in (("zh", "巴黎", 1), ("th", "ปารีส", 1), ("en", "Paris", 0)):
            (row,) = await encode_rows([Row(label, "?", (answer,))], None, text, 100)
            (spelled,) = await text.tokenize([answer], special_tokens=False)
            assert (row.r_index, spelled.tokens[0] == "▁") == (r, bool(r))
        await text.close()

    asyncio.run(ask())


def test_answers_are_scored_and_generated_as_transformers_does(model: Served) -> None:
    baseline = model.result.variants[0]
    for prompt, row, prediction in zip(model.prompts, model.result.rows, baseline.predictions, strict=True):
        expected = reference.gold_log_probability(model.transformers, prompt, row.gold_token_ids)
        assert prediction.gold_log_probability == pytest.approx(expected, abs=TOLERANCE)
        assert prediction.exact is False
        generated = model.transformers.model.generate(
            torch.tensor([prompt]), do_sample=False, num_beams=1, max_new_tokens=len(row.gold_token_ids) + 4
        )
        start, *greedy_tokens = generated[0].tolist()
        assert start == START
        assert list(prediction.token_ids) == [token for token in greedy_tokens if token != EOS]


@pytest.mark.parametrize("name", VARIANTS)
def test_interventions_do_what_hooks_in_transformers_do(model: Served, name: str) -> None:
    action, scope, where = VARIANTS[name]
    touched = COMPONENTS if where == "both" else (where,)
    of_type = {component: reference.of_type(model.activations[component], "partial_shared") for component in touched}
    variant = next(variant for variant in model.result.variants if variant.name == name)
    effects = []
    for index, prompt in enumerate(model.prompts):
        active = {component: model.activations[component][index] > 0 for component in touched}
        changes = [
            Change(
                neurons=members & ~active[component] if action == "convert" else members,
                of=ACTIONS[action][1],
                before_last=scope in (Scope.ALL_PROMPT_TOKENS, Scope.ALL_TOKENS),
                generated=scope in (Scope.LAST_PROMPT_TOKEN_AND_GENERATED, Scope.ALL_TOKENS),
                component=component,
            )
            for component, members in of_type.items()
        ]
        prediction, gold = variant.predictions[index], model.result.rows[index].gold_token_ids
        expected = reference.gold_log_probability(model.transformers, prompt, gold, changes)
        assert prediction.gold_log_probability == pytest.approx(expected, abs=TOLERANCE)
        assert_greedy(model, prompt, prediction, changes, len(gold) + 4)
        assert prediction.selected_neurons == sum(members.sum() for members in of_type.values())
        assert prediction.selected_active_neurons == sum(
            (members & active[component]).sum() for component, members in of_type.items()
        )
        effects.append(abs(expected - reference.gold_log_probability(model.transformers, prompt, gold)))
    assert max(effects) >= 100 * TOLERANCE


def assert_greedy(
    model: Served, prompt: Sequence[int], prediction: RowPrediction, changes: Sequence[Change], max_tokens: int
) -> None:
    """Every generated token is the most likely one after those before it; generation ends at EOS or `max_tokens`."""
    greedy_tokens = reference.logits(model.transformers, prompt, prediction.token_ids, changes).argmax(axis=-1).tolist()
    assert greedy_tokens[: len(prediction.token_ids)] == list(prediction.token_ids)
    assert len(prediction.token_ids) == max_tokens or greedy_tokens[-1] == EOS


def test_scopes_differ_where_they_should(model: Served) -> None:
    """Scopes differ in the encoder's prompt tokens and the decoder's answer tokens: it has only one prompt token."""
    of = {variant.name: variant.predictions for variant in model.result.variants}
    last, prompt, generated, everywhere = (str(scope) for scope in Scope)

    def same(one: str, other: str, where: str) -> bool:
        pairs = zip(of[f"add, {one}, {where}"], of[f"add, {other}, {where}"], strict=True)
        return all(a.gold_log_probability == pytest.approx(b.gold_log_probability, abs=TOLERANCE) for a, b in pairs)

    for where, alike, different in (("encoder", generated, prompt), ("decoder", prompt, generated)):
        assert same(last, alike, where)
        assert same(different, everywhere, where)
        assert not same(last, different, where)


def test_neurons_of_one_component_are_changed_in_that_component_only(model: Served) -> None:
    shape = model.activations["encoder"].shape[1:]
    chosen = np.random.default_rng(0).random(shape) < 0.3
    selection = ByNeuron("encoder", *shape, pack_bits(chosen))
    analysis = dataclasses.replace(
        EVERYTHING,
        variants=(
            Variant("everywhere", (Intervention(selection, Override(2.5)),)),
            Variant("elsewhere", (Intervention(selection, Override(2.5), component="decoder"),)),
        ),
    )
    baseline, everywhere, elsewhere = analyze(model.bundle, THREE, analysis).variants
    assert elsewhere.predictions == baseline.predictions
    for index, prompt in enumerate(model.prompts):
        changes = [Change(chosen, ACTIONS["override"][1], component="encoder")]
        gold = model.result.rows[index].gold_token_ids
        expected = reference.gold_log_probability(model.transformers, prompt, gold, changes)
        assert everywhere.predictions[index].gold_log_probability == pytest.approx(expected, abs=TOLERANCE)
        assert everywhere.predictions[index].selected_neurons == chosen.sum()


def test_controls_have_the_size_of_what_they_control_in_both_components(model: Served) -> None:
    control = Control(PARTIAL, ControlKind.RANDOM_ACTIVE, seed=5)
    analysis = dataclasses.replace(
        EVERYTHING,
        variants=tuple(
            Variant(name, (Intervention(selection, Deactivate(), scope=Scope.ALL_TOKENS),))
            for name, selection in (("type", PARTIAL), ("control", control))
        ),
    )
    baseline, of_type, of_control = analyze(model.bundle, THREE, analysis).variants
    for one, other, plain in zip(of_type.predictions, of_control.predictions, baseline.predictions, strict=True):
        assert other.selected_neurons == other.selected_active_neurons == one.selected_active_neurons > 0
        assert abs(other.gold_log_probability - one.gold_log_probability) > 100 * TOLERANCE  # type: ignore[operator]
        assert abs(other.gold_log_probability - plain.gold_log_probability) > 100 * TOLERANCE  # type: ignore[operator]


def test_one_row_has_activity_and_predictions_but_no_types(model: Served) -> None:
    result = analyze(model.bundle, Group("FR", THREE.rows[:1]), EVERYTHING)
    for component, whole in zip(result.components, model.result.components, strict=True):
        first = component.thresholds[0]
        assert (first.type_counts, first.type_map, first.contribution) == (None, b"", None)
        assert first.active_bitmaps == whole.thresholds[0].active_bitmaps[:1]
    assert_same(result.variants[0].predictions, model.result.variants[0].predictions[:1])


def test_token_ids_are_run_unchanged(model: Served) -> None:
    """No `</s>` is added: the caller of token ids decides where the prompt ends."""
    rows = tuple(row._replace(prompt=tuple(ids)) for row, ids in zip(THREE.rows, model.prompts, strict=True))
    result = analyze(model.bundle, Group("FR", rows), EVERYTHING)
    for component, whole in zip(result.components, model.result.components, strict=True):
        assert component.thresholds[0].type_map == whole.thresholds[0].type_map
    assert_same(result.variants[0].predictions, model.result.variants[0].predictions)
    assert result.rows == model.result.rows
    ended = tuple(row._replace(prompt=(*row.prompt, EOS)) for row in rows)
    prompts = [[*prompt, EOS] for prompt in model.prompts]
    activations = reference.taps(model.transformers, prompts)["encoder"]
    first = analyze(model.bundle, Group("FR", ended), EVERYTHING).components[0].thresholds[0]
    assert (unpack_codes(first.type_map, activations.shape[1:]) == definitions.type_codes(activations)).all()


def test_only_counts_are_returned_by_default(model: Served) -> None:
    result = analyze(model.bundle, THREE, Analysis())
    assert result.variants == ()
    for component, whole in zip(result.components, model.result.components, strict=True):
        assert component.thresholds[0].type_map == b""
        assert (component.thresholds[0].type_counts == whole.thresholds[0].type_counts).all()


def test_results_do_not_depend_on_concurrent_requests(model: Served) -> None:
    random = np.random.default_rng(0)
    labels = (("en", ("Paris",)), ("es", ("una ciudad grande",)), ("ru", ()), ("th", ("ก",)))
    requests: list[tuple[Group, Analysis]] = []
    for index, (scope, component) in enumerate(zip((*Scope, *Scope), ("", "encoder", "decoder") * 3, strict=False)):
        rows = tuple(
            Row(label, tuple(random.integers(4, 320, random.integers(1, 30)).tolist()), answers)
            for label, answers in labels[: 2 + index % 3]
        )
        control = Control(PARTIAL, ControlKind.RANDOM_ACTIVE, seed=index)
        everything = ByType(tuple(NeuronType))
        variants = (
            Variant("without", (Intervention(PARTIAL, Deactivate(), component=component, scope=scope),)),
            Variant("control", (Intervention(control, Add(0.5 * index), component=component, scope=scope),)),
            Variant("overflow", (Intervention(everything, Override(3e38), component=component, scope=scope),)),
        )
        requests.append((Group(f"{index}", rows), dataclasses.replace(EVERYTHING, variants=variants)))

    async def together(settings: Settings) -> list[GroupResult]:
        async with served(model.bundle, settings) as loaded:
            return await asyncio.gather(*(loaded.analyze(group, analysis) for group, analysis in requests))

    alone = [analyze(model.bundle, group, analysis) for group, analysis in requests]
    limits = Limits(tokens_per_row=64)
    for settings in (Settings(threads=1), Settings(threads=1, batch_tokens=64, limits=limits)):
        for got, expected in zip(asyncio.run(together(settings)), alone, strict=True):
            assert (got.group_id, got.rows) == (expected.group_id, expected.rows)
            for component, same in zip(got.components, expected.components, strict=True):
                for one, other in zip(component.thresholds, same.thresholds, strict=True):
                    assert one.type_map == other.type_map
                    assert one.active_bitmaps == other.active_bitmaps
            for variant, alike in zip(got.variants, expected.variants, strict=True):
                assert_same(variant.predictions, alike.predictions)
                assert {bool(prediction.error) for prediction in variant.predictions} == {variant.name == "overflow"}


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_baseline_that_is_not_finite_is_reported_by_component(component: str, model: Served, tmp_path: Path) -> None:
    bundle = tmp_path / "huge"
    shutil.copytree(model.bundle, bundle)
    graph = onnx.load(bundle / f"{component}.onnx", load_external_data=False)
    value_matrix = next(entry.value for entry in graph.metadata_props if entry.key == "value_matrix.0")
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == value_matrix)
    where = {entry.key: entry.value for entry in tensor.external_data}
    with (bundle / where["location"]).open("r+b") as weights:
        weights.seek(int(where["offset"]))
        weights.write(np.full(int(where["length"]) // 4, 6e37, np.float32).tobytes())
    norms = np.load(bundle / f"{component}.norms.npy")
    norms[0] = 6e37 * 24**0.5
    np.save(bundle / f"{component}.norms.npy", norms)
    write_manifest(bundle, dataclasses.replace(read_manifest(bundle), files=describe_files(bundle)))
    with pytest.raises(NotFinite, match=f"row 'en' gives numbers that are not finite in the {component} without any"):
        analyze(bundle, THREE, EVERYTHING)


def test_the_description_has_both_components_and_only_the_configured_limit(model: Served) -> None:
    description = Model.load(model.bundle, "mine", Settings(threads=1, limits=Limits(tokens_per_row=100))).description
    shapes = [(part.name, part.layers, part.neurons) for part in description.components]
    assert shapes == [("encoder", 3, 70), ("decoder", 2, 70)]
    assert description.limits.tokens_per_row == 100


def test_a_row_of_the_maximum_length_runs(model: Served) -> None:
    group = Group("", (Row("en", (5,) * 55, ("Paris",)), Row("es", (6,) * 54, ("ab",))))
    settings = Settings(threads=1, batch_tokens=64, limits=Limits(tokens_per_row=64))
    result = analyze(model.bundle, group, EVERYTHING, settings)
    assert [prediction.error for prediction in result.variants[0].predictions] == ["", ""]
