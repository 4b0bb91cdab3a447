"""Arguments of the wrong kind, over the whole API: each is refused with one sentence, before anything is sent."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import neuroglot as ng

SET = ng.NeuronSet.from_indices([(0, 1), (2, 4)], component="decoder", layers=3, neurons=96)
GROUP = ng.Group({"en": "Hello", "de": "Hallo"}, answers={"en": "a", "de": "b"}, id="g")


@pytest.fixture(scope="module")
def client(bloom_bundle: Path) -> Iterator[ng.Client]:
    with ng.connect(bloom_bundle) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: ng.Client) -> ng.Model:
    return client.model()


@pytest.fixture(scope="module")
def result(model: ng.Model) -> ng.GroupResult:
    variants = {"without": ng.deactivate(ng.SPECIFIC), "set": [ng.override(SET, [1, 2])]}
    leading = ng.ContributionOptions(leading=2)
    return model.analyze(GROUP, variants=variants, active=True, contribution=leading, effective_score=True, dead=True)


OFFLINE: list[tuple[Callable[[], object], str]] = [
    # groups
    (lambda: ng.Group("x"), "prompts of the group must be a mapping from language to text, .*, not 'x'"),
    (lambda: ng.Group(["x"]), r"prompts of the group must be a mapping .*, not \['x'\]"),
    (lambda: ng.Group(None), "prompts of the group must be a mapping .*, not None"),
    (lambda: ng.Group({1: "x"}), "a key of prompts of the group must be a string, not 1"),
    (lambda: ng.Group({"en": 7}), "the prompt of 'en' must be text or a list of token ids, not 7"),
    (lambda: ng.Group({"en": b"x"}), "the prompt of 'en' must be text or a list of token ids, not b'x'"),
    (lambda: ng.Group({"en": [0.5]}), r"the prompt of 'en'\[0\] must be an integer, not 0.5"),
    (lambda: ng.Group({"en": ["x"]}), r"the prompt of 'en'\[0\] must be an integer, not 'x'"),
    (lambda: ng.Group({"en": []}), "the prompt of 'en' is empty"),
    (lambda: ng.Group({"en": [-1]}), "the prompt of 'en' has the token id -1: ids are 0 to"),
    (
        lambda: ng.Group({"en": "\ud800"}),
        r"the prompt of 'en' must be Unicode text \(character 0 is a lone surrogate\)",
    ),
    (lambda: ng.Group({"en": "x"}, "y"), "answers of the group must be a mapping .*, not 'y'"),
    (lambda: ng.Group({"en": "x"}, {"en": 3}), "an answer of 'en' must be a word or several, not 3"),
    (lambda: ng.Group({"en": "x"}, {"en": [3]}), "an answer of 'en' must be a string, not 3"),
    (lambda: ng.Group({"en": "x"}, id=3), "the id of a group must be a string, not 3"),
    (lambda: ng.Group({"en": "x"}, cluster=3), "the cluster of the group must be a string, not 3"),
    (lambda: ng.Group({"en": "x"}, separators=" "), "separators of the group must be a mapping"),
    (lambda: ng.Group({"en": "x"}, separators={"en": None}), "the separator of 'en' must be ' ' or '', not None"),
    (lambda: ng.Group({"en": "x"}, choices=["a"]), "choices of the group must be a mapping"),
    (lambda: ng.Group({"en": "x"}, choices={"en": [1]}), r"the choices of 'en'\[0\] must be a string, not 1"),
    (lambda: ng.Group({"en": "x"}, distractors={"en": ["a"]}), "the distractor of 'en' must be a string"),
    # selections and interventions
    (lambda: ng.deactivate(None), "None selects no neurons"),
    (lambda: ng.deactivate(np.int64(3)), "selects no neurons"),
    (lambda: ng.deactivate([SET, SET]), r"a list selects neurons by type only: combine selections with union\(a, b\)"),
    (lambda: ng.deactivate(SET, layers=3), "layers must be a list of layers .*, not 3"),
    (lambda: ng.deactivate(SET, layers="0"), "layers must be a list of layers .*, not '0'"),
    (lambda: ng.deactivate(SET, layers=[0.5]), r"layers\[0\] must be an integer, not 0.5"),
    (lambda: ng.deactivate(SET, component=1), "component must be 'decoder' or 'encoder', or None, not 1"),
    (lambda: ng.deactivate(SET, scope=["all_tokens"]), r"unknown scope \['all_tokens'\]: expected one of"),
    (lambda: ng.convert(SET, "mean"), "the value of an intervention must be a finite 32-bit float, not 'mean'"),
    (lambda: ng.convert(SET, mean_of_active="yes"), "mean_of_active must be True or False, not 'yes'"),
    (lambda: ng.override(SET, "0.5"), "the value of an intervention must be a number, an array .*, not '0.5'"),
    (lambda: ng.override(SET, None), "the value of an intervention must be a number, .*, not None"),
    (lambda: ng.override(SET, [1, "x"]), "the value of an intervention must be a number, an array"),
    (lambda: ng.override(SET, [[1], [1, 2]]), "the value of an intervention must be a number, an array"),
    (lambda: ng.override(SET, {0: 1.0, "x": 2.0}), "has none for .0, 1."),
    (lambda: ng.override(SET, dict.fromkeys(SET, "x")), "the value of an intervention must be a finite .*, not 'x'"),
    (lambda: ng.scale(SET, True), "the factor of an intervention must be a number, .*, not True"),
    (lambda: ng.add(SET, 1j), "the value of an intervention must be a number, .*, not 1j"),
    (lambda: ng.control(SET, draw="0"), "the draw of a control must be an integer from 0 .*, not '0'"),
    (lambda: ng.control(SET, seed=0.5), "the seed of a control must be an integer from 0 .*, not 0.5"),
    (lambda: ng.control(SET, kind=1), "unknown kind of control 1: expected one of random, "),
    (lambda: ng.top_contribution("5%"), "the share of top contributors must be a number above 0 .*, not '5%'"),
    (lambda: ng.top_contribution(count=2.5), "the count of top contributors must be an integer from 1 .*, not 2.5"),
    (lambda: ng.union([SET], 3), "a list selects neurons by type only"),
    (lambda: ng.intersection(3), "3 selects no neurons"),
    (lambda: ng.difference(ng.SPECIFIC, 3), "3 selects no neurons"),
    (lambda: ng.Uploaded("u", "x"), "the uploaded set must be a NeuronSet, not 'x'"),
    (lambda: ng.Intervention("all-shared", "x", None, None, ng.Scope.ALL_TOKENS), "are not a selection and an action"),
    # sets of neurons
    (lambda: ng.NeuronSet("decoder", "3", 96, SET.bits), "layers of a neuron set must be an integer, not '3'"),
    (lambda: ng.NeuronSet(None, 3, 96, SET.bits), "the component of a neuron set must be a string, not None"),
    (lambda: ng.NeuronSet("decoder", 3, 96, [0]), r"bits of a neuron set must be packed bytes, not \[0\]"),
    (lambda: SET.bound_to(None), "the source of a neuron set must be a string, not None"),
    (lambda: ng.NeuronSet.from_mask([[True]], component="decoder"), r"mask must be a bool array .*, not \[\[True\]\]"),
    (lambda: ng.NeuronSet.from_indices([1], component="d", layers=3, neurons=5), r"indices\[0\] must be a pair"),
    (
        lambda: ng.NeuronSet.from_indices([(0, 1, 2)], component="d", layers=3, neurons=5),
        r"indices\[0\] must be a pair",
    ),
    (
        lambda: ng.NeuronSet.from_indices([(0, 0.5)], component="d", layers=3, neurons=5),
        r"indices\[0\]\[1\] must be an",
    ),
    (lambda: ng.NeuronSet.from_indices([(0, 1)], component="d", layers="3", neurons=5), "layers must be an integer"),
    (lambda: "x" in SET, r"neuron must be a pair \(layer, neuron\) of integers, \(0, 17\), not 'x'"),
    # options
    (lambda: ng.ContributionOptions("0.1"), "top_fraction must be a share of a layer's neurons, .*, not '0.1'"),
    (lambda: ng.ContributionOptions(top_count=2.5), "top_count must be an integer of 1 or more, not 2.5"),
    (lambda: ng.ContributionOptions(raw=1), "raw must be True or False, not 1"),
    (lambda: ng.EffectiveScoreOptions(leading="3"), "leading must be an integer of 0 or more, not '3'"),
    (lambda: ng.EffectiveScoreOptions([]), r"unknown target of effective scores \[\]: expected one of"),
    # connecting
    (lambda: ng.connect(3), "target must be an address, .*, or the folder of a bundle, not 3"),
    (lambda: ng.connect(None), "target must be an address, .*, or the folder of a bundle, not None"),
    (lambda: ng.connect("localhost:1", timeout="10"), "timeout must be a number of seconds .*, not '10'"),
    (lambda: ng.connect("localhost:1", retry_seconds=-1), "retry_seconds must be a number of seconds .*, not -1"),
    (lambda: ng.connect("localhost:1", retry_seconds=None), "retry_seconds must be a number of seconds .*, not None"),
    (lambda: ng.connect("localhost:1", on_retry=3), "on_retry must be a function .*, not 3"),
    (lambda: ng.connect("localhost:1", token=b"x"), "token must be a string, or None, not b'x'"),
    (lambda: ng.connect("localhost:1", key=3), "key must be a path: .*, not 3"),
    # tasks
    (lambda: ng.tasks.find_task(3), "name must be the name of a task, 'capitals', not 3"),
    (lambda: ng.tasks.find_task("capitals", {"shots": 2}), r"options must be .*TaskOptions\(...\), not {'shots': 2}"),
    (lambda: ng.tasks.capitals(templates="0"), "templates must be a list of numbers, .*, not '0'"),
    (lambda: ng.tasks.capitals(shots="2"), "shots must be an integer of 0 or more, not '2'"),
    (lambda: ng.tasks.capitals(seed="2"), "seed must be an integer, not '2'"),
    (lambda: ng.tasks.capitals_edit(direction=3), "direction must be a direction, 'en-all', not 3"),
    (lambda: ng.tasks.capitals().choose("en"), "languages must be a list of languages, .*, not 'en'"),
    (lambda: ng.tasks.jsonl(3), "os.PathLike"),
    (lambda: ng.analyses.merge("results", "out"), "folders must be a list of the folders of the parts, not 'results'"),
    (lambda: ng.analyses.merge(["a"], 3), "out must be a path: .*, not 3"),
]


@pytest.mark.parametrize(("call", "message"), OFFLINE, ids=[message[:60] for _, message in OFFLINE])
def test_what_is_made_without_a_server(call: Callable[[], object], message: str) -> None:
    check(call, message)


ONLINE: list[tuple[Callable[[ng.Model], object], str]] = [
    (lambda model: model.probe(3), "takes 1 positional argument"),
    (lambda model: model.check_probe("probe"), "probe must be a Probe, .*, not 'probe'"),
    (lambda model: model.tokenize("ab"), "texts must be a list of strings, .*, not 'ab'"),
    (lambda model: model.tokenize([1]), r"texts\[0\] must be a string, not 1"),
    (lambda model: model.tokenize(None), "texts must be a list of strings, .*, not None"),
    (lambda model: model.tokenize(["a"], special_tokens="no"), "special_tokens must be True or False, not 'no'"),
    (lambda model: model.neuron_set("01"), "indices must be pairs .*, not '01'"),
    (lambda model: model.neuron_set([(0, 1)], 0), "component must be a string, or None, not 0"),
    (lambda model: model.upload([(0, 1)]), r"neurons must be a neuroglot.NeuronSet, not \[\(0, 1\)\]"),
    (lambda model: model.analyze({"en": "x"}), "group must be a neuroglot.Group, .*, not {'en': 'x'}"),
    (lambda model: model.analyze([GROUP]), "group must be a neuroglot.Group"),
    (lambda model: model.analyze(GROUP, variants=[ng.deactivate(SET)]), "variants must be a mapping from a name .*not"),
    (lambda model: model.analyze(GROUP, variants=ng.deactivate(SET)), "variants must be a mapping from a name .*not"),
    (lambda model: model.analyze(GROUP, variants={1: ng.deactivate(SET)}), "a key of variants must be a string, not 1"),
    (lambda model: model.analyze(GROUP, variants={"v": "all-shared"}), "variant 'v' must be an intervention, .*"),
    (lambda model: model.analyze(GROUP, thresholds=0.5), "thresholds must be a list of numbers, .*, not 0.5"),
    (lambda model: model.analyze(GROUP, thresholds=["0"]), r"thresholds\[0\] must be a number, not '0'"),
    (lambda model: model.analyze(GROUP, type_map="yes"), "type_map must be True or False, not 'yes'"),
    (lambda model: model.analyze(GROUP, active=None), "active must be True or False, not None"),
    (lambda model: model.analyze(GROUP, dead=2), "dead must be True or False, not 2"),
    (lambda model: model.analyze(GROUP, generate="no"), "generate must be True or False, not 'no'"),
    (lambda model: model.analyze(GROUP, predict="no"), "predict must be True or False, not 'no'"),
    (lambda model: model.analyze(GROUP, contribution="0.1"), "contribution must be True, a share .*, not '0.1'"),
    (lambda model: model.analyze(GROUP, contribution=None), "contribution must be True, a share .*, not None"),
    (
        lambda model: model.analyze(GROUP, effective_score="all_gold_tokens"),
        "effective_score must be True or Effective",
    ),
    (lambda model: model.analyze(GROUP, max_tokens=2.5), "max_tokens must be an integer of 0 or more, not 2.5"),
    (lambda model: model.analyze(GROUP, max_tokens=-1), "max_tokens must be an integer of 0 or more, not -1"),
    (lambda model: model.analyze(GROUP, priority=1), "unknown priority 1: expected one of bulk, interactive"),
    (lambda model: model.analyze(GROUP, timeout="1"), "timeout must be a number of seconds .*, not '1'"),
    (lambda model: model.analyze(GROUP, timeout=-1), "timeout must be a number of seconds .*, not -1"),
    (lambda model: model.analyze(GROUP, "v"), "positional argument"),
    (lambda model: model.analyze(GROUP, threshold=0.5), "unexpected keyword argument 'threshold'"),
    (lambda model: model.analyze_many(GROUP), r"groups must be a list or another iterable of groups, not Group\("),
    (lambda model: model.analyze_many({"en": "x"}), "groups must be a list or another iterable of groups, not {"),
    (lambda model: next(model.analyze_many(["x"])), r"groups\[0\] must be a neuroglot.Group, .*, not 'x'"),
    (lambda model: model.analyze_many([], in_flight="2"), "in_flight must be an integer of 1 or more, not '2'"),
    (lambda model: model.analyze_many([], group_timeout="2"), "group_timeout must be a number of seconds .*, not '2'"),
    (lambda model: model.capture(3), "the prompt must be text or a list of token ids, not 3"),
    (lambda model: model.capture(["x"]), r"the prompt\[0\] must be an integer, not 'x'"),
    (lambda model: model.capture("x", layers=0), "layers must be a list of integers, .*, not 0"),
    (lambda model: model.capture("x", neurons="0"), "neurons must be a list of integers, .*, not '0'"),
    (lambda model: model.capture("x", positions=-1), "positions must be a list of integers, .*, not -1"),
    (lambda model: model.capture("x", positions=[2**40]), "position 1099511627776 does not exist"),
    (lambda model: model.capture("x", coefficients=0), "coefficients must be True or False, not 0"),
    (lambda model: model.generate(None), "the prompt must be text or a list of token ids, not None"),
    (lambda model: model.generate("x", "all-shared"), "what to generate under must be an intervention, .*'all-shared'"),
    (lambda model: model.generate("x", threshold="0"), "threshold must be a number, not '0'"),
    (lambda model: model.generate("x", max_tokens="3"), "max_tokens must be an integer of 0 or more, not '3'"),
    (lambda model: model.generate("x", past_newlines=1), "past_newlines must be True or False, not 1"),
    (lambda _: ng.analyses.run("bloom", "capitals"), r"model must be a Model, client.model\('NAME'\), not 'bloom'"),
    (lambda model: ng.analyses.run(model, 3), "task must be a Task, .*, or its name, 'capitals', not 3"),
    (lambda model: ng.analyses.run(model, "capital"), "there is no task 'capital': the tasks are capitals, "),
    (lambda model: ng.analyses.run(model, "xnli"), "task 'xnli' needs files"),
    (lambda model: ng.analyses.run(model, "capitals", 3), "out must be a path: .*, not 3"),
    (lambda model: ng.analyses.run(model, "capitals", limit="3"), "limit must be an integer of 1 or more, not '3'"),
    (lambda model: ng.analyses.run(model, "capitals", languages="en"), "languages must be a list of languages"),
    (
        lambda model: ng.analyses.run(model, "capitals", analyses="accuracy"),
        "analyses must be a list of names, .*'accur",
    ),
    (lambda model: ng.analyses.run(model, "capitals", controls="random"), "controls must be a list of random, "),
    (lambda model: ng.analyses.run(model, "capitals", draws="3"), "draws must be an integer, not '3'"),
    (lambda model: ng.analyses.run(model, "capitals", thresholds=0.0), "thresholds must be a list of numbers"),
    (lambda model: ng.analyses.run(model, "capitals", subsets=["en"]), r"subsets\[0\] must be a list of languages"),
    (lambda model: ng.analyses.run(model, "capitals", convert_to="men"), "convert_to must be a finite number, 'mean'"),
    (lambda model: ng.analyses.run(model, "capitals", shard=1), "shard must be a part of a run, '1/4', not 1"),
    (lambda model: ng.analyses.run(model, "capitals", resume="yes"), "resume must be True or False, not 'yes'"),
]


@pytest.mark.parametrize(("call", "message"), ONLINE, ids=[message[:60] for _, message in ONLINE])
def test_what_is_asked_of_a_model(model: ng.Model, call: Callable[[ng.Model], object], message: str) -> None:
    check(lambda: call(model), message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda client: client.model(3), "name must be the name of a model, a string, not 3"),
        (lambda client: client.load(3), "bundle must be the path of a bundle on the server, a string, not 3"),
        (lambda client: client.load("b", None), "name must be the name of a model, a string, not None"),
        (lambda client: client.unload(None), "name must be the name of a model, a string, not None"),
    ],
)
def test_what_is_asked_of_a_client(client: ng.Client, call: Callable[[ng.Client], object], message: str) -> None:
    check(lambda: call(client), message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda result: result.types[7], "7 is no type of neuron: the types are non-activated, "),
        (lambda result: result.types["shared"], "'shared' is no type of neuron"),
        (lambda result: result.types.active(["en"]), r"there is no row \['en'\] in this result: it has en, de"),
        (lambda result: result.types.contribution.means(3), r"counts must be an array of shape \[3, 4\], .*, not 3"),
        (lambda result: result.components["encoder"], "there is no component 'encoder' in this result"),
        (lambda result: result.predictions["wihtout"], "there is no variant 'wihtout' in this result"),
        (lambda _: ng.GroupResult.from_bytes("x"), "data must be the bytes that .* wrote, not 'x'"),
    ],
)
def test_what_is_asked_of_a_result(
    result: ng.GroupResult, call: Callable[[ng.GroupResult], object], message: str
) -> None:
    check(lambda: call(result), message)


def check(call: Callable[[], object], message: str) -> None:
    """One of our own sentences, or of Python's: on one line, short, and found before anything is sent."""
    with pytest.raises((TypeError, ValueError, ng.NeuroglotError), match=message) as raised:
        call()
    assert not isinstance(raised.value, ng.ServerError)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_the_message_about_a_huge_value_is_short() -> None:
    check(
        lambda: ng.Group({"en": "x"}, {"en": "y"}, id=["z" * 10_000_000] * 1000), "the id of a group must be a string"
    )
    check(lambda: ng.top_contribution(np.arange(5000).reshape(50, 100)), "the share of top contributors must be")


