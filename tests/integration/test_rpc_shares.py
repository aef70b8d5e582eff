"""Guarantee: what clients ask for and do not read is bounded, others are served beside it, and who reads gets all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc import StatusCode, aio

from raftkv.api.failures import RETRY_MS
from raftkv.api.grpc_status import result_of
from raftkv.clock import SystemClock
from raftkv.commands.base import Command
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.frontend import resources
from raftkv.frontend.grpc import pipeline, server
from raftkv.frontend.shares import Shares
from raftkv.limits import MAX_BATCH_OPS, MAX_HELD_BYTES, MAX_STARTED_OPS, MAX_VALUE_BYTES, MAX_WAITING_BYTES
from raftkv.v1 import admin_pb2, admin_pb2_grpc, kv_pb2, kv_pb2_grpc
from tests.rpc_fakes import FakeCluster, failed
from tests.waiting import PATIENCE

BIG = b"v" * MAX_VALUE_BYTES
# One connection each, and a window of messages that a reader which stopped does not widen.
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.http2.bdp_probe", 0),
)


@asynccontextmanager
async def connected(cluster: FakeCluster) -> AsyncIterator[aio.Channel]:
    async with aio.insecure_channel(cluster.endpoints, options=_OPTIONS) as channel:
        yield channel


def gets(count: int, first: int = 1) -> kv_pb2.PipelineRequest:
    operations = [kv_pb2.Operation(id=number, key=b"k") for number in range(first, first + count)]
    return kv_pb2.PipelineRequest(operations=operations, timeout_ms=int(PATIENCE * 1000))


async def answers(call: aio.StreamStreamCall[kv_pb2.PipelineRequest, kv_pb2.PipelineResponse], count: int) -> list[int]:
    """Codes of ``count`` answers, which come once each."""
    codes: dict[int, int] = {}
    while len(codes) < count:
        async with asyncio.timeout(PATIENCE):
            response = await call.read()
        assert isinstance(response, kv_pb2.PipelineResponse)
        for result in response.results:
            assert result.id not in codes
            codes[result.id] = result.code
    return list(codes.values())


class Reader:
    """A front end's script: every read finds a large value; counts those that exist at a time."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, op: Command) -> Result:
        self.asked += 1
        return Result(0, 1, BIG)


def test_one_message_of_large_reads_is_answered_in_parts_as_they_are_read() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, connected(cluster) as channel:
            reader = cluster.frontends[0].script = Reader()
            shares = cluster.servers[0].resources.held
            call = kv_pb2_grpc.KVStub(channel).Pipeline(None)
            await call.write(gets(300))
            most = 0
            codes: list[int] = []
            while len(codes) < 300:
                response = await call.read()
                assert isinstance(response, kv_pb2.PipelineResponse)
                codes += [result.code for result in response.results]
                most = max(most, shares.held)
            assert codes == [0] * 300
            # Half of all for the only connection, and the answer that is being written.
            assert most <= MAX_HELD_BYTES // 2 + 4 * MAX_VALUE_BYTES
            assert reader.asked < 4 * 300
            call.cancel()

    asyncio.run(main())


def test_readers_that_stop_take_nothing_from_others() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            front = cluster.frontends[0]
            front.script = Reader()
            shares = cluster.servers[0].resources.held
            channels = [aio.insecure_channel(cluster.endpoints, options=_OPTIONS) for _ in range(8)]
            calls = []
            for channel in channels:
                call = kv_pb2_grpc.KVStub(channel).Pipeline(None)
                await call.write(gets(200))
                calls.append(call)
            while len({stream.peer for stream in cluster.servers[0]._kv._streams if stream._sending}) < len(calls):
                await asyncio.sleep(0.01)
            front.script = lambda op: Result(0, 1, b"small")
            async with connected(cluster) as channel:
                other = kv_pb2_grpc.KVStub(channel).Pipeline(None)
                await other.write(gets(50))
                assert await answers(other, 50) == [0] * 50
                await kv_pb2_grpc.KVStub(channel).Get(kv_pb2.GetRequest(key=b"k"), timeout=PATIENCE)
                other.cancel()
            assert shares.held <= MAX_HELD_BYTES + len(calls) * 4 * MAX_VALUE_BYTES
            for call in calls:
                call.cancel()
            await asyncio.gather(*(channel.close(None) for channel in channels))
            while shares.held:
                await asyncio.sleep(0.01)
            assert shares._parts == {}

    asyncio.run(main())


