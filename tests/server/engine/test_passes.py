from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

from neuroglot.definitions.bundle import WEIGHTS, read_manifest
from neuroglot_server.engine.graph import interfaces
from neuroglot_server.engine.kv_device import DevicePiece
from neuroglot_server.engine.kv_host import HostMemory
from neuroglot_server.engine.passes import inputs
from neuroglot_server.engine.session import Engine
from neuroglot_server.engine.steps import (
    BLOCK,
    NO_TOKENS,
    Edit,
    Edits,
    KeyValues,
    Piece,
    RowStep,
    StepResult,
)
from tests.checkpoints import CONFIGS, RandomModel
from tests.server.reference import CAUSAL, COMPONENTS, ENCODER_DECODERS

TOLERANCE = 1e-4
THRESHOLDS = (0.0, 0.5, -0.1)


class Engines(NamedTuple):
    """The engine of a component, and that of the encoder whose keys and values it reads, if it does."""

    engine: Engine
    encoder: Engine | None


GRAPHS = [*product(CAUSAL, ["decoder"]), *product(ENCODER_DECODERS, COMPONENTS)]


@pytest.fixture(
    scope="module", params=product(GRAPHS, ["host", "device"]), ids=lambda param: " ".join((*param[0], param[1]))
)
def engines(request: pytest.FixtureRequest, random_model: Callable[[str], RandomModel]) -> Engines:
    """With keys and values in arrays, and in the device's memory, the device being the processor."""
    graph, memory = request.param
    return started(random_model, *graph, bound=memory == "device")


def started(random_model: Callable[[str], RandomModel], family: str, component: str, *, bound: bool) -> Engines:
    bundle = random_model(family).bundle
    facts = read_manifest(bundle).model
    found = {
        part.name: Engine(bundle / part.graph, part, interfaces(facts)[part.name], threads=1, bound=bound)
        for part in facts.components
    }
    return Engines(found[component], found.get("encoder") if component == "decoder" else None)


class Steps:
    """Random steps for an engine."""

    def __init__(self, engines: Engines, seed: int) -> None:
        self.engine, self.encoder = engines
        self.random = np.random.default_rng(seed)

    def tokens(self, length: int) -> tuple[int, ...]:
        return tuple(self.random.integers(4, 320, length).tolist())

    def step(self, new: int, *past: int, **more: Any) -> RowStep:
        """Some new tokens after a prompt, whose keys and values were computed in as many pieces as there are lengths.

        An encoder has no past. What another encoder read is of another length every time.
        """
        step = RowStep(self.tokens(new), cross=self.cross(), **more)
        for length in past if self.engine.signature.interface.past else ():
            (result,) = self.engine.run([RowStep(self.tokens(length), step.past, step.cross, keep=True)])
            assert result.kept is not None
            step = step._replace(past=step.past.extended(result.kept))
        return step

    def cross(self) -> KeyValues:
        if self.encoder is None:
            return NO_TOKENS
        (result,) = self.encoder.run([RowStep(self.tokens(int(self.random.integers(1, 20))), keep=True)])
        assert result.kept is not None
        return result.kept

    def edit(self, *layers: int, size: float = 1.0) -> Edit:
        layers = tuple(sorted({layer % self.engine.signature.layers for layer in layers}))
        shape = (len(layers), self.engine.signature.neurons)
        mask = self.random.normal(size=shape).astype(np.float32)
        return Edit(layers, mask, (self.random.normal(size=shape) * size).astype(np.float32))


def mixed_batch(engines: Engines) -> list[RowStep]:
    """Steps of every kind and of different lengths; every one wants all that can be wanted."""
    steps = Steps(engines, seed=1)
    everywhere = steps.edit(0, 1, 2)
    rows = [
        steps.step(9),
        steps.step(1),
        steps.step(4, 3, 1, 1),
        steps.step(1, 12, edits=Edits(at=steps.edit(1))),
        steps.step(3, 5, edits=Edits(steps.edit(1), steps.edit(0, 2), steps.edit(2))),
        steps.step(5, 2, edits=Edits(after=steps.edit(0))),
        steps.step(6, focus=3, edits=Edits(steps.edit(0), steps.edit(1), steps.edit(1, 2))),
        steps.step(6, focus=5, edits=Edits(everywhere, everywhere, everywhere)),
    ]
    scored = engines.engine.signature.interface.logits
    wanted = {"taps": True, "thresholds": THRESHOLDS, "capture": True, "keep": True}
    return [
        row._replace(**wanted, scored=scored, targets=steps.tokens((len(row.tokens) - row.first_scored) * scored))
        for row in rows
    ]


