"""Guarantee: the gRPC server answers what it is asked, and bad input gets a clear error and harms nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from raftkv.api.grpc_status import CLUSTER_KEY, NODE_KEY, result_of
from raftkv.api.pipeline import PACKED_FORM, PACKED_KEY, Batch, answers_of, request_of
from raftkv.clock import SystemClock
from raftkv.commands.ranges import Scan
from raftkv.commands.records import Cas, Delete, Get, Put
from raftkv.commands.registry import Piped, encode
from raftkv.commands.results import Result, TransactionAnswer
from raftkv.commands.transactions import Check, PutStep, Transact
from raftkv.commands.updates import Increment
from raftkv.errors import Code, ListenError
from raftkv.frontend.grpc.server import GrpcServer
from raftkv.frontend.resources import Resources
from raftkv.limits import (
    DEFAULT_TIMEOUT,
    MAX_BATCH_OPS,
    MAX_MESSAGE_BYTES,
    MAX_STARTED_OPS,
    MAX_STREAM_OPS,
    MAX_VALUE_BYTES,
)
from raftkv.v1 import admin_pb2, admin_pb2_grpc, kv_pb2, kv_pb2_grpc
from shards.slots import SLOT_RULE, slot_of
from tests.rpc_fakes import CLUSTER, SLOTS, FakeCluster, FakeFrontend, failed
from tests.waiting import PATIENCE

CLIENT = b"c" * 16


def test_unary_operations() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            kv = kv_pb2_grpc.KVStub(channel)
            assert not (await kv.Get(kv_pb2.GetRequest(key=b"k"))).HasField("record")
            assert (await kv.Put(kv_pb2.PutRequest(key=b"k", value=b""))).version == 1
            record = (await kv.Get(kv_pb2.GetRequest(key=b"k"))).record
            assert (record.key, record.value, record.version, record.HasField("ttl_ms")) == (b"k", b"", 1, False)
            swap = kv_pb2.CompareAndSwapRequest(key=b"k", expected=b"", value=b"x")
            assert (await kv.CompareAndSwap(swap)).swapped
            refused = await kv.CompareAndSwap(swap)
            assert (refused.swapped, refused.version) == (False, 2)
            assert (await kv.Delete(kv_pb2.DeleteRequest(key=b"k"))).existed
            assert not (await kv.Delete(kv_pb2.DeleteRequest(key=b"k"))).existed

    asyncio.run(main())


def test_the_status_says_in_its_details_what_failed_and_whether_surely() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            kv = kv_pb2_grpc.KVStub(channel)
            front = cluster.frontends[0]
            for result, status in (
                (failed(Code.CONDITION_FAILED, "no", version=7), StatusCode.FAILED_PRECONDITION),
                (failed(Code.NOT_LEADER, "no", hint=3), StatusCode.UNAVAILABLE),
                (failed(Code.UNKNOWN, "no"), StatusCode.UNAVAILABLE),
                (failed(Code.OVERLOADED, "no", retry_ms=250), StatusCode.RESOURCE_EXHAUSTED),
                (failed(Code.SESSION_EXPIRED, "no"), StatusCode.ABORTED),
                (failed(Code.DEADLINE_EXCEEDED, "no"), StatusCode.DEADLINE_EXCEEDED),
            ):
                front.script = lambda op, result=result: result
                with pytest.raises(aio.AioRpcError) as caught:
                    await kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v"))
                assert caught.value.code() is status
                assert result_of(caught.value) == result

    asyncio.run(main())


def test_the_clients_deadline_is_the_operations_budget() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            kv = kv_pb2_grpc.KVStub(channel)
            await kv.Get(kv_pb2.GetRequest(key=b"k"), timeout=20.0)
            await kv.Get(kv_pb2.GetRequest(key=b"k"))
            limited, default = (timeout for _, timeout in cluster.frontends[0].batches)
            # gRPC writes a timeout with few digits and rounds it up: twenty seconds may leave as 20.1.
            assert 0 < limited <= 20.2
            assert default == DEFAULT_TIMEOUT

    asyncio.run(main())


def test_oversize_and_invalid_requests_get_typed_errors() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            options = (("grpc.max_send_message_length", -1),)
            async with aio.insecure_channel(cluster.endpoints, options=options) as channel:
                kv = kv_pb2_grpc.KVStub(channel)
                for request, code in (
                    (kv_pb2.PutRequest(key=b""), Code.INVALID_ARGUMENT),
                    (kv_pb2.PutRequest(key=b"k", value=b"v" * (MAX_VALUE_BYTES + 1)), Code.TOO_LARGE),
                ):
                    with pytest.raises(aio.AioRpcError) as caught:
                        await kv.Put(request)
                    assert result_of(caught.value).code == code
                with pytest.raises(aio.AioRpcError) as caught:
                    await kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v" * MAX_MESSAGE_BYTES))
                assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
                assert (await kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v" * MAX_VALUE_BYTES))).version == 1
                assert not any(
                    isinstance(op, Put) and len(op.value) > MAX_VALUE_BYTES for op in cluster.frontends[0].ops
                )

    asyncio.run(main())


def test_a_pipeline_says_who_it_is_before_it_reads() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            call = kv_pb2_grpc.KVStub(channel).Pipeline(None)
            metadata = dict(iter(await call.initial_metadata()))
            assert metadata[CLUSTER_KEY] == CLUSTER
            assert metadata[NODE_KEY] == "1"
            call.cancel()

    asyncio.run(main())


async def exchange(
    channel: aio.Channel, request: kv_pb2.PipelineRequest, count: int
) -> dict[int, kv_pb2.OperationResult]:
    """Results of one message, by id, on a stream of its own."""
    call = kv_pb2_grpc.KVStub(channel).Pipeline(None)
    await call.write(request)
    await call.done_writing()
    results: dict[int, kv_pb2.OperationResult] = {}
    async for response in call:
        for result in response.results:
            assert result.id not in results
            results[result.id] = result
    assert len(results) == count
    return results


def test_a_message_is_one_batch_and_a_bad_operation_harms_no_other() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            request = kv_pb2.PipelineRequest(client_id=CLIENT, first_incomplete=4, timeout_ms=1500)
            request.operations.add(id=1, kind=kv_pb2.KIND_PUT, key=b"a", value=b"1", sequence=5)
            request.operations.add(id=2, kind=kv_pb2.KIND_PUT, key=b"", value=b"1", sequence=6)
            request.operations.add(id=3, kind=kv_pb2.KIND_PUT, key=b"b", value=b"v" * (MAX_VALUE_BYTES + 1), sequence=7)
            request.operations.add(id=4, kind=kv_pb2.Kind.ValueType(55), key=b"b")
            request.operations.add(id=5, key=b"a")
            results = await exchange(channel, request, 5)
            assert [results[number].code for number in range(1, 6)] == [0, Code.INVALID_ARGUMENT, Code.TOO_LARGE, 2, 0]
            assert results[2].detail
            front = cluster.frontends[0]
            assert [len(batch) for batch, _ in front.batches] == [2]
            assert 0 < front.batches[0][1] <= 1.5
            assert front.ops[0] == Put(slot_of(b"a", SLOTS), b"a", b"1", client=CLIENT, seq=5, first=4)

    asyncio.run(main())


async def exchange_packed(channel: aio.Channel, batch: Batch) -> dict[int, Result]:
    """Results of one packed message, by id, on a stream of its own."""
    call = kv_pb2_grpc.KVStub(channel).Pipeline(None)
    assert dict(await call.initial_metadata())[PACKED_KEY] == PACKED_FORM
    await call.write(request_of(batch, packed=True))
    await call.done_writing()
    results: dict[int, Result] = {}
    async for response in call:
        assert not response.results
        answers = answers_of(response)
        results.update(zip(answers.ids, answers.results, strict=True))
    return results


def test_a_packed_message_is_one_batch_and_a_bad_operation_harms_no_other() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            a, b = slot_of(b"a", SLOTS), slot_of(b"b", SLOTS)
            ops: list[Piped] = [
                Put(a, b"a", b"1", client=CLIENT, seq=5, first=4),
                Put(a, b"b", b"1"),
                Put(b, b"b", b"v" * (MAX_VALUE_BYTES + 1)),
                Put(b, b"b", b"", client=CLIENT, seq=3, first=4),
                Put(b, b"b", b"", client=b"short", seq=3, first=1),
                Get(a, b"a"),
                Delete(b, b"b"),
                Cas(b, b"b", b"x"),
            ]
            results = await exchange_packed(channel, Batch(list(range(1, 9)), ops, 1500))
            assert [results[number].code for number in range(1, 9)] == [0, 2, Code.TOO_LARGE, 2, 2, 0, 0, 0]
            assert results[6] == Result(0, 1, b"1")
            front = cluster.frontends[0]
            assert front.ops == [ops[0], *ops[5:]]
            assert [len(batch) for batch, _ in front.batches] == [4]
            assert 0 < front.batches[0][1] <= 1.5
            # A node that knows no slots yet says that, whatever slot was named.
            front.map = None
            front.script = lambda _: failed(Code.UNAVAILABLE)
            assert (await exchange_packed(channel, Batch([7], [Get(a, b"b")], 1500)))[7].code == Code.UNAVAILABLE

    asyncio.run(main())


def test_packed_transactions_are_of_the_slot_that_they_name() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            front, slot = cluster.frontends[0], slot_of(b"{a}1", SLOTS)
            done = Result(0, answer=TransactionAnswer(True, ((3, None, -1), (2, b"5", 70)), 7))
            front.script = lambda op: done if isinstance(op, Transact) else Result(0, 4, b"-3")
            name: dict[str, Any] = {"client": CLIENT, "seq": 5, "first": 4}
            put = PutStep(b"{a}1", b"v")
            ops: list[Piped] = [
                Transact(slot, (Check(b"{a}2", 3),), (put,), **name),
                Transact(slot, (Check(b"elsewhere"),), (put,), **name),
                Transact(slot + 1, (), (put,)),
                Transact(slot, (), (put, put)),
                Transact(slot, (), ()),
                Increment(slot, b"{a}n", -3, **name),
            ]
            results = await exchange_packed(channel, Batch(list(range(1, 7)), ops, 1500))
            assert results[1] == done
            assert results[6] == Result(0, 4, b"-3")
            assert [results[number].code for number in (2, 3, 4, 5)] == [Code.INVALID_ARGUMENT] * 4
            assert front.ops == [ops[0], ops[5]]

    asyncio.run(main())


@pytest.mark.parametrize(
    "message",
    [
        kv_pb2.PipelineRequest(packed=b"garbage"),
        kv_pb2.PipelineRequest(packed=encode([[1], [Scan(0, b"", b"", b"\xff" * 32)]])),
        kv_pb2.PipelineRequest(packed=encode([[1], [Get(0, b"")]])),
        kv_pb2.PipelineRequest(packed=encode([[1, 2], [Get(0, b"k")]])),
        kv_pb2.PipelineRequest(packed=encode([[-1], [Get(0, b"k")]])),
        kv_pb2.PipelineRequest(packed=encode([[1], [Get(0, b"k")]]), operations=[kv_pb2.Operation(id=1, key=b"k")]),
        kv_pb2.PipelineRequest(packed=encode([[1] * (MAX_BATCH_OPS + 1), [Get(0, b"k")] * (MAX_BATCH_OPS + 1)])),
    ],
    ids=["garbage", "kind", "key", "ids", "id", "both forms", "many"],
)
def test_malformed_packed_messages_end_that_stream_only(message: kv_pb2.PipelineRequest) -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            call = kv_pb2_grpc.KVStub(channel).Pipeline(None)
            await call.write(message)
            with pytest.raises(aio.AioRpcError) as caught:
                await call.read()
            assert result_of(caught.value).code == Code.INVALID_ARGUMENT
            results = await exchange_packed(channel, Batch([1], [Get(slot_of(b"k", SLOTS), b"k")], 1000))
            assert results == {1: Result(0)}
            assert len(cluster.frontends[0].ops) == 1

    asyncio.run(main())


def test_replies_of_one_turn_share_a_message_and_late_ones_still_come() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            front = cluster.frontends[0]
            front.script = lambda op: None if op.key == b"slow" else Result(0, 1, b"v")
            call = kv_pb2_grpc.KVStub(channel).Pipeline(None)
            operations = [kv_pb2.Operation(id=number, key=b"slow" if number == 7 else b"k") for number in range(100)]
            await call.write(kv_pb2.PipelineRequest(operations=operations))
            first = await call.read()
            assert isinstance(first, kv_pb2.PipelineResponse)
            assert sorted(result.id for result in first.results) == [number for number in range(100) if number != 7]
            assert first.map_epoch == 1
            front.release()
            second = await call.read()
            assert isinstance(second, kv_pb2.PipelineResponse)
            assert [result.id for result in second.results] == [7]
            call.cancel()

    asyncio.run(main())


def test_a_stream_is_read_no_further_than_its_limit_until_answers_leave() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            front = cluster.frontends[0]
            front.script = lambda op: None
            call = kv_pb2_grpc.KVStub(channel).Pipeline(None)
            messages = MAX_STREAM_OPS // MAX_BATCH_OPS + 1
            for message in range(messages):
                numbers = range(message * MAX_BATCH_OPS, (message + 1) * MAX_BATCH_OPS)
                await call.write(
                    kv_pb2.PipelineRequest(operations=[kv_pb2.Operation(id=number, key=b"k") for number in numbers])
                )
            while len(front.held) < MAX_STARTED_OPS // 2:
                await asyncio.sleep(0.01)
            front.script = lambda op: Result(0)
            async with aio.insecure_channel(cluster.endpoints, (("grpc.use_local_subchannel_pool", 1),)) as other:
                await kv_pb2_grpc.KVStub(other).Get(kv_pb2.GetRequest(key=b"other"))
            # The rest waits, the other RPC does not.
            assert len(front.ops) <= MAX_STARTED_OPS // 2 + 2
            front.release()
            answered = 0
            while answered < messages * MAX_BATCH_OPS:
                response = await call.read()
                assert isinstance(response, kv_pb2.PipelineResponse)
                answered += len(response.results)
            call.cancel()

    asyncio.run(main())


def test_large_results_are_split_over_messages() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            options = (("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),)
            async with aio.insecure_channel(cluster.endpoints, options=options) as channel:
                cluster.frontends[0].script = lambda op: Result(0, 1, b"v" * MAX_VALUE_BYTES)
                request = kv_pb2.PipelineRequest(
                    operations=[kv_pb2.Operation(id=number, key=b"k") for number in range(40)]
                )
                results = await exchange(channel, request, 40)
                assert all(len(result.value) == MAX_VALUE_BYTES for result in results.values())

    asyncio.run(main())


def test_too_many_operations_end_that_stream_only() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            kv = kv_pb2_grpc.KVStub(channel)
            other = kv.Pipeline(None)
            await other.write(kv_pb2.PipelineRequest(operations=[kv_pb2.Operation(id=1, key=b"k")]))
            assert await other.read()
            call = kv.Pipeline(None)
            operations = [kv_pb2.Operation(id=number, key=b"k") for number in range(MAX_BATCH_OPS + 1)]
            await call.write(kv_pb2.PipelineRequest(operations=operations))
            with pytest.raises(aio.AioRpcError) as caught:
                await call.read()
            assert result_of(caught.value).code == Code.TOO_LARGE
            await other.write(kv_pb2.PipelineRequest(operations=[kv_pb2.Operation(id=2, key=b"k")]))
            assert await other.read()
            other.cancel()

    asyncio.run(main())


def test_bytes_that_are_no_message_end_that_stream_only() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            raw = channel.stream_stream("/raftkv.v1.KV/Pipeline", None, None)(None)
            await raw.write(b"\xff\xff\xff\xff")
            with pytest.raises(aio.AioRpcError):
                await raw.read()
            unary = channel.unary_unary("/raftkv.v1.KV/Get", None, None)
            with pytest.raises(aio.AioRpcError):
                await unary(b"\xff\xff\xff\xff")
            assert (await kv_pb2_grpc.KVStub(channel).Put(kv_pb2.PutRequest(key=b"k"))).version == 1

    asyncio.run(main())


def test_a_client_that_goes_away_harms_nobody() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            front = cluster.frontends[0]
            front.script = lambda op: None
            async with aio.insecure_channel(cluster.endpoints) as channel:
                call = kv_pb2_grpc.KVStub(channel).Pipeline(None)
                await call.write(kv_pb2.PipelineRequest(operations=[kv_pb2.Operation(id=1, key=b"k")]))
                while not front.held:
                    await asyncio.sleep(0.01)
                call.cancel()
            front.script = None
            front.release()
            async with aio.insecure_channel(cluster.endpoints) as channel:
                assert (await kv_pb2_grpc.KVStub(channel).Put(kv_pb2.PutRequest(key=b"k"))).version == 1

    asyncio.run(main())


def test_garbage_on_the_port_harms_nothing() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            host, port = cluster.endpoints.split(":")
            for garbage in (
                b"GET / HTTP/1.1\r\n\r\n",
                b"\x00" * 4096,
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 512,
            ):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(garbage)
                async with asyncio.timeout(PATIENCE):
                    try:
                        while await reader.read(65536):
                            pass
                    except ConnectionError:
                        pass
                writer.close()
            async with aio.insecure_channel(cluster.endpoints) as channel:
                assert (await kv_pb2_grpc.KVStub(channel).Put(kv_pb2.PutRequest(key=b"k"))).version == 1

    asyncio.run(main())


def test_map_and_status_are_told() -> None:
    async def main() -> None:
        async with FakeCluster(3) as cluster, aio.insecure_channel(cluster.addresses[1]) as channel:
            admin = admin_pb2_grpc.AdminStub(channel)
            known = await admin.GetMap(admin_pb2.GetMapRequest(slot_rule=SLOT_RULE))
            assert (known.cluster_id, known.epoch, known.slots) == (CLUSTER, 1, 256)
            assert [(node.id, node.address) for node in known.nodes] == list(enumerate(cluster.addresses, 1))
            assert [(group.id, list(group.voters), group.leader) for group in known.groups] == [
                (0, [1, 2, 3], 1),
                (1, [1, 2, 3], 1),
            ]
            status = await admin.GetStatus(admin_pb2.GetStatusRequest())
            assert (status.node, status.ready, status.uptime_seconds) == (2, True, 1.5)
            replica = status.replicas[0]
            assert (replica.role, replica.term, dict(replica.match)) == (admin_pb2.ROLE_LEADER, 3, {2: 10, 3: 9})
            cluster.frontends[1].map = None
            with pytest.raises(aio.AioRpcError) as caught:
                await admin.GetMap(admin_pb2.GetMapRequest(slot_rule=SLOT_RULE))
            assert result_of(caught.value).code == Code.UNAVAILABLE

    asyncio.run(main())


def test_health_is_serving_exactly_while_the_node_is_ready() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
            for service in ("", "raftkv.v1.KV", "raftkv.v1.Admin"):
                assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == serving
            with pytest.raises(aio.AioRpcError) as caught:
                await health.Check(health_pb2.HealthCheckRequest(service="other"))
            assert caught.value.code() is StatusCode.NOT_FOUND
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == serving
            cluster.frontends[0].ready = False
            assert (await watch.read()).status == not_serving
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == not_serving
            watch.cancel()

    asyncio.run(main())


def test_reflection_lists_the_services() -> None:
    async def main() -> None:
        async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            yield reflection_pb2.ServerReflectionRequest(file_containing_symbol="raftkv.v1.KV")

        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            answers = [answer async for answer in stub.ServerReflectionInfo(ask())]
            names = {service.name for service in answers[0].list_services_response.service}
            assert names >= {"raftkv.v1.KV", "raftkv.v1.Admin", "grpc.health.v1.Health"}
            assert answers[1].file_descriptor_response.file_descriptor_proto

    asyncio.run(main())


def test_a_port_in_use_is_a_clear_error() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            second = GrpcServer(FakeFrontend(), cluster.endpoints, Resources(SystemClock()))
            with pytest.raises(ListenError, match=f"{cluster.endpoints}.*in use"):
                await second.start()
            await second.stop()

    asyncio.run(main())


def test_stopping_answers_what_was_read() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            front = cluster.frontends[0]
            front.script = lambda op: None
            call = kv_pb2_grpc.KVStub(channel).Pipeline(None)
            await call.write(kv_pb2.PipelineRequest(operations=[kv_pb2.Operation(id=1, key=b"k")]))
            while not front.held:
                await asyncio.sleep(0.01)
            stopping = asyncio.create_task(cluster.servers[0].stop(2 * PATIENCE))
            await asyncio.sleep(0)
            front.release()
            response = await call.read()
            assert isinstance(response, kv_pb2.PipelineResponse)
            assert [result.id for result in response.results] == [1]
            assert await call.code() is StatusCode.OK
            async with asyncio.timeout(PATIENCE):
                await stopping

    asyncio.run(main())


def test_stopping_again_does_not_wait_for_what_is_unanswered() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            front = cluster.frontends[0]
            front.script = lambda op: None
            call = kv_pb2_grpc.KVStub(channel).Get(kv_pb2.GetRequest(key=b"k"), timeout=60)
            while not front.held:
                await asyncio.sleep(0.01)
            stopping = asyncio.create_task(cluster.servers[0].stop(3600.0))
            await asyncio.sleep(0)
            assert not stopping.done()
            await cluster.servers[0].stop(0)
            await stopping
            assert await call.code() is not StatusCode.OK

    asyncio.run(main())
