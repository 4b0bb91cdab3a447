"""The client against the real server: in this process over a bundle's folder, and in another one over TCP."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import neuroglot as ng

GROUP = ng.Group(
    {"en": "The capital of France is", "es": "La capital de Francia es", "th": "เมืองหลวงของฝรั่งเศสคือ"},
    answers={"en": "Paris", "es": ["París", "Paris"], "th": "ปารีส"},
    id="france",
)
TOO_LONG = ng.Group({"en": "short", "es": "x" * 20_000}, id="long")


def start_server(bundle: Path, address: str = "127.0.0.1:0") -> tuple[subprocess.Popen[str], str]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-m", "neuroglot", "serve", str(bundle), "--address", address, "--threads", "1"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in server.stdout:
        if line.startswith("listening on "):
            return server, line.removeprefix("listening on ").strip()
    raise AssertionError(f"the server ended with {server.wait()} before it listened")


def end(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.stdout.close()
    server.wait(20)


@pytest.fixture(scope="module")
def address(bloom_bundle: Path) -> Iterator[str]:
    server, address = start_server(bloom_bundle)
    yield address
    server.send_signal(signal.SIGTERM)
    server.stdout.close()
    assert server.wait(20) == 0


@pytest.fixture(scope="module")
def local(bloom_bundle: Path) -> Iterator[ng.Model]:
    with ng.connect(bloom_bundle) as client:
        yield client.model()


@pytest.fixture(scope="module")
def remote(address: str) -> Iterator[ng.Model]:
    with ng.connect(address) as client:
        yield client.model()


@pytest.fixture(scope="module", params=["local", "remote"])
def model(request: pytest.FixtureRequest) -> ng.Model:
    return request.getfixturevalue(request.param)


def log_probabilities(result: ng.GroupResult, variant: str) -> np.ndarray:
    return np.array([prediction.gold_log_probability for prediction in result.predictions[variant].values()])


def test_one_model_and_what_it_is(model: ng.Model, bloom_bundle: Path) -> None:
    manifest = json.loads((bloom_bundle / "manifest.json").read_text())
    assert model.name == bloom_bundle.name
    assert model.info.bundle_identity == manifest["identity"]
    assert model.info.source == manifest["source"]
    (component,) = model.info.components
    assert (component.name, component.layers, component.neurons) == ("decoder", 3, 96)


def test_tokens_are_the_tokenizers(model: ng.Model, bloom_bundle: Path) -> None:
    tokenizer = Tokenizer.from_file(str(bloom_bundle / "tokenizer.json"))
    texts = ["The capital of France is", "เมืองหลวง", "a\n b"]
    for text, tokens in zip(texts, model.tokenize(texts), strict=True):
        assert tokens == (tuple(tokenizer.encode(text).ids), tuple(tokenizer.encode(text).tokens))
    assert model.tokenize([]) == ()
    many = [f"{number}" * 50 for number in range(1500)]  # more than the server takes at once, in number and in bytes
    assert len(many) > model.info.limits.texts
    assert sum(map(len, many)) > model.info.limits.texts_bytes
    assert [tokens.ids for tokens in model.tokenize(many)] == [tuple(tokenizer.encode(text).ids) for text in many]


def test_rows_say_what_was_run(model: ng.Model) -> None:
    prompts = {"en": "The capital of France is", "th": "เมืองหลวง"}
    result = model.analyze(ng.Group(prompts, answers={"en": "Paris"}), generate=False)
    for row, tokens in zip(result.rows, model.tokenize(list(prompts.values())), strict=True):
        assert (row.prompt_tokens, row.last_token_id) == (len(tokens.ids), tokens.ids[-1])


def test_types_follow_from_who_is_active(model: ng.Model) -> None:
    result = model.analyze(GROUP, active=True)
    assert result.labels == GROUP.languages
    types = result.types
    en, es, th = (types.active(language) for language in GROUP.languages)
    assert types[ng.ALL_SHARED] == en & es & th
    assert types[ng.NON_ACTIVATED] == ~(en | es | th)
    assert types[ng.SPECIFIC] == (en - es - th) | (es - en - th) | (th - en - es)
    assert types[ng.PARTIAL_SHARED] == ((en & es) | (en & th) | (es & th)) - types[ng.ALL_SHARED]
    assert all(types[neuron_type] for neuron_type in ng.NeuronType), "a test on empty sets shows nothing"
    for neuron_type in ng.NeuronType:
        assert types.counts()[:, neuron_type].tolist() == types[neuron_type].counts().tolist()
    assert types.active_counts().tolist() == np.stack([s.counts() for s in (en, es, th)], axis=1).tolist()


def test_thresholds_nest(model: ng.Model) -> None:
    result = model.analyze(GROUP, thresholds=[0.0, 0.05], active=True)
    lower, higher = result.components["decoder"].thresholds
    assert (lower.threshold, higher.threshold) == (0.0, pytest.approx(0.05))
    for language in GROUP.languages:
        assert higher.active(language) < lower.active(language)


def test_contributions_add_up(model: ng.Model) -> None:
    contribution = model.analyze(GROUP, contribution=0.1).types.contribution
    assert contribution.top_k == math.ceil(0.1 * 96)
    assert (contribution.top_counts.sum(-1) == contribution.top_k).all()
    assert contribution.sums.sum(-1) == pytest.approx(np.ones((3, 3)), abs=1e-5)


def test_a_set_chosen_by_type_is_the_set_that_came_back(model: ng.Model, tmp_path: Path) -> None:
    types = model.analyze(GROUP).types
    shared, partial = types[ng.ALL_SHARED], types[ng.PARTIAL_SHARED]
    shared.save(tmp_path / "shared.neurons")
    result = model.analyze(
        GROUP,
        variants={
            "by type": ng.deactivate(ng.ALL_SHARED),
            "by set": ng.deactivate(shared),
            "by file": ng.deactivate(ng.NeuronSet.load(tmp_path / "shared.neurons")),
            "both by type": ng.deactivate([ng.ALL_SHARED, ng.PARTIAL_SHARED]),
            "both by set": ng.deactivate(shared | partial),
            "both by union": ng.deactivate(ng.union(ng.ALL_SHARED, partial)),
            "both one by one": [ng.deactivate(ng.ALL_SHARED), ng.deactivate(partial)],
            "by difference": ng.deactivate(ng.difference(shared | partial, ng.PARTIAL_SHARED)),
            "by intersection": ng.deactivate(ng.intersection(shared | partial, ng.ALL_SHARED)),
        },
    )
    for names, neurons in (
        (["by type", "by set", "by file", "by difference", "by intersection"], shared),
        (["both by type", "both by set", "both by union", "both one by one"], shared | partial),
    ):
        for name in names:
            assert {one.selected_neurons for one in result.predictions[name].values()} == {len(neurons)}, name
            assert log_probabilities(result, name) == pytest.approx(log_probabilities(result, names[0]), abs=1e-4)
    moved = np.abs(log_probabilities(result, "by type") - log_probabilities(result, "baseline"))
    assert moved.min() > 1e-3


def test_interventions_agree_where_they_mean_the_same(model: ng.Model) -> None:
    few = model.neuron_set([(0, 3), (1, 50), (2, 95)])
    result = model.analyze(
        GROUP,
        variants={
            "deactivate": ng.deactivate(few),
            "override 0": ng.override(few, 0),
            "scale 0": ng.scale(few, 0),
            "override 30": ng.override(few, 30),
            "scale 0 add 30": [ng.scale(few, 0), ng.override(few, 30)],
            "scale 1": ng.scale(few, 1),
            "add 0": ng.add(few, 0),
            "add 30": ng.add(few, 30),
            "convert 30": ng.convert(few, 30),
            "elsewhere": ng.deactivate(few, layers=[1], component="decoder"),
            "everywhere": ng.override(few, 30, scope=ng.Scope.ALL_TOKENS),
        },
    )
    for one, other in (
        ("deactivate", "override 0"),
        ("deactivate", "scale 0"),
        ("override 30", "scale 0 add 30"),
        ("scale 1", "baseline"),
        ("add 0", "baseline"),
    ):
        assert log_probabilities(result, one) == pytest.approx(log_probabilities(result, other), abs=1e-4), one
    for one, other in (("add 30", "baseline"), ("override 30", "baseline"), ("everywhere", "override 30")):
        assert np.abs(log_probabilities(result, one) - log_probabilities(result, other)).min() > 1e-2, one
    assert {one.selected_neurons for one in result.predictions["elsewhere"].values()} == {1}


def test_controls_have_the_size_of_what_they_control_and_can_be_drawn_again(model: ng.Model) -> None:
    variants = {
        "shared": ng.deactivate(ng.ALL_SHARED),
        "draw 0": ng.deactivate(ng.control(ng.ALL_SHARED)),
        "draw 0 again": ng.deactivate(ng.control(ng.ALL_SHARED)),
        "draw 1": ng.deactivate(ng.control(ng.ALL_SHARED, draw=1)),
    }
    result = model.analyze(GROUP, variants=variants)
    for language in GROUP.languages:
        expected = result.predictions["shared"][language].selected_active_neurons
        for name in list(variants)[1:]:
            assert result.predictions[name][language].selected_active_neurons == expected
    assert log_probabilities(result, "draw 0") == pytest.approx(log_probabilities(result, "draw 0 again"), abs=1e-5)
    assert log_probabilities(result, "draw 0") != pytest.approx(log_probabilities(result, "draw 1"), abs=1e-4)


def test_a_number_for_each_neuron(model: ng.Model) -> None:
    one, other = model.neuron_set([(0, 3)]), model.neuron_set([(2, 95)])
    both = one | other
    result = model.analyze(
        GROUP,
        variants={
            "apart": [ng.override(one, 30), ng.override(other, -20)],
            "together": ng.override(both, [30, -20]),
            "by name": ng.override(model.upload(both), {(2, 95): -20, (0, 3): 30}),
            "added apart": [ng.add(one, 30), ng.add(other, -20)],
            "added together": ng.add(both, np.array([30, -20])),
            "scaled apart": [ng.scale(one, 300), ng.scale(other, -200)],
            "scaled together": ng.scale(both, [300, -200]),
        },
    )
    for several, same in (("apart", "together"), ("apart", "by name")):
        assert log_probabilities(result, several) == pytest.approx(log_probabilities(result, same), abs=1e-4)
    for action in ("added", "scaled"):
        apart, together = (log_probabilities(result, f"{action} {how}") for how in ("apart", "together"))
        assert apart == pytest.approx(together, abs=1e-4)
        assert apart != pytest.approx(log_probabilities(result, "baseline"), abs=1e-3)


def last_activations(model: ng.Model) -> np.ndarray:
    """`[languages, layers, neurons]`, at the last token of each of the group's prompts."""
    return np.stack(
        [
            np.concatenate([layer.values for layer in model.capture(prompt, positions=[-1])])
            for prompt in GROUP.prompts.values()
        ]
    )