def test_unary_reads_that_are_read_all_end_well() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, connected(cluster) as channel:
            cluster.frontends[0].script = Reader()
            stub = kv_pb2_grpc.KVStub(channel)
            found = await asyncio.gather(*(stub.Get(kv_pb2.GetRequest(key=b"k"), timeout=PATIENCE) for _ in range(120)))
            assert all(len(one.record.value) == MAX_VALUE_BYTES for one in found)
            assert cluster.servers[0].resources.held.held == 0

    asyncio.run(main())


def test_a_write_that_tells_much_is_executed_once_however_little_room_its_answer_finds() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, connected(cluster) as channel:
            cluster.frontends[0].script = Reader()
            held = cluster.servers[0].resources.held
            stub = kv_pb2_grpc.KVStub(channel)

            async def take(number: int) -> kv_pb2.GetAndDeleteResponse:
                return await stub.GetAndDelete(kv_pb2.GetAndDeleteRequest(key=b"%d" % number), timeout=PATIENCE)

            found = await asyncio.gather(*map(take, range(120)))
            assert all(len(one.record.value) == MAX_VALUE_BYTES for one in found)
            keys = [op.key for op in cluster.frontends[0].ops]
            assert sorted(keys) == sorted(b"%d" % number for number in range(120))
            # Without any room none is begun.
            held.take("somebody else", 2 * MAX_HELD_BYTES)
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.GetAndDelete(kv_pb2.GetAndDeleteRequest(key=b"k"), timeout=0.2)
            assert caught.value.code() in (StatusCode.RESOURCE_EXHAUSTED, StatusCode.DEADLINE_EXCEEDED)
            held.take("somebody else", -2 * MAX_HELD_BYTES)
            assert len(cluster.frontends[0].ops) == len(keys)
            assert held.held == 0

    asyncio.run(main())


def test_a_connection_over_its_share_is_told_when_to_come_back() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, connected(cluster) as channel:
            cluster.frontends[0].script = Reader()
            cluster.servers[0].resources.held.take("somebody else", 2 * MAX_HELD_BYTES)
            with pytest.raises(aio.AioRpcError) as caught:
                await kv_pb2_grpc.KVStub(channel).Put(kv_pb2.PutRequest(key=b"k", value=BIG), timeout=PATIENCE)
            assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
            refused = result_of(caught.value)
            assert (refused.code, refused.retry_ms) == (Code.OVERLOADED, RETRY_MS)
            # What is small, and what operators ask, is answered beside it.
            assert (await kv_pb2_grpc.KVStub(channel).Put(kv_pb2.PutRequest(key=b"k"), timeout=PATIENCE)).version == 1
            await admin_pb2_grpc.AdminStub(channel).GetStatus(admin_pb2.GetStatusRequest(), timeout=PATIENCE)

    asyncio.run(main())


