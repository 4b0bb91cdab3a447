"""A server with a deployment, for the duration of a block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from neuroglot_server.config.deployment import Deployment
from neuroglot_server.lifecycle import Started, run


@asynccontextmanager
async def deployed(deployment: Deployment) -> AsyncIterator[str]:
    """Run a deployment for the duration of a block."""
    stopping, target = asyncio.Event(), asyncio.get_running_loop().create_future()

    def started(server: Started) -> None:
        target.set_result(server.target)

    running = asyncio.create_task(run(deployment, stopping, started))
    await asyncio.wait({running, target}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    try:
        yield await target
    finally:
        stopping.set()
        await running