def kept(result: StepResult) -> np.ndarray:
    """The keys and values of the new tokens, `[2 * layers, heads, tokens, head_size]`."""
    assert result.kept is not None
    return np.concatenate([as_array(piece) for piece in result.kept.pieces], axis=2)


def as_array(piece: Piece) -> np.ndarray:
    return piece.value.numpy()[:, 0] if isinstance(piece, DevicePiece) else np.asarray(piece)


def assert_same(got: StepResult, expected: StepResult) -> None:
    assert got.finite
    assert got.captured is not None
    assert expected.captured is not None
    for one, other in (
        (got.activations, expected.activations),
        (got.coefficients, expected.coefficients),
        (kept(got), kept(expected)),
        *zip(got.captured, expected.captured, strict=True),
    ):
        assert one is not None
        assert other is not None
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= TOLERANCE
    assert got.ever is not None
    assert expected.ever is not None
    unsure = np.abs(expected.captured[0].max(axis=1) - np.array(THRESHOLDS)[:, np.newaxis, np.newaxis]) <= TOLERANCE
    assert ((got.ever == expected.ever) | unsure).all()
    if expected.scores is None:
        assert got.scores is None
        return
    assert got.scores is not None
    assert got.scores.greedy == expected.scores.greedy
    np.testing.assert_allclose(got.scores.log_probabilities, expected.scores.log_probabilities, atol=TOLERANCE)


def test_every_row_of_a_mixed_batch_equals_itself_alone(engines: Engines) -> None:
    batch = mixed_batch(engines)
    alone = [engines.engine.run([step])[0] for step in batch]
    for order in (range(len(batch)), range(len(batch) - 1, -1, -1)):
        together = engines.engine.run([batch[index] for index in order])
        for result, index in zip(together, order, strict=True):
            assert_same(result, alone[index])


def test_edits_move_what_they_should_by_much(engines: Engines) -> None:
    """Or the comparisons here would hold for edits that are not applied at all."""
    for step in mixed_batch(engines):
        if not step.edits.anywhere:
            continue
        (edited,) = engines.engine.run([step])
        (plain,) = engines.engine.run([step._replace(edits=Edits())])
        moved = moved_at_each_token(edited, plain)
        assert moved[-1] >= 100 * TOLERANCE
        if step.edits.at is None and engines.engine.signature.interface.past:
            assert moved[0] <= TOLERANCE


def moved_at_each_token(one: StepResult, other: StepResult) -> np.ndarray:
    """Of the scores; of an encoder, which has none, of the keys and values."""
    if one.scores is None or other.scores is None:
        moved: np.ndarray = np.abs(kept(one) - kept(other)).max(axis=(0, 1, 3))
        return moved
    return np.abs(np.subtract(one.scores.log_probabilities, other.scores.log_probabilities))


def test_a_row_that_is_not_finite_spoils_no_other(engines: Engines) -> None:
    batch = mixed_batch(engines)
    alone = [engines.engine.run([step])[0] for step in batch]
    steps = Steps(engines, seed=2)
    spoilt = steps.step(2, 4, edits=Edits(at=steps.edit(0, 1, 2, size=1e38)), keep=True)
    (result,) = engines.engine.run([spoilt])
    assert not np.isfinite(kept(result)).all()
    together = engines.engine.run([spoilt, *batch, spoilt])
    for result, expected in zip(together[1:-1], alone, strict=True):
        assert_same(result, expected)


def test_a_row_that_is_not_finite_says_so(engines: Engines) -> None:
    steps = Steps(engines, seed=6)
    wanted = {"scored": True} if engines.engine.signature.interface.logits else {"taps": True}
    step = steps.step(2, 4, edits=Edits(at=steps.edit(0, 1, 2, size=1e38)), **wanted)
    assert not engines.engine.run([step])[0].finite


def test_the_taps_are_those_of_the_focus(engines: Engines) -> None:
    """In a decoder they are what the tokens up to there give by themselves."""
    steps = Steps(engines, seed=7)
    step = steps.step(7, 3, taps=True)
    seen = [engines.engine.run([step._replace(focus=focus)])[0].activations for focus in range(7)]
    for one, other in pairwise(seen):
        assert one is not None
        assert other is not None
        assert np.abs(one - other).max() >= 100 * TOLERANCE
    if engines.engine.signature.interface.past:
        for focus, activations in enumerate(seen):
            (alone,) = engines.engine.run([step._replace(tokens=step.tokens[: focus + 1], focus=focus)])
            assert activations is not None
            assert alone.activations is not None
            assert np.abs(activations - alone.activations).max() <= TOLERANCE


