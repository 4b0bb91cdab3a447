"""Step cache and single flight: what runs once, for which tenants, with the same results as without a cache."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroglot.definitions.packing import pack_bits, unpack_codes
from neuroglot_server.cache.step_cache import WholeStep
from neuroglot_server.core import (
    Analysis,
    ByNeuron,
    ByType,
    Caller,
    Deactivate,
    Group,
    GroupResult,
    Intervention,
    NeuronType,
    Prediction,
    Priority,
    Row,
    Scope,
    Settings,
    Variant,
)
from neuroglot_server.engine.steps import BLOCK, RowStep
from neuroglot_server.models.model import Model
from tests.checkpoints import CONFIGS, RandomModel
from tests.server.reference import CAUSAL
from tests.server.serving import CAPITALS, Recorder, served

ACTIVE = ByType((NeuronType.ALL_SHARED, NeuronType.PARTIAL_SHARED))
PREDICTED = Analysis(prediction=Prediction(generate=True))
ANALYSIS = replace(
    PREDICTED,
    type_map=True,
    variants=(
        Variant("last", (Intervention(ACTIVE, Deactivate()),)),
        Variant("all", (Intervention(ACTIVE, Deactivate(), scope=Scope.ALL_PROMPT_TOKENS),)),
    ),
)
TOKENS = st.integers(4, 319)
PROMPTS = st.lists(st.tuples(st.integers(0, 70), st.lists(TOKENS, min_size=1, max_size=5)), min_size=2, max_size=4)


def prompts_of(*prompts: tuple[int, ...], answer: str = "") -> Group:
    answers = (answer,) if answer else ()
    return Group("group", tuple(Row(f"row {index}", prompt, answers) for index, prompt in enumerate(prompts)))


def numbered(length: int, first: int = 0) -> tuple[int, ...]:
    """Token ids, none of which is special; another `first` gives other tokens."""
    return tuple(4 + (7 * number + first) % 316 for number in range(length))


class Pair:
    """Two models of one bundle on one event loop, with and without a cache."""

    def __init__(self, bundle: Path) -> None:
        self.runner = asyncio.Runner()
        self.models = [Model.load(bundle, "random", Settings(threads=1, cache_bytes=space)) for space in (200_000, 0)]

    def ask(self, groups: list[Group], analysis: Analysis) -> list[list[GroupResult]]:
        """The results of each model for concurrent groups."""

        async def at_once(model: Model) -> list[GroupResult]:
            return await asyncio.gather(*(model.analyze(group, analysis) for group in groups))

        return [self.runner.run(at_once(model)) for model in self.models]

    def close(self) -> None:
        for model in self.models:
            self.runner.run(model.close())
        self.runner.close()


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, random_model: Callable[[str], RandomModel]) -> Iterator[Pair]:
    both = Pair(random_model(request.param).bundle)
    yield both
    both.close()


def assert_same(left: GroupResult, right: GroupResult) -> None:
    for one, other in zip(left.components, right.components, strict=True):
        shape = (one.layers, one.neurons)
        (mine,), (theirs,) = one.thresholds, other.thresholds
        different = unpack_codes(mine.type_map, shape) != unpack_codes(theirs.type_map, shape)
        assert np.count_nonzero(different) <= theirs.near_threshold
    for mine_of, theirs_of in zip(left.variants, right.variants, strict=True):
        for predicted, expected in zip(mine_of.predictions, theirs_of.predictions, strict=True):
            assert predicted.token_ids == expected.token_ids
            assert predicted.gold_log_probability == pytest.approx(expected.gold_log_probability, abs=1e-5)
            assert predicted.choice_log_probabilities == pytest.approx(expected.choice_log_probabilities, abs=1e-5)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.lists(PROMPTS, min_size=1, max_size=2), first=st.integers(0, 2))
def test_results_match_those_without_a_cache(pair: Pair, groups: list[list[tuple[int, list[int]]]], first: int) -> None:
    common = numbered(70, first)
    requests = []
    for prompts in groups:
        group = prompts_of(*(common[:length] + tuple(own) for length, own in prompts), answer="Paris")
        requests.append(replace(group, rows=tuple(row._replace(choices=("Paris", "Rom")) for row in group.rows)))
    for with_cache, without in zip(*pair.ask(requests, ANALYSIS), strict=True):
        assert_same(with_cache, without)


def test_equal_blocks_after_different_prefixes_are_not_shared(pair: Pair) -> None:
    one, other = numbered(BLOCK, 50), numbered(BLOCK, 60)
    left, right = numbered(BLOCK + 5, 70), numbered(BLOCK + 5, 80)
    for group in (prompts_of(one + left, other + right), prompts_of(one + right, other + left)):
        ((with_cache,), (without,)) = pair.ask([group], ANALYSIS)
        assert_same(with_cache, without)


def tokens_run(
    bundle: Path, ask: Callable[[Model], Awaitable[object]], settings: Settings | None = None
) -> tuple[Recorder, object]:
    """Run requests on a fresh model; return what its observer recorded, and the results."""
    recorder = Recorder()

    async def run() -> object:
        async with served(bundle, settings, recorder) as model:
            return await ask(model)

    return recorder, asyncio.run(run())


async def once(model: Model) -> GroupResult:
    return await model.analyze(CAPITALS, PREDICTED)


@pytest.fixture
def alone(bloom_bundle: Path) -> int:
    """How many tokens one request runs."""
    return tokens_run(bloom_bundle, once)[0].tokens


@pytest.mark.parametrize("causal", CAUSAL)
def test_prompts_that_fork_inside_a_block_share_its_first_tokens(
    causal: str, random_model: Callable[[str], RandomModel]
) -> None:
    """If they share a whole block before it, and within a tenant only."""
    bundle = random_model(causal).bundle
    common = numbered(2 * BLOCK + 6)
    prompts = [common + numbered(length, first) for length, first in ((20, 40), (20, 80), (4, 120))]
    groups = [prompts_of(prompt, answer="Paris") for prompt in (*prompts, numbered(6) + numbered(9, 200))]
    runs: list[int] = []

    async def one_after_the_other(model: Model) -> list[GroupResult]:
        answers = []
        for group, tenant in [*zip(groups, "aaaa", strict=True), (groups[0], "b")]:
            before = recorder.tokens
            answers.append(await model.analyze(group, Analysis(prediction=Prediction()), Caller(tenant)))
            await asyncio.sleep(0)  # the observer is notified after the caller
            runs.append(recorder.tokens - before)
        return answers

    recorder = Recorder()

    async def run(observer: Recorder | None, settings: Settings) -> list[GroupResult]:
        async with served(bundle, settings, observer) as model:
            return await one_after_the_other(model)

    shared = asyncio.run(run(recorder, Settings(threads=1)))
    whole = [len(group.rows[0].prompt) for group in groups]
    gold = [len(answer.rows[0].gold_token_ids) - 1 for answer in shared]
    spared = [0, len(common), len(common), 0, 0]
    assert runs == [tokens + more - less for tokens, more, less in zip([*whole, whole[0]], gold, spared, strict=True)]
    for got, expected in zip(shared, asyncio.run(run(None, Settings(threads=1, cache_bytes=0))), strict=True):
        (cached,), (uncached,) = got.variants[0].predictions, expected.variants[0].predictions
        assert cached.gold_log_probability == pytest.approx(uncached.gold_log_probability, abs=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_repeated_request_runs_nothing(family: str, random_model: Callable[[str], RandomModel]) -> None:
    bundle = random_model(family).bundle

    async def twice(model: Model) -> tuple[GroupResult, GroupResult]:
        return await once(model), await once(model)

    recorder, answers = tokens_run(bundle, twice)
    assert recorder.tokens == tokens_run(bundle, once)[0].tokens
    assert isinstance(answers, tuple)
    assert answers[0].variants == answers[1].variants
    assert sum(recorder.hits.values()) == sum(recorder.misses.values()) == recorder.tokens


def test_concurrent_equal_requests_run_once(bloom_bundle: Path, alone: int) -> None:
    async def at_once(model: Model) -> set[tuple[str, ...]]:
        results = await asyncio.gather(*(once(model) for _ in range(8)))
        return {tuple(one.text for one in result.variants[0].predictions) for result in results}

    recorder, texts = tokens_run(bloom_bundle, at_once)
    assert recorder.tokens == alone
    assert isinstance(texts, set)
    assert len(texts) == 1


def test_groups_with_different_variants_share_one_baseline(bloom_bundle: Path, alone: int) -> None:
    bits = [np.random.default_rng(draw).random((3, 96)) < 0.5 for draw in range(8)]
    single = replace(PREDICTED, prediction=Prediction())

    async def at_once(model: Model) -> None:
        await model.analyze(CAPITALS, single)
        await asyncio.sleep(0)  # the observer is notified after the caller
        recorder.runs.clear()
        await asyncio.gather(
            *(
                model.analyze(
                    CAPITALS,
                    replace(
                        single,
                        variants=(
                            Variant("without", (Intervention(ByNeuron("", 3, 96, pack_bits(members)), Deactivate()),)),
                        ),
                    ),
                )
                for members in bits
            )
        )

    recorder = Recorder()

    async def run() -> int:
        async with served(bloom_bundle, observer=recorder) as model:
            result = await model.analyze(CAPITALS, single)
            await at_once(model)
            return sum(len(row.gold_token_ids) for row in result.rows)

    answers = asyncio.run(run())
    assert recorder.tokens == 8 * answers


def test_a_shared_prefix_runs_once_in_a_group_and_in_the_next(bloom_bundle: Path) -> None:
    common = numbered(4 * BLOCK)

    def group(first: int) -> Group:
        return prompts_of(*((*common, first + row, 9, 10, 11) for row in range(6)))

    async def both(model: Model) -> None:
        await model.analyze(group(20), Analysis())
        await model.analyze(group(40), Analysis())

    recorder, _ = tokens_run(bloom_bundle, both)
    own = 6 * 4
    assert recorder.tokens == len(common) + 2 * own
    assert recorder.hits["prefix"] == 11 * len(common)


def test_prompts_that_share_little_do_not_wait_for_each_other(bloom_bundle: Path) -> None:
    common = numbered(BLOCK)
    group = prompts_of(*(common + numbered(40, first) for first in (50, 60, 70)))
    recorder, _ = tokens_run(bloom_bundle, lambda model: model.analyze(group, Analysis(prediction=Prediction())))
    assert [run.rows for run in recorder.runs] == [3]


def test_without_forks_one_pass_is_enough(bloom_bundle: Path) -> None:
    group = prompts_of(*(numbered(40, first) for first in (50, 60, 70)))
    recorder, _ = tokens_run(bloom_bundle, lambda model: model.analyze(group, Analysis()))
    assert [(run.rows, run.tokens) for run in recorder.runs] == [(3, 120)]


def test_without_a_cache_a_shared_prefix_is_not_run_separately(bloom_bundle: Path) -> None:
    group = prompts_of(*((*numbered(4 * BLOCK), row) for row in (9, 10, 11)))
    settings = Settings(threads=1, cache_bytes=0)
    recorder, _ = tokens_run(bloom_bundle, lambda model: model.analyze(group, Analysis()), settings)
    assert [(run.rows, run.tokens) for run in recorder.runs] == [(3, 3 * (4 * BLOCK + 1))]


def test_without_a_cache_concurrent_requests_share_nothing(bloom_bundle: Path, alone: int) -> None:
    async def at_once(model: Model) -> None:
        await asyncio.gather(once(model), once(model))

    recorder, _ = tokens_run(bloom_bundle, at_once, Settings(threads=1, cache_bytes=0))
    assert recorder.tokens == 2 * alone


def test_waiting_requests_get_results_that_do_not_fit_into_the_cache(bloom_bundle: Path, alone: int) -> None:
    async def at_once(model: Model) -> None:
        await asyncio.gather(once(model), once(model))

    recorder, _ = tokens_run(bloom_bundle, at_once, Settings(threads=1, cache_bytes=1))
    assert recorder.tokens == alone


@pytest.mark.parametrize(("shared", "times"), [(False, 2), (True, 1)])
def test_tenants_share_results_only_with_a_shared_cache(
    bloom_bundle: Path, alone: int, shared: bool, times: int
) -> None:
    async def two_tenants(model: Model) -> None:
        for tenant in ("left", "right"):
            await model.analyze(CAPITALS, PREDICTED, Caller(tenant))

    recorder, _ = tokens_run(bloom_bundle, two_tenants, Settings(threads=1, shared_cache=shared))
    assert recorder.tokens == times * alone


def test_interactive_requests_do_not_wait_for_bulk_flights_but_bulk_requests_do(bloom_bundle: Path) -> None:
    group = prompts_of(*(numbered(40, first) for first in (50, 60, 70)))  # token ids need no tokenization

    def asking(*priorities: Priority) -> Callable[[Model], Awaitable[object]]:
        return lambda model: asyncio.gather(
            *(model.analyze(group, PREDICTED, Caller(priority=priority)) for priority in priorities)
        )

    bulk_first = tokens_run(bloom_bundle, asking(Priority.BULK, Priority.INTERACTIVE))[0].tokens
    interactive_first = tokens_run(bloom_bundle, asking(Priority.INTERACTIVE, Priority.BULK))[0].tokens
    assert interactive_first < bulk_first


def test_waiting_requests_run_the_steps_if_the_first_is_cancelled(bloom_bundle: Path) -> None:
    expected = asyncio.run(_once(bloom_bundle))

    async def cancelled_first(model: Model) -> GroupResult:
        first = asyncio.create_task(once(model))
        second = asyncio.create_task(once(model))
        for _ in range(5):
            await asyncio.sleep(0)
        first.cancel()
        result = await asyncio.wait_for(second, 20)
        assert first.cancelled()
        return result

    _, result = tokens_run(bloom_bundle, cancelled_first)
    assert isinstance(result, GroupResult)
    assert [one.text for one in result.variants[0].predictions] == [
        one.text for one in expected.variants[0].predictions
    ]


async def _once(bundle: Path) -> GroupResult:
    async with served(bundle) as model:
        return await once(model)


def test_cancelling_a_waiting_request_does_not_affect_the_first(bloom_bundle: Path, alone: int) -> None:
    async def cancelled_second(model: Model) -> None:
        first = asyncio.create_task(once(model))
        second = asyncio.create_task(once(model))
        for _ in range(5):
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait_for(first, 20)
        assert second.cancelled() or second.done()

    recorder, _ = tokens_run(bloom_bundle, cancelled_second)
    assert recorder.tokens == alone


def test_prefills_under_interventions_are_never_cached(bloom_bundle: Path) -> None:
    changed = replace(ANALYSIS, variants=ANALYSIS.variants[1:], prediction=Prediction())

    async def twice(model: Model) -> int:
        await model.analyze(CAPITALS, changed)
        await asyncio.sleep(0)  # the observer is notified after the caller
        recorder.runs.clear()
        result = await model.analyze(CAPITALS, changed)
        return sum(row.prompt_tokens - 1 + len(row.gold_token_ids) for row in result.rows)

    recorder = Recorder()

    async def run() -> int:
        async with served(bloom_bundle, observer=recorder) as model:
            return await twice(model)

    assert asyncio.run(run()) == recorder.tokens


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", (5, 8)),
        ("taps", True),
        ("thresholds", (0.5,)),
        ("capture", True),
        ("scored", True),
        ("targets", (8,)),
        ("greedy_log_probabilities", True),
        ("keep", True),
    ],
)
def test_a_steps_key_includes_all_requested_results(field: str, value: object) -> None:
    step = RowStep((5, 7))
    other = step._replace(**{field: value})
    whole = [WholeStep("decoder", (1, 5), one).links[0].key for one in (step, step._replace(), other)]
    assert whole[0] == whole[1] is not None
    assert whole[2] != whole[0]