@pytest.mark.parametrize(("distance", "most"), [(0.0, MAX_STARTED_OPS // 2), (0.1, 3 * MAX_STARTED_OPS // 2)])
def test_operations_begun_are_bounded_and_the_rest_is_begun_as_answers_come(distance: float, most: int) -> None:
    """More where nodes are far from each other: those that are on their way between nodes hold nobody up."""

    async def main() -> None:
        async with FakeCluster() as cluster, connected(cluster) as channel:
            front = cluster.frontends[0]
            front.far = distance
            front.script = lambda op: None
            call = kv_pb2_grpc.KVStub(channel).Pipeline(None)
            await call.write(gets(MAX_BATCH_OPS))
            while len(front.held) < most:
                await asyncio.sleep(0.01)
            front.script = lambda op: Result(0)
            async with connected(cluster) as other:
                second = kv_pb2_grpc.KVStub(other).Pipeline(None)
                await second.write(gets(10))
                assert await answers(second, 10) == [0] * 10
                second.cancel()
            assert len(front.held) <= most + 3
            front.release()
            assert await answers(call, MAX_BATCH_OPS) == [0] * MAX_BATCH_OPS
            call.cancel()

    asyncio.run(main())


def test_a_read_that_another_node_had_no_room_for_is_asked_again() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, connected(cluster) as channel:
            refusals = [failed(Code.OVERLOADED, retry_ms=0)] * 7
            front = cluster.frontends[0]
            front.script = lambda op: refusals.pop() if refusals else Result(0, 1, b"found")
            stub = kv_pb2_grpc.KVStub(channel)
            call = stub.Pipeline(None)
            await call.write(gets(5))
            assert await answers(call, 5) == [0] * 5
            refusals += [failed(Code.OVERLOADED, retry_ms=0)] * 2
            assert (await stub.Get(kv_pb2.GetRequest(key=b"k"), timeout=PATIENCE)).record.value == b"found"
            call.cancel()

    asyncio.run(main())


def test_messages_that_wait_beyond_their_share_are_refused_and_surely_not_executed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, connected(cluster) as channel:
            front, service = cluster.frontends[0], cluster.servers[0]._kv
            service.resources.held.take("somebody else", 2 * MAX_HELD_BYTES)
            service.resources.waiting.take("somebody else", MAX_WAITING_BYTES)
            call = kv_pb2_grpc.KVStub(channel).Pipeline(None)
            await call.write(gets(3))
            assert await answers(call, 3) == [Code.OVERLOADED] * 3
            assert front.ops == []
            service.resources.held.take("somebody else", -2 * MAX_HELD_BYTES)
            while service.resources.held.waiting or service.resources.turns.waiting:
                await asyncio.sleep(0)
            await call.write(gets(3, first=10))
            assert await answers(call, 3) == [0] * 3
            call.cancel()

    asyncio.run(main())


def test_what_waits_until_its_deadline_is_refused_and_surely_not_executed() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, connected(cluster) as channel:
            front, service = cluster.frontends[0], cluster.servers[0]._kv
            service.resources.held.take("somebody else", 2 * MAX_HELD_BYTES)
            call = kv_pb2_grpc.KVStub(channel).Pipeline(None)
            request = gets(3)
            request.timeout_ms = 1
            await call.write(request)
            while not service.resources.held.waiting:
                await asyncio.sleep(0.01)
            # The millisecond passes.
            await asyncio.sleep(0.01)
            service.resources.held.take("somebody else", -2 * MAX_HELD_BYTES)
            assert await answers(call, 3) == [Code.OVERLOADED] * 3
            assert front.ops == []
            call.cancel()

    asyncio.run(main())


def test_a_stream_that_ends_tells_that_its_caller_is_gone() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, connected(cluster) as channel:
            front = cluster.frontends[0]
            front.script = lambda op: None
            stub = kv_pb2_grpc.KVStub(channel)
            stream = stub.Pipeline(None)
            await stream.write(gets(1))
            call = stub.Get(kv_pb2.GetRequest(key=b"k"), timeout=PATIENCE)
            while len(front.callers) < 2:
                await asyncio.sleep(0.01)
            assert not any(caller.gone for caller in front.callers)
            stream.cancel()
            call.cancel()
            while not all(caller.gone for caller in front.callers):
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_connection_that_reads_nothing_is_closed_if_others_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "STALLED_READER", 0.2)
    monkeypatch.setattr(server, "_LOOK", 0.05)
    monkeypatch.setattr(resources, "MAX_HELD_BYTES", 12 * MAX_VALUE_BYTES)

    async def main() -> None:
        async with FakeCluster() as cluster:
            front = cluster.frontends[0]
            front.script = Reader()
            channels = [aio.insecure_channel(cluster.endpoints, options=_OPTIONS) for _ in range(12)]
            calls = [kv_pb2_grpc.KVStub(channel).Pipeline(None) for channel in channels]
            for call in calls:
                await call.write(gets(20))
            # However many hold all that there is, somebody who reads is served in the end.
            async with connected(cluster) as channel:
                other = kv_pb2_grpc.KVStub(channel).Pipeline(None)
                await other.write(gets(30))
                assert await answers(other, 30) == [0] * 30
                other.cancel()
            for call in calls:
                call.cancel()
            await asyncio.gather(*(channel.close(None) for channel in channels))

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert "does not read its answers" in caplog.text


async def ask(channel: aio.Channel, path: str, method: MethodDescriptor, request: bytes) -> None:
    if method.client_streaming:
        stream = channel.stream_stream(path, None, None)(None)
        await stream.write(request)
        await stream.read()
    elif method.server_streaming:
        await channel.unary_stream(path, None, None)(request).read()
    else:
        await channel.unary_unary(path, None, None)(request)


def test_malformed_messages_are_invalid_arguments_and_leave_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> list[tuple[str, StatusCode]]:
        found = []
        async with FakeCluster() as cluster, connected(cluster) as channel:
            services = [kv_pb2.DESCRIPTOR.services_by_name["KV"], admin_pb2.DESCRIPTOR.services_by_name["Admin"]]
            methods = [(service.full_name, method) for service in services for method in service.methods]
            for service, method in methods:
                path = f"/{service}/{method.name}"
                for bad in (b"\xff\xff\xff", b"\x0a\x7f", b"\x0a"):
                    with pytest.raises(aio.AioRpcError) as caught:
                        await ask(channel, path, method, bad)
                    found.append((path, caught.value.code()))
                    assert result_of(caught.value).code == Code.INVALID_ARGUMENT
            for path in ("/grpc.health.v1.Health/Check",):
                with pytest.raises(aio.AioRpcError) as caught:
                    await channel.unary_unary(path, None, None)(b"\xff\xff\xff")
                found.append((path, caught.value.code()))
            reflecting = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
            reflection = channel.stream_stream(reflecting, None, None)(None)
            await reflection.write(b"\xff\xff\xff")
            with pytest.raises(aio.AioRpcError) as caught:
                await reflection.read()
            found.append(("reflection", caught.value.code()))
        return found

    with caplog.at_level(logging.INFO):
        found = asyncio.run(main())
    assert {code for _, code in found} == {StatusCode.INVALID_ARGUMENT}
    assert [record for record in caplog.records if record.exc_info or record.levelno >= logging.WARNING] == []


def test_refusals_are_a_problem_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, connected(cluster) as channel:
            front, node = cluster.frontends[0], cluster.servers[0]
            assert list(node.resources.problems()) == []
            front.script = lambda op: failed(Code.OVERLOADED, "too much")
            with pytest.raises(aio.AioRpcError):
                await kv_pb2_grpc.KVStub(channel).Get(kv_pb2.GetRequest(key=b"k"))
            assert [problem.kind for problem in node.resources.problems()] == ["overloaded"]
            assert [problem.kind for problem in node.resources.problems()] == ["overloaded"]
            monkeypatch.setattr(resources, "_REMEMBERED", 0.0)
            assert list(node.resources.problems()) == []

    asyncio.run(main())


def test_shares_are_bounds_for_one_connection_too() -> None:
    held = Shares(MAX_HELD_BYTES, SystemClock())
    assert pipeline._OVERHEAD * MAX_STARTED_OPS <= MAX_HELD_BYTES
    assert held.room("any") == MAX_HELD_BYTES