def test_captured_activations_are_those_that_types_are_made_of(model: ng.Model) -> None:
    types = model.analyze(GROUP, active=True).types
    for label, activations in zip(GROUP.languages, last_activations(model), strict=True):
        assert activations.shape == (3, 96)
        assert (activations > 0).tolist() == types.active(label).to_mask().tolist()


def test_a_capture_of_some(model: ng.Model) -> None:
    prompt = GROUP.prompts["th"]
    (tokens,) = model.tokenize([prompt])
    whole = {layer.layer: layer for layer in model.capture(prompt)}
    assert [layer.values.shape for layer in whole.values()] == [(len(tokens.ids), 96)] * 3
    (some,) = model.capture(tokens.ids, layers=[2], neurons=[90, 4], positions=[-1, 0], coefficients=True)
    assert set(some.positions) == {0, len(tokens.ids) - 1}
    assert some.values == pytest.approx(whole[2].values[list(some.positions)][:, [90, 4]], abs=1e-5)


def test_dead_neurons_are_inactive_at_every_position(model: ng.Model) -> None:
    types = model.analyze(GROUP, dead=True, active=True).types
    for index, (label, prompt) in enumerate(GROUP.prompts.items()):
        dead = np.stack([(layer.values <= 0).all(axis=0) for layer in model.capture(prompt)])
        assert types.dead(label).to_mask().tolist() == dead.tolist()
        assert types.dead_counts()[:, index].tolist() == dead.sum(axis=1).tolist()


