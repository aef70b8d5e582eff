"""Guarantee: clients of any language reach every write by a unary call, and its answer has all that it came to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc import aio

from raftkv.api.grpc_status import result_of
from raftkv.errors import Code
from raftkv.v1 import kv_pb2, kv_pb2_grpc
from tests.admin_world import world_of


def ask(work: Callable[[kv_pb2_grpc.KVStub], Awaitable[None]]) -> None:
    async def main(endpoints: str) -> None:
        async with aio.insecure_channel(endpoints) as channel:
            await work(kv_pb2_grpc.KVStub(channel))

    with world_of(nodes=1, groups=1) as world:
        asyncio.run(main(world.endpoints))


async def code_of(call: Awaitable[Any]) -> tuple[grpc.StatusCode, int]:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value.code(), result_of(caught.value).code


def test_every_write_has_a_unary_call() -> None:
    async def work(kv: Any) -> None:
        name = kv_pb2.RequestId(client_id=b"\xff" * 16, sequence=1, first_incomplete=1)
        for _ in range(2):
            counted = await kv.Increment(kv_pb2.IncrementRequest(key=b"n", delta=-3, ttl_ms=60_000, request_id=name))
            assert (counted.value, counted.version) == (-3, 1)
        added = await kv.Append(kv_pb2.AppendRequest(key=b"n", value=b"x"))
        assert (added.length, added.version) == (3, 2)
        assert (await kv.Touch(kv_pb2.TouchRequest(key=b"n", ttl_ms=60_000, if_version=2))).existed
        assert not (await kv.Touch(kv_pb2.TouchRequest(key=b"none"))).existed
        swapped = await kv.CompareAndDelete(kv_pb2.CompareAndDeleteRequest(key=b"n", expected=b"y"))
        assert (swapped.deleted, swapped.version) == (False, 2)
        taken = (await kv.GetAndDelete(kv_pb2.GetAndDeleteRequest(key=b"n"))).record
        assert (taken.key, taken.value, taken.version) == (b"n", b"-3x", 2)
        assert 0 < taken.ttl_ms <= 60_000
        assert not (await kv.GetAndDelete(kv_pb2.GetAndDeleteRequest(key=b"n"))).HasField("record")
        txn = kv_pb2.Transaction(
            checks=[kv_pb2.Check(key=b"n", version=0)],
            steps=[
                kv_pb2.Step(kind=kv_pb2.KIND_PUT, key=b"n", value=b"7", ttl_ms=60_000),
                kv_pb2.Step(kind=kv_pb2.KIND_GET, key=b"n"),
            ],
        )
        found = (await kv.Transact(kv_pb2.TransactRequest(transaction=txn))).result
        assert (found.succeeded, [(row.version, row.value) for row in found.results]) == (True, [(5, b""), (5, b"7")])
        assert not found.results[0].HasField("value")
        assert found.results[1].ttl_ms == 60_000
        assert found.number == 5
        assert not (await kv.Transact(kv_pb2.TransactRequest(transaction=txn))).result.succeeded
        deleted = await kv.CompareAndDelete(kv_pb2.CompareAndDeleteRequest(key=b"n", expected=b"7"))
        assert (deleted.deleted, deleted.version) == (True, 5)

    ask(work)


def test_what_cannot_be_done_has_a_code_of_its_own() -> None:
    async def work(kv: Any) -> None:
        await kv.Put(kv_pb2.PutRequest(key=b"n", value=b"text"))
        await kv.Put(kv_pb2.PutRequest(key=b"m", value=b"9223372036854775807"))
        counted = kv.Increment(kv_pb2.IncrementRequest(key=b"n", delta=1))
        assert await code_of(counted) == (grpc.StatusCode.FAILED_PRECONDITION, Code.NOT_A_NUMBER)
        counted = kv.Increment(kv_pb2.IncrementRequest(key=b"m", delta=1))
        assert await code_of(counted) == (grpc.StatusCode.OUT_OF_RANGE, Code.OUT_OF_RANGE)
        steps = [kv_pb2.Step(kind=kv_pb2.KIND_GET, key=key) for key in (b"n", b"m")]
        txn = kv.Transact(kv_pb2.TransactRequest(transaction=kv_pb2.Transaction(steps=steps)))
        assert await code_of(txn) == (grpc.StatusCode.INVALID_ARGUMENT, Code.CROSS_SLOT)
        for wrong in (
            kv_pb2.Transaction(),
            kv_pb2.Transaction(checks=[kv_pb2.Check(key=b"n")]),
            kv_pb2.Transaction(checks=[kv_pb2.Check(key=b"n", version=1, value=b"")]),
            kv_pb2.Transaction(steps=[kv_pb2.Step(kind=kv_pb2.KIND_APPEND, key=b"n")]),
            kv_pb2.Transaction(steps=2 * [kv_pb2.Step(kind=kv_pb2.KIND_DELETE, key=b"n")]),
        ):
            refused = kv.Transact(kv_pb2.TransactRequest(transaction=wrong))
            assert await code_of(refused) == (grpc.StatusCode.INVALID_ARGUMENT, Code.INVALID_ARGUMENT)
        many = kv_pb2.Transaction(steps=129 * [kv_pb2.Step(kind=kv_pb2.KIND_GET, key=b"n")])
        assert (await code_of(kv.Transact(kv_pb2.TransactRequest(transaction=many))))[1] == Code.TOO_LARGE
        many = kv_pb2.Transaction(
            steps=[kv_pb2.Step(kind=kv_pb2.KIND_PUT, key=b"{n}%d" % at, value=b"x" * 700_000) for at in range(3)]
        )
        assert (await code_of(kv.Transact(kv_pb2.TransactRequest(transaction=many))))[1] == Code.TOO_LARGE
        no_value = kv.CompareAndDelete(kv_pb2.CompareAndDeleteRequest(key=b"n"))
        assert (await code_of(no_value))[1] == Code.INVALID_ARGUMENT

    ask(work)
