from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from neuroglot.errors import BundleError
from neuroglot_server.core import (
    Analysis,
    BatchRun,
    ByType,
    Caller,
    Deactivate,
    Group,
    GroupResult,
    Intervention,
    InvalidRequest,
    ModelClosed,
    NeuronType,
    Prediction,
    Priority,
    QueueFull,
    Quota,
    Row,
    Settings,
    Unobserved,
    Variant,
)
from neuroglot_server.models.model import Model
from tests.server.serving import CAPITALS, served

PREDICTING = Analysis(
    type_map=True,
    prediction=Prediction(generate=True),
    variants=tuple(
        Variant(f"without {kind.name}", (Intervention(ByType((kind,)), Deactivate()),)) for kind in NeuronType
    ),
)
ONE_THREAD = Settings(threads=1, cache_bytes=0)


class Listener(Unobserved):
    def __init__(self) -> None:
        self.batches: list[BatchRun] = []
        self.inside: list[int] = []
        self.tenants: list[tuple[str, int]] = []

    def batch(self, run: BatchRun) -> None:
        self.batches.append(run)

    def queued(self, tokens: int) -> None:
        self.inside.append(tokens)

    def admitted(self, tenant: str, tokens: int) -> None:
        self.tenants.append((tenant, tokens))


def with_model(
    bundle: Path, settings: Settings, test: Callable[[Model], Awaitable[None]], listener: Listener | None = None
) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            model = Model.load(bundle, "random-bloom", settings, listener)
            try:
                await test(model)
            finally:
                await model.close()

    asyncio.run(limited())


def test_observed_counts_add_up(bloom_bundle: Path) -> None:
    listener = Listener()

    async def test(model: Model) -> None:
        await asyncio.gather(*(model.analyze(CAPITALS, PREDICTING, Caller(tenant)) for tenant in "ab"))

    with_model(bloom_bundle, ONE_THREAD, test, listener)
    assert [tenant for tenant, _ in listener.tenants] == ["a", "b"]
    assert listener.inside[-1] == 0 < max(listener.inside) == sum(tokens for _, tokens in listener.tenants)
    for batch in listener.batches:
        assert batch.component == "decoder"
        assert batch.tokens <= batch.positions <= 9 / 8 * batch.tokens + 48
        assert len(batch.queue_seconds) == batch.rows


def test_a_small_batch_bytes_makes_small_batches_and_the_same_results(bloom_bundle: Path) -> None:
    answers: list[GroupResult] = []
    largest = []
    for batch_bytes in (2**29, 120_000):
        listener = Listener()

        async def test(model: Model) -> None:
            answers.append(await model.analyze(CAPITALS, PREDICTING))

        with_model(bloom_bundle, dataclasses.replace(ONE_THREAD, batch_bytes=batch_bytes), test, listener)
        largest.append(max(batch.rows for batch in listener.batches))
    plenty, few = answers
    assert largest[1] < largest[0]
    assert plenty.components[0].thresholds[0].type_map == few.components[0].thresholds[0].type_map
    assert [[row.token_ids for row in variant.predictions] for variant in plenty.variants] == [
        [row.token_ids for row in variant.predictions] for variant in few.variants
    ]


def test_batch_bytes_limit_the_length_of_rows(bloom_bundle: Path) -> None:
    async def test(model: Model) -> None:
        limit = model.description.limits.tokens_per_row
        assert 0 < limit < 60
        longest = Group("", (Row("a", (5,) * (limit - 1), ("a",), ""), Row("b", (6,) * limit)))
        assert (await model.analyze(longest, Analysis())).rows[1].prompt_tokens == limit
        with pytest.raises(InvalidRequest, match=f"at most {limit} together"):
            await model.analyze(Group("", (Row("a", (5,) * (limit + 1)),)), Analysis())

    with_model(bloom_bundle, dataclasses.replace(ONE_THREAD, batch_bytes=60_000), test)
    with pytest.raises(BundleError, match="is limited to 100 bytes, expected enough for one token: raise"):
        Model.load(bloom_bundle, "tight", dataclasses.replace(ONE_THREAD, batch_bytes=100))


def test_a_group_larger_than_the_queue_is_refused(bloom_bundle: Path) -> None:
    async def test(model: Model) -> None:
        with pytest.raises(InvalidRequest, match=r"expected at most 0.0 MiB \(queue_bytes\)"):
            await model.analyze(CAPITALS, PREDICTING)

    with_model(bloom_bundle, dataclasses.replace(ONE_THREAD, queue_bytes=1000), test)


