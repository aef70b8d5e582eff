"""Guarantee: what stands before the services asks who may go on, and tells no secrets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from raftkv.clock import SystemClock
from raftkv.commands.rights import Right
from raftkv.errors import PermissionDenied
from raftkv.frontend.grpc.guard import Guard, request_id_of
from raftkv.frontend.port import Caller, OpenDoor
from raftkv.frontend.shares import Shares
from raftkv.v1 import admin_pb2, kv_pb2
from tests.rpc_fakes import FakeCluster


class Door(OpenDoor):
    """Of a cluster with users, whose caller may do everything until ``over``."""

    closed = True
    over = False

    def check(self, caller: Caller, right: Right, action: str) -> None:
        if self.over:
            raise PermissionDenied(f"{caller.peer} may not {action} any more")


class Context:
    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def time_remaining(self) -> float:
        return 60.0

    def add_done_callback(self, _: Callable[..., None]) -> None:
        return

    async def abort(self, status: grpc.StatusCode, text: str, metadata: object = ()) -> None:
        raise ConnectionAbortedError(status, text)


async def endless(*_: object) -> AsyncIterator[int]:
    while True:
        yield 1


async def echo(requests: AsyncIterator[int], _: object) -> AsyncIterator[int]:
    async for request in requests:
        yield request


def guarded(door: Door, name: str, handler: Any) -> Any:
    clock = SystemClock()
    return Guard(None, Shares(10, clock), Shares(10**6, clock), clock, door, lambda *_: Right.BACKUP)._guarded(
        "service", name, handler
    )


def ends(answers: Any, door: Door) -> None:
    async def main() -> None:
        assert [await anext(answers) for _ in range(3)] == [1, 1, 1]
        door.over = True
        with pytest.raises(ConnectionAbortedError) as ended:
            await anext(answers)
        assert ended.value.args[0] is grpc.StatusCode.PERMISSION_DENIED

    asyncio.run(main())


def test_a_long_answer_ends_when_its_user_may_not_have_it_any_more() -> None:
    door = Door()
    handler = guarded(door, "ReadSnapshot", grpc.unary_stream_rpc_method_handler(endless))
    ends(handler.unary_stream(object(), Context()), door)


def test_so_does_a_long_conversation() -> None:
    door = Door()
    handler = guarded(door, "Talk", grpc.stream_stream_rpc_method_handler(echo))
    ends(handler.stream_stream(endless(), Context()), door)


def test_a_join_token_is_no_request_id() -> None:
    put = kv_pb2.PutRequest(request_id=kv_pb2.RequestId(client_id=b"c" * 16, sequence=7, first_incomplete=1))
    assert request_id_of(put) == f"{(b'c' * 16).hex()}/7"
    assert request_id_of(admin_pb2.ChangeRequest(token=b"t" * 16)) == (b"t" * 16).hex()
    assert request_id_of(admin_pb2.JoinRequest(token="a secret")) == ""
    assert request_id_of(kv_pb2.GetRequest()) == ""


def test_the_state_of_the_meta_group_is_not_given_away() -> None:
    """It has what users prove themselves with."""

    async def main() -> None:
        async with FakeCluster() as cluster, grpc.aio.insecure_channel(cluster.endpoints) as channel:
            read = channel.unary_stream(
                "/raftkv.v1.Admin/ReadSnapshot",
                admin_pb2.ReadSnapshotRequest.SerializeToString,
                admin_pb2.ReadSnapshotResponse.FromString,
            )
            assert [one.chunk async for one in read(admin_pb2.ReadSnapshotRequest(group=1))] == [b"one", b"two"]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                _ = [one async for one in read(admin_pb2.ReadSnapshotRequest(group=0))]
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(main())