def test_a_prompt_run_in_pieces_equals_the_prompt_run_at_once(engines: Engines) -> None:
    if not engines.engine.signature.interface.past:
        return  # an encoder's first tokens depend on its last
    steps = Steps(engines, seed=3)
    whole = steps.step(8, scored=True, targets=steps.tokens(8))
    (at_once,) = engines.engine.run([whole])
    past = NO_TOKENS
    log_probabilities: list[float] = []
    for piece in (slice(0, 5), slice(5, 6), slice(6, 8)):
        part = whole._replace(tokens=whole.tokens[piece], targets=whole.targets[piece], past=past, keep=True)
        (result,) = engines.engine.run([part])
        assert result.kept is not None
        assert result.scores is not None
        past = past.extended(result.kept)
        log_probabilities += result.scores.log_probabilities
    assert at_once.scores is not None
    np.testing.assert_allclose(log_probabilities, at_once.scores.log_probabilities, atol=TOLERANCE)


def test_only_what_is_wanted_comes_back(engines: Engines) -> None:
    steps = Steps(engines, seed=4)
    scored = engines.engine.signature.interface.logits
    wanted: list[dict[str, Any]] = [{"keep": True}, {"taps": True}, {"scored": scored}, {"thresholds": (0.0,)}]
    results = engines.engine.run([steps.step(2, 3, **more) for more in wanted] + [steps.step(3, 1, capture=True)])
    fields = ("kept", "activations", "scores", "ever", "captured")
    for result, given in zip(results, fields, strict=True):
        assert result.finite
        for field in fields:
            assert (getattr(result, field) is not None) == (field == given and (scored or field != "scores"))
    third = results[2]
    if third.scores is not None:
        assert len(third.scores.greedy) == 2
        assert third.scores.log_probabilities == ()


def test_kept_keys_and_values_do_not_hold_on_to_the_batch(engines: Engines) -> None:
    steps = Steps(engines, seed=5)
    for result in engines.engine.run([steps.step(length, keep=True) for length in (2, 2 * BLOCK + 3, 3)]):
        assert result.kept is not None
        for piece in result.kept.pieces:
            if isinstance(piece, DevicePiece):
                assert piece.value.shape()[3] == result.kept.length
            else:
                assert np.asarray(piece).base is None


def test_blocks_of_a_row_are_kept_by_themselves(random_model: Callable[[str], RandomModel]) -> None:
    """So that a prompt that is known in blocks is never held twice."""
    engines = started(random_model, "bloom", "decoder", bound=False)
    steps = Steps(engines, seed=6)
    lengths = [(2 * BLOCK + 3,), (BLOCK, BLOCK), (BLOCK + 3, 5), (2, BLOCK - 1), (1, BLOCK - 1), (1, 3)]
    results = engines.engine.run([steps.step(new, *past, keep=True) for new, *past in lengths])
    pieces = [[piece.shape[2] for piece in result.kept.pieces] for result in results if result.kept is not None]
    assert pieces == [[BLOCK, BLOCK, 3], [BLOCK], [BLOCK - 5, 8], [1, 1], [1], [1]]


def test_captures_are_the_taps_of_every_position_and_ever_their_largest(engines: Engines) -> None:
    """Among longer neighbours, whose padding is to their left."""
    steps = Steps(engines, seed=8)
    step = steps.step(5, 2, thresholds=THRESHOLDS, capture=True)
    positions = [step._replace(focus=focus, taps=True) for focus in range(5)]
    neighbours = [steps.step(9, taps=True), steps.step(2, 7, capture=True)]
    _, result, _ = engines.engine.run([neighbours[0], step, neighbours[1]])
    taps = [engines.engine.run([one])[0] for one in positions]
    assert result.captured is not None
    assert result.ever is not None
    for captured, name in zip(result.captured, ("activations", "coefficients"), strict=True):
        expected = np.stack([getattr(tap, name) for tap in taps], axis=1)
        assert captured.shape == expected.shape
        assert np.abs(captured - expected).max() <= TOLERANCE
    for ever, threshold in zip(result.ever, THRESHOLDS, strict=True):
        assert (ever == (result.captured[0] > np.float32(threshold)).any(axis=1)).all()
    assert 0 < np.count_nonzero(result.ever[1]) < result.ever[1].size