def test_a_tenants_quota_does_not_limit_other_tenants(bloom_bundle: Path) -> None:
    async def test(model: Model) -> None:
        group = Group("ids", (Row("en", (5,) * 50), Row("es", (6,) * 50)))  # token ids need no tokenization
        bounded = Caller("bounded", quota=Quota(queue_tokens=150))
        first = asyncio.create_task(model.analyze(group, Analysis(), bounded))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="your quota is full") as full:
            await model.analyze(group, Analysis(), bounded)
        assert full.value.retry_after_seconds >= 0.1
        await model.analyze(group, Analysis(), Caller("other"))
        await first
        await model.analyze(group, Analysis(), bounded)

    with_model(bloom_bundle, ONE_THREAD, test)


def test_an_interactive_group_overtakes_earlier_bulk_groups(bloom_bundle: Path) -> None:
    async def test(model: Model) -> None:
        bulk = [
            asyncio.create_task(model.analyze(CAPITALS, PREDICTING, Caller("bulk", Priority.BULK))) for _ in range(16)
        ]
        await asyncio.sleep(0)
        await model.analyze(CAPITALS, PREDICTING, Caller("other"))
        assert sum(task.done() for task in bulk) < 8
        await asyncio.gather(*bulk)

    with_model(bloom_bundle, dataclasses.replace(ONE_THREAD, batch_tokens=200), test)


def test_a_drained_model_completes_started_requests_and_refuses_the_rest(bloom_bundle: Path) -> None:
    listener = Listener()

    async def test(model: Model) -> None:
        begun = asyncio.create_task(model.analyze(CAPITALS, PREDICTING))
        while not listener.batches:
            await asyncio.sleep(0)
        model.drain()
        with pytest.raises(ModelClosed):
            await model.analyze(CAPITALS, PREDICTING)
        assert (await begun).group_id == "FR"

    with_model(bloom_bundle, ONE_THREAD, test, listener)


def test_closing_a_busy_model_ends_all_requests(bloom_bundle: Path) -> None:
    async def test(model: Model) -> None:
        tasks = [asyncio.create_task(model.analyze(CAPITALS, PREDICTING)) for _ in range(20)]
        await asyncio.sleep(0.01)
        await model.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(outcome, ModelClosed) for outcome in outcomes)
        assert all(isinstance(outcome, ModelClosed | GroupResult) for outcome in outcomes)
        with pytest.raises(ModelClosed):
            await model.analyze(CAPITALS, Analysis())

    with_model(bloom_bundle, ONE_THREAD, test)


def test_a_model_reports_hangs(bloom_bundle: Path) -> None:
    changes: list[bool] = []

    async def test() -> None:
        model = Model.load(
            bloom_bundle, "hangs", dataclasses.replace(ONE_THREAD, hang_seconds=0.0), hang_changed=changes.append
        )
        try:
            await model.analyze(CAPITALS, PREDICTING)
            assert not model.hung
        finally:
            await model.close()

    asyncio.run(test())
    assert changes[:2] == [True, False], "any pass is longer than nothing"
    assert len(changes) % 2 == 0


def test_keys_and_values_of_the_same_prompts_are_counted_once(bloom_bundle: Path) -> None:
    """Two requests fit into the queue if they have the same long prompts, but not if the prompts differ."""

    def long(word: str) -> Group:
        return Group(word, tuple(Row(row.label, f"{word} " + row.prompt * 9) for row in CAPITALS.rows))

    async def admitted(queue_bytes: int, *groups: Group) -> bool:
        settings = dataclasses.replace(ONE_THREAD, cache_bytes=2**20, queue_bytes=queue_bytes)
        async with served(bloom_bundle, settings) as model:
            answers = await asyncio.gather(
                *(model.analyze(group, Analysis()) for group in groups), return_exceptions=True
            )
        return not any(isinstance(answer, InvalidRequest | QueueFull) for answer in answers)

    async def scenario() -> None:
        size = 2**10
        while not await admitted(size, long("one")):
            size += size // 8
        size += size // 2  # only half of a second group of this size fits in addition
        assert await admitted(size, long("one"), dataclasses.replace(long("one"), id="again"))
        assert not await admitted(size, long("one"), long("two"))

    asyncio.run(scenario())
