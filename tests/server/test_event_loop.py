"""The event loop of the server."""

from __future__ import annotations

import asyncio
import sys

import pytest

from neuroglot_server.event_loop import run_in_loop


async def _loops_module() -> str:
    return type(asyncio.get_running_loop()).__module__


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop does not run there")
def test_it_is_uvloops() -> None:
    assert run_in_loop(_loops_module).startswith("uvloop")


def test_without_uvloop_it_is_asyncios_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run_in_loop(_loops_module).startswith("asyncio")