def test_the_mean_of_the_active_rows(model: ng.Model) -> None:
    activations = last_activations(model)
    active = activations > 0
    layer, neuron = np.argwhere(active.sum(axis=0) == 2)[0].tolist()
    mean = activations[active[:, layer, neuron], layer, neuron].mean()
    chosen = model.neuron_set([(layer, neuron)])
    result = model.analyze(
        GROUP,
        variants={
            "mean": ng.convert(chosen, mean_of_active=True),
            "value": ng.convert(chosen, float(mean)),
            "other": ng.convert(chosen, float(mean) + 1),
        },
    )
    assert log_probabilities(result, "mean") == pytest.approx(log_probabilities(result, "value"), abs=1e-4)
    (inactive,) = np.flatnonzero(~active[:, layer, neuron])
    assert log_probabilities(result, "mean")[inactive] != log_probabilities(result, "other")[inactive]


def test_top_contributors_are_the_leading_ones(model: ng.Model) -> None:
    options = ng.ContributionOptions(top_count=4, leading=4)
    leading = model.analyze(GROUP, contribution=options).types.contribution.leading
    assert leading.values.shape == (3, 3, 4)
    assert (np.diff(leading.values) <= 0).all()
    variants = {"top": ng.deactivate(ng.top_contribution(count=4))} | {
        label: ng.deactivate(
            model.neuron_set((layer, int(neuron)) for layer in range(3) for neuron in leading.neurons[index, layer])
        )
        for index, label in enumerate(GROUP.languages)
    }
    result = model.analyze(GROUP, variants=variants)
    for index, label in enumerate(GROUP.languages):
        assert log_probabilities(result, "top")[index] == pytest.approx(
            log_probabilities(result, label)[index], abs=1e-4
        )
        assert result.predictions["top"][label].selected_neurons == 12


