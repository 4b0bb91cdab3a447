"""A hostile bundle is served correctly or refused with a one-line error, and the server keeps running."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import grpc
import psutil

from neuroglot.v1 import service_pb2
from tests.server.hostile_bundles import changes
from tests.server.live import NAME, group, load, said, serving

LONGEST_SECONDS = 5.0
MOST_MORE_BYTES = 64 * 2**20


def test_every_hostile_bundle_is_an_invalid_argument(bloom_bundle: Path, tmp_path: Path) -> None:
    async def conversation() -> list[str]:
        wrong = []
        count = 0
        async with serving(load(bloom_bundle), bundles_folder=tmp_path) as live:
            before = 0
            for name, change in changes():
                count += 1
                folder = tmp_path / f"bundle{count}"
                shutil.copytree(bloom_bundle, folder)
                change(folder)
                began = time.monotonic()
                try:
                    await live.stub.LoadModel(service_pb2.LoadModelRequest(bundle=folder.name), timeout=30)
                    wrong.append(f"{name}: was loaded")
                    await live.stub.UnloadModel(service_pb2.UnloadModelRequest(model=folder.name), timeout=30)
                except grpc.aio.AioRpcError as error:
                    answer = said(error)
                    if answer.code is not grpc.StatusCode.INVALID_ARGUMENT or "\n" in answer.message:
                        wrong.append(f"{name}: {answer.code.name} {answer.message}")
                    if list(answer.violations) != ["bundle"] or str(tmp_path) in answer.message:
                        wrong.append(f"{name}: {answer.violations}")
                if time.monotonic() - began > LONGEST_SECONDS:
                    wrong.append(f"{name}: took {time.monotonic() - began:.1f} s")
                listed = await live.stub.ListModels(service_pb2.ListModelsRequest(), timeout=10)
                if [model.name for model in listed.models] != [NAME]:
                    wrong.append(f"{name}: then there is {[model.name for model in listed.models]}")
                for made in (folder, folder.with_suffix(".good"), folder.with_suffix(".outside")):
                    shutil.rmtree(made, ignore_errors=True)
                if count == 100:
                    before = psutil.Process().memory_info().rss
            if psutil.Process().memory_info().rss > before + MOST_MORE_BYTES:
                wrong.append(f"memory grew from {before} to {psutil.Process().memory_info().rss}")
            request = service_pb2.AnalyzeGroupRequest(model=NAME, group=group())
            assert (await live.stub.AnalyzeGroup(request, timeout=30)).result.group_id == "FR"
        assert count >= 124
        print(f"{count} hostile bundles")
        return wrong

    wrong = asyncio.run(conversation())
    assert not wrong, "\n".join(wrong)