def test_numpys_numbers_are_numbers(model: ng.Model) -> None:
    variants = {
        "scaled": ng.scale(SET, np.float16(0.5), layers=np.arange(2)),
        "random": ng.deactivate(ng.control(SET, draw=np.int64(1), seed=np.uint8(2))),
        "top": ng.deactivate(ng.top_contribution(np.float32(0.5))),
        "several": ng.add(
            ng.NeuronSet.from_indices(np.array(list(SET)), component="decoder", layers=3, neurons=96), np.ones(2)
        ),
    }
    result = model.analyze(
        ng.Group({"en": np.array([5, 6], np.int32), "de": np.str_("Hallo")}),
        variants=variants,
        thresholds=np.array([0, 0.5], np.float32),
        active=np.True_,
        contribution=np.float32(0.25),
        max_tokens=np.int64(1),
        timeout=np.float64(60),
    )
    assert list(result.predictions) == ["baseline", *variants]
    assert result.rows[0].prompt_tokens == 2
    (layer,) = model.capture(np.array([5, 6]), layers=np.array([1]), positions=np.array([-1]), neurons=np.array([3, 2]))
    assert layer.values.shape == (1, 2)
    assert len(list(model.generate(np.array([5, 6]), max_tokens=np.int8(2)))) <= 2
    assert model.tokenize(np.array(["ab"])) == model.tokenize(("ab",))
    assert result.types["all-shared"] == result.types[ng.ALL_SHARED]


def test_every_function_of_the_api_has_a_row() -> None:
    """A new function or method belongs in the tables above."""
    source = Path(__file__).read_text(encoding="utf-8")
    functions = {f"ng.{name}" for name in ng.__all__ if inspect.isfunction(getattr(ng, name))}
    methods = {f"model.{name}" for name, _ in inspect.getmembers(ng.Model, inspect.isfunction) if name[0] != "_"}
    assert [name for name in sorted(functions | methods) if f"{name}(" not in source] == []


def test_clients_and_models_say_why_they_are_not_pickled(client: ng.Client, model: ng.Model) -> None:
    for thing in (client, model):
        for attempt in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match=r"cannot be pickled: it holds a connection; connect in each process"):
                attempt(thing)