def test_a_control_of_the_same_mass(model: ng.Model) -> None:
    top = ng.top_contribution(count=3)
    result = model.analyze(GROUP, variants={"mass": ng.deactivate(ng.control(top, "random_mass"))})
    assert all(one.selected_neurons > 9 for one in result.predictions["mass"].values()), "of smaller ones, more"


def test_effective_scores(model: ng.Model) -> None:
    group = ng.Group(GROUP.prompts, GROUP.answers, distractors={"en": "London", "es": "Londres", "th": "ลอนดอน"})
    for target in ng.ScoreTarget:
        types = model.analyze(group, effective_score=ng.EffectiveScoreOptions(target, leading=2)).types
        scores = types.effective_score
        assert scores.leading.values[..., 0] == pytest.approx(scores.maxima.max(axis=-1))
        filled = np.broadcast_to(types.counts() > 0, scores.sums.shape)
        assert (scores.minima[filled] <= scores.means(types.counts())[filled] + 1e-6).all()
        assert (scores.means(types.counts())[filled] <= scores.maxima[filled] + 1e-6).all()
        assert not scores.sums[~filled].any()


def test_choices(model: ng.Model) -> None:
    choices = {"en": ["London", "Paris"], "th": ["ปารีส", "ลอนดอน", "โรม"]}
    predictions = model.analyze(ng.Group(GROUP.prompts, GROUP.answers, choices=choices)).predictions["baseline"]
    for label, index in (("en", 1), ("th", 0)):
        chosen = predictions[label]
        assert len(chosen.choice_log_probabilities) == len(choices[label])
        assert chosen.choice_log_probabilities[index] == pytest.approx(chosen.gold_log_probability, abs=1e-4)
        assert chosen.choice == int(np.argmax(chosen.choice_log_probabilities))
    assert predictions["es"].choice is None


