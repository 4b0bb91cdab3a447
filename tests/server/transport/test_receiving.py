"""Slots for calls that wait for a request: shared fairly, and released however a call ends."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from neuroglot_server.transport.receiving import ReceiveLimit, TooManyRequests

SECONDS = 0.05


@pytest.mark.parametrize(
    ("calls", "limit"),
    [
        ([("", "ipv4:1.1.1.1:1", False)] * 8, 4),
        ([("ann", f"ipv4:1.1.1.{number}:1", False) for number in range(8)], 4),
        ([("", f"ipv4:1.1.1.1:{number}", False) for number in range(8)], 6),
        ([("", f"ipv4:1.1.1.{number}:1", True) for number in range(8)], 6),
        ([("", f"ipv4:1.1.1.{number}:1", False) for number in range(9)], 8),
    ],
    ids=["a connection", "a tenant", "a machine", "streams", "all"],
)
def test_slots_are_limited_per_caller_machine_and_kind(calls: list[tuple[str, str, bool]], limit: int) -> None:
    async def take() -> None:
        receiving = ReceiveLimit(8)
        for _ in range(2):  # the second time with released slots
            async with AsyncExitStack() as stack:
                for tenant, peer, stream in calls[:limit]:
                    await stack.enter_async_context(receiving.slot(tenant, peer, SECONDS, stream=stream))
                tenant, peer, stream = calls[limit]
                with pytest.raises(TooManyRequests, match="try again in 1 s"):
                    await stack.enter_async_context(receiving.slot(tenant, peer, SECONDS, stream=stream))

    asyncio.run(take())


def test_the_waiting_caller_with_the_fewest_slots_is_next() -> None:
    async def take() -> list[str]:
        receiving, order = ReceiveLimit(2), list[str]()

        async def call(peer: str) -> None:
            async with receiving.slot("", peer, 5, stream=False):
                order.append(peer)
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(call(peer)) for peer in ("a:1", "a:1", "a:1", "b:1", "b:1")]
        await asyncio.sleep(0)
        tasks[1].cancel()  # in the queue
        await asyncio.wait(tasks)
        return order

    assert asyncio.run(take()) == ["a:1", "b:1", "a:1", "b:1"]