@pytest.mark.parametrize("more", [{"capture": True}, {"thresholds": (0.0,)}], ids=["capture", "thresholds"])
def test_a_number_that_is_not_finite_is_seen_at_every_position(engines: Engines, more: dict[str, Any]) -> None:
    steps = Steps(engines, seed=9)
    step = steps.step(4, 2, focus=1, edits=Edits(at=steps.edit(0, 1, 2, size=1e38)), **more)
    assert not engines.engine.run([step])[0].finite


Run = Callable[[list[RowStep]], list[StepResult]]


def generated(run: Run, steps: list[RowStep], keep: Callable[[int], list[int]]) -> list[StepResult]:
    """Results of four tokens, one after another; `keep` says which rows go on after a token."""
    results: list[StepResult] = []
    for token in range(4):
        given = run(steps)
        results += given
        ended = [
            step._replace(tokens=(7 + token,), targets=(9,), past=step.past.extended(result.kept), focus=-1)
            for step, result in zip(steps, given, strict=True)
            if result.kept is not None
        ]
        steps = [ended[row] for row in keep(len(ended))]
    return results


@pytest.mark.parametrize(
    "keep",
    [
        lambda rows: list(range(rows)),
        lambda rows: list(range(1, rows)),
        lambda rows: list(range(rows - 1)),
        lambda rows: list(reversed(range(rows))),
        lambda rows: [0] * rows,
    ],
    ids=["all go on", "the first ends", "the last ends", "in another order", "all fork from the first"],
)
def test_tokens_generated_in_one_batch_are_those_of_each_row_alone(
    engines: Engines, keep: Callable[[int], list[int]]
) -> None:
    """A pass takes what the last one gave as it stands if it goes on with the same rows, and only then."""
    if not engines.engine.signature.interface.past:
        return
    steps = Steps(engines, seed=10)
    begun = [steps.step(1, length, scored=True, targets=(5,), keep=True) for length in (3, 9, 5, 2)]
    together = generated(engines.engine.run, begun, keep)
    alone = generated(lambda rows: [engines.engine.run([unlinked(row)])[0] for row in rows], begun, keep)
    for got, expected in zip(together, alone, strict=True):
        assert got.scores is not None
        assert expected.scores is not None
        np.testing.assert_allclose(
            got.scores.log_probabilities, expected.scores.log_probabilities, atol=TOLERANCE, rtol=0
        )
        assert np.abs(kept(got) - kept(expected)).max() <= TOLERANCE


def unlinked(step: RowStep) -> RowStep:
    """The same step; no pass can know its past as what it gave itself."""
    return step._replace(past=KeyValues(step.past.pieces))


def test_rows_that_fork_from_one_prompt_give_what_each_gives_alone(engines: Engines) -> None:
    """Of two prompts of different lengths, in turns, and beside a row that has nothing before it."""
    if not engines.engine.signature.interface.past:
        return
    steps = Steps(engines, seed=13)
    prompts = [steps.step(1, 7, 4), steps.step(1, 3)]
    wanted = {"taps": True, "thresholds": THRESHOLDS, "capture": True, "scored": True, "keep": True}
    forks = [
        prompt._replace(tokens=steps.tokens(new), targets=(5,) * new, edits=Edits(at=steps.edit(0, 1)), **wanted)
        for new in (1, 2, 1)
        for prompt in prompts
    ]
    batch = [*forks[:3], steps.step(2, targets=(7, 8), **wanted), *forks[3:]]
    assert len({step.source for step in forks}) == len(prompts)
    for got, step in zip(engines.engine.run(batch), batch, strict=True):
        (expected,) = engines.engine.run([step])
        assert_same(got, expected)