def test_text_token_by_token(model: ng.Model) -> None:
    few = model.neuron_set([(0, 3), (1, 50), (2, 95)])
    group = ng.Group({"en": "The capital of"})
    variants = {"scaled": ng.scale(few, -30, scope="last_prompt_token_and_generated")}
    result = model.analyze(group, variants=variants, max_tokens=6, predict=True)
    for variant, interventions in (("baseline", ()), ("scaled", variants["scaled"])):
        tokens = list(model.generate(group.prompts["en"], interventions, max_tokens=6))
        prediction = result.predictions[variant]["en"]
        assert tuple(token.token_id for token in tokens) == prediction.token_ids
        assert "".join(token.text for token in tokens).strip() == prediction.text
        assert all(token.log_probability < 0 for token in tokens)


def test_both_ways_to_a_bundle_give_the_same(local: ng.Model, remote: ng.Model) -> None:
    asked = {"variants": {"w/o": ng.deactivate(ng.ALL_SHARED)}, "active": True, "contribution": True}
    here, there = local.analyze(GROUP, **asked), remote.analyze(GROUP, **asked)
    assert here.components["decoder"].thresholds[0].codes().tolist() == there.types.codes().tolist()
    for variant in ("baseline", "w/o"):
        assert log_probabilities(here, variant) == pytest.approx(log_probabilities(there, variant), abs=1e-5)
        assert [p.text for p in here.predictions[variant].values()] == [
            p.text for p in there.predictions[variant].values()
        ]
    assert here.provenance.bundle_identity == there.provenance.bundle_identity == local.info.bundle_identity


def test_an_answer_says_what_made_it(model: ng.Model) -> None:
    provenance = model.analyze(ng.Group({"en": "Never asked before", "de": "Nie zuvor gefragt"})).provenance
    assert provenance.model == model.name
    assert provenance.source == model.info.source
    assert provenance.server_version
    assert provenance.compute_time_ms > 0
    assert model.analyze(GROUP).types[ng.SPECIFIC].source == model.info.source


def test_many_groups_with_failures_in_the_middle(model: ng.Model) -> None:
    def groups() -> Iterator[ng.Group]:
        for number in range(60):
            yield TOO_LONG if number == 30 else ng.Group({"en": f"{number} and", "de": f"{number} und"}, id=str(number))

    answers = {answer.group_id: answer for answer in model.analyze_many(groups()) if isinstance(answer, ng.GroupResult)}
    failures = [answer for answer in model.analyze_many(groups()) if isinstance(answer, ng.GroupFailure)]
    assert set(answers) == {str(number) for number in range(60) if number != 30}
    assert [failure.group_id for failure in failures] == ["long"]
    assert isinstance(failures[0].error, ng.InvalidRequestError)
    assert [violation.field for violation in failures[0].error.violations] == ["group.rows[1].text"]
    alone = model.analyze(ng.Group({"en": "17 and", "de": "17 und"}, id="17"))
    assert alone.types.codes().tolist() == answers["17"].types.codes().tolist()


def test_many_groups_can_be_left_at_any_time(model: ng.Model) -> None:
    endless = (ng.Group({"en": f"{number} and", "de": f"{number} und"}) for number in itertools.count())
    answers = model.analyze_many(endless)
    assert len(list(itertools.islice(answers, 40))) == 40
    answers.close()
    assert model.analyze(GROUP).group_id == "france", "and the server goes on"


def test_one_language_has_predictions_and_no_types(model: ng.Model) -> None:
    result = model.analyze(ng.Group({"en": "The capital is"}, answers={"en": "Paris"}), active=True)
    assert result.predictions["baseline"]["en"].gold_log_probability < 0
    assert result.types.active("en").counts().tolist() == result.types.active_counts()[:, 0].tolist()
    with pytest.raises(ng.NotInResultError, match="one row only"):
        result.types.counts()


