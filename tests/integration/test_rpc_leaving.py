"""Guarantee: a client that leaves while it is answered leaves no line in the log, whatever it had asked."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from raftkv.limits import MAX_VALUE_BYTES
from raftkv.v1 import kv_pb2, kv_pb2_grpc
from tests.rpc_fakes import FakeCluster

GRPC = "grpc._cython.cygrpc"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of calls that the client has left
def test_who_leaves_while_it_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def leave(endpoints: str) -> None:
        channel = aio.insecure_channel(endpoints)
        kv = kv_pb2_grpc.KVStub(channel)
        gets = [kv_pb2.Operation(id=at, kind=kv_pb2.KIND_GET, key=b"k") for at in range(1, 101)]
        pipeline = kv.Pipeline(None)
        await pipeline.write(kv_pb2.PipelineRequest(operations=gets))
        await pipeline.read()
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        for _ in range(100):
            await reflection.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
        await reflection.read()
        await health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()).read()
        calls: list[Any] = [kv.Get(kv_pb2.GetRequest(key=b"k")) for _ in range(20)]
        calls += [kv.Scan(kv_pb2.ScanRequest()) for _ in range(20)]
        await asyncio.wait([asyncio.ensure_future(call.initial_metadata()) for call in calls[:1]])
        await channel.close(None)

    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            kv = kv_pb2_grpc.KVStub(channel)
            await kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v" * MAX_VALUE_BYTES))
            for _ in range(5):
                await leave(cluster.endpoints)
            assert (await kv.Get(kv_pb2.GetRequest(key=b"k"))).HasField("record")

    asyncio.run(main())
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_what_else_grpc_tells_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with FakeCluster():
            for problem in (
                aio.InternalError('Failed "execute_batch": (...)'),
                aio.InternalError("Failed grpc_call_start_batch: 1 with grpc_call_error value: '...'"),
                ValueError("a bug"),
            ):
                logging.getLogger(GRPC).error("%s", problem, exc_info=problem)
            logging.getLogger(GRPC).error("without an exception")

    asyncio.run(main())
    told = [record.getMessage().split()[:2] for record in caplog.records if record.name == GRPC]
    assert told == [["Failed", "grpc_call_start_batch:"], ["a", "bug"], ["without", "an"]]