def test_threads_copy_what_one_does(
    random_model: Callable[[str], RandomModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large keys and values, that is; here all count as large."""
    for family in ("bloom", "mt0"):
        found = started(random_model, family, "decoder", bound=False)
        batch = mixed_batch(found)
        alone = found.engine.run(batch)
        with monkeypatch.context() as patch:
            patch.setattr("neuroglot_server.engine.kv_host._WORTH_THREADS", 0)
            together = found.engine.run(batch)
        for got, expected in zip(together, alone, strict=True):
            assert_same(got, expected)


@pytest.mark.parametrize("family", CONFIGS)
def test_what_rows_fork_from_is_fed_once(family: str, random_model: Callable[[str], RandomModel]) -> None:
    engine, encoder = started(random_model, family, "decoder", bound=False)
    steps = Steps(Engines(engine, encoder), seed=14)
    prompts = [steps.step(1, 5), steps.step(1, 9)]
    fed: dict[str, np.ndarray] = {}

    class Session:
        """Gives nothing, and keeps what it is fed."""

        def run(self, _: list[str], feeds: dict[str, np.ndarray], __: None) -> list[np.ndarray]:
            fed.update(feeds)
            return []

    places = [0, 1, 1, 0, 1]
    HostMemory(Session(), engine.signature, threads=1).run([prompts[place] for place in places], {}, [], None)
    interface = engine.signature.interface
    for kind, names in (("past", interface.past), ("cross", interface.cross)):
        if names:
            assert fed[f"{kind}_rows"].tolist() == places
            assert {fed[name].shape[0] for name in names} == {len(prompts)}


@pytest.mark.parametrize("bound", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("lacking", [{"present_from"}, {"past_rows", "cross_rows"}], ids=["present", "rows"])
def test_a_graph_of_an_older_export_gives_the_same(
    lacking: set[str], family: str, bound: bool, random_model: Callable[[str], RandomModel], tmp_path: Path
) -> None:
    """One that always gives all keys and values, and one that is fed those of every row."""
    today = started(random_model, family, "decoder", bound=bound)
    bundle = random_model(family).bundle
    (part,) = [part for part in read_manifest(bundle).model.components if part.name == "decoder"]
    graph = onnx.load(bundle / part.graph, load_external_data=False)
    for node in graph.graph.node:
        node.input[:] = [f"older.{name}" if name in lacking else name for name in node.input]
    for tensor in graph.graph.initializer:
        tensor.name = f"older.{tensor.name}" if tensor.name in lacking else tensor.name
    inputs = [info for info in graph.graph.input if info.name not in lacking]
    del graph.graph.input[:]
    graph.graph.input.extend(inputs)
    onnx.save(graph, tmp_path / part.graph)
    shutil.copyfile(bundle / WEIGHTS, tmp_path / WEIGHTS)
    interface = interfaces(read_manifest(bundle).model)["decoder"]
    older = today._replace(engine=Engine(tmp_path / part.graph, part, interface, threads=1, bound=bound))
    for engine, there in ((today.engine, True), (older.engine, False)):
        assert engine.signature.trailing is (there or "present_from" not in lacking)
        assert engine.signature.forks is (there or "past_rows" not in lacking)
    for got, expected in zip(older.engine.run(mixed_batch(older)), today.engine.run(mixed_batch(today)), strict=True):
        assert_same(got, expected)


def test_what_multiplies_only_feeds_no_overrides(engines: Engines) -> None:
    steps = Steps(engines, seed=11)
    adding = steps.edit(0, 1)
    multiplying = replace(adding, override=None)
    both = [steps.step(2, edits=Edits(at=edit, before=edit)) for edit in (adding, multiplying)]
    fed = [
        {name for name in inputs(batch, engines.engine.signature) if "override" in name} for batch in (both, both[1:])
    ]
    assert fed == [{"ffn.0.override", "ffn.1.override"}, set()]
    (alone,) = engines.engine.run([both[1]._replace(capture=True)])
    together = engines.engine.run([step._replace(capture=True) for step in both])[1]
    assert alone.captured is not None
    assert together.captured is not None
    assert np.abs(alone.captured[0] - together.captured[0]).max() <= TOLERANCE


@pytest.mark.parametrize(("family", "component"), GRAPHS)
def test_keys_and_values_on_a_device_give_what_arrays_give(
    family: str, component: str, random_model: Callable[[str], RandomModel]
) -> None:
    host, device = (started(random_model, family, component, bound=bound) for bound in (False, True))
    for expected, got in zip(host.engine.run(mixed_batch(host)), device.engine.run(mixed_batch(device)), strict=True):
        assert_same(got, expected)
        assert got.kept is not None
        assert expected.kept is not None
        assert (got.kept.length, got.kept.nbytes) == (expected.kept.length, expected.kept.nbytes)
        for start, stop in ((0, 1), (0, got.kept.length)):
            for one, other in (
                (got.kept.first(stop), expected.kept.first(stop)),
                (got.kept.part(start, stop), expected.kept.part(start, stop)),
            ):
                pieces = zip(one.pieces, other.pieces, strict=True)
                assert all(np.abs(as_array(a) - as_array(b)).max() <= TOLERANCE for a, b in pieces)