@pytest.mark.parametrize(
    ("arguments", "field", "said"),
    [
        ({"group": TOO_LONG}, "group.rows[1].text", "tokens"),
        ({"variants": {"v": ng.deactivate(ng.SPECIFIC, layers=[7])}}, "variants[0].interventions[0].layers", "0 to 2"),
        ({"variants": {"v": ng.deactivate(ng.SPECIFIC, component="encoder")}}, "component", "decoder"),
        ({"variants": {"baseline": ng.deactivate(ng.SPECIFIC)}}, "variants[0].name", "choose another"),
        ({"variants": {"v": ng.deactivate(ng.SPECIFIC)}, "predict": False}, "analysis.prediction", "missing"),
        ({"thresholds": [0.0, math.nan]}, "analysis.thresholds[1]", "nan"),
        ({"group": ng.Group({"en": "one"}), "variants": {"v": ng.deactivate(ng.SPECIFIC)}}, "selection", "row"),
    ],
)
def test_what_the_server_refuses_is_said_field_by_field(
    model: ng.Model, arguments: dict[str, object], field: str, said: str
) -> None:
    with pytest.raises(ng.InvalidRequestError) as raised:
        model.analyze(**{"group": GROUP, **arguments})
    (violation,) = raised.value.violations
    assert field in violation.field
    assert said in violation.description
    assert violation.description in str(raised.value)
    assert str(raised.value).count(violation.description) == 1


def test_an_unknown_model(address: str, bloom_bundle: Path) -> None:
    with ng.connect(address) as client, pytest.raises(ng.NotFoundError, match=f"'other'.*{bloom_bundle.name}"):
        client.model("other")


def damage(bundle: Path, how: str) -> None:
    manifest = bundle / "manifest.json"
    match how:
        case "half written":
            manifest.unlink()
        case "of a newer format":
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 99}))
        case "with a changed graph":
            graph = bundle / "decoder.onnx"
            graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")
        case "without its weights":
            (bundle / "weights.data").unlink()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("half written", "has no manifest.json"),
        ("of a newer format", "has bundle format 99, this neuroglot reads format"),
        ("with a changed graph", "decoder.onnx was changed"),
        ("without its weights", "weights.data is missing"),
    ],
)
def test_a_bundle(bloom_bundle: Path, tmp_path: Path, how: str, said: str) -> None:
    bundle = shutil.copytree(bloom_bundle, tmp_path / "damaged")
    damage(bundle, how)
    with pytest.raises(ng.BundleError, match=said):
        ng.connect(bundle)


def test_a_server_that_is_killed_and_does_not_come_back(bloom_bundle: Path) -> None:
    server, address = start_server(bloom_bundle)
    try:
        with ng.connect(address, retry_seconds=0) as client:
            endless = (ng.Group({"en": f"{number} and", "de": f"{number} und"}) for number in itertools.count())
            answers = client.model().analyze_many(endless)
            assert len(list(itertools.islice(answers, 5))) == 5
            server.kill()
            with pytest.raises(ng.UnavailableError, match=f"no answer from {address}"):
                list(answers)
    finally:
        end(server)


def test_a_server_that_is_killed_and_comes_back(bloom_bundle: Path) -> None:
    """Twice in the middle: by SIGKILL, and by SIGTERM, which lets what runs end and refuses what waits."""

    def groups() -> Iterator[ng.Group]:
        for number in range(90):
            prompts = {"en": f"{number} and {number + 1} is", "de": f"{number} und {number + 1} ist"}
            yield ng.Group(prompts, answers=dict.fromkeys(prompts, str(number)))

    server, address = start_server(bloom_bundle)
    blows = {20: signal.SIGKILL, 60: signal.SIGTERM}
    retried: list[str] = []
    answered = []
    try:
        with ng.connect(address, on_retry=lambda error, _: retried.append(error.code)) as client:
            model = client.model()
            uploaded = model.upload(model.neuron_set([(0, 3), (1, 50), (2, 95)]))
            asked = {"variants": {"without": ng.override(uploaded, [5, 4, 3])}}
            undisturbed = {answer.group_id: answer for answer in model.analyze_many(groups(), **asked)}
            for answer in model.analyze_many(groups(), in_flight=16, **asked):
                answered.append(answer)
                if blow := blows.get(len(answered)):
                    server.send_signal(blow)
                    server.wait(20)
                    end(server)
                    server, _ = start_server(bloom_bundle, address)
    finally:
        end(server)
    assert retried
    assert sorted(int(answer.group_id) for answer in answered) == list(range(90))
    for answer in answered:
        expected = undisturbed[answer.group_id]
        assert answer.types.codes().tolist() == expected.types.codes().tolist()
        for variant in ("baseline", "without"):
            assert log_probabilities(answer, variant) == pytest.approx(log_probabilities(expected, variant), abs=1e-4)
