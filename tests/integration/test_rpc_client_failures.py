"""Guarantee: whatever fails, the client never executes twice, tells what is known and never waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from raftkv.api.pipeline import Batch
from raftkv.client.aio import AsyncClient
from raftkv.client.transport import GrpcTransport, TransportError
from raftkv.commands.base import Write
from raftkv.commands.results import Result
from raftkv.errors import (
    Code,
    ConditionFailed,
    InvalidArgument,
    NoSpace,
    OutcomeUnknown,
    SessionExpired,
    Unavailable,
)
from raftkv.frontend.grpc import kv as service
from raftkv.frontend.grpc import pipeline
from raftkv.v1 import kv_pb2
from tests.rpc_fakes import FakeCluster, calls, failed, started
from tests.waiting import becomes


@pytest.mark.parametrize(
    "code", [Code.UNKNOWN, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.SLOT_MOVING, Code.NOT_CAUGHT_UP]
)
def test_a_retry_keeps_its_name_and_takes_effect_once(code: Code) -> None:
    async def main() -> None:
        async with started(2) as (cluster, kv):
            answers = 0

            def script(op: Any) -> Result:
                nonlocal answers
                answers += 1
                result = cluster.shared.execute(op)
                # Applied, but the client is not told so: the worst case.
                return failed(code) if answers <= 3 else result

            for front in cluster.frontends:
                front.script = script
            written = await kv.put("k", b"v")
            ops = [op for front in cluster.frontends for op in front.ops]
            assert len(ops) == 4
            assert {(op.client, op.seq) for op in ops} == {(ops[0].client, 1)}
            assert [op.key for op in cluster.shared.applied] == [b"k"]
            assert written.version == 1

    asyncio.run(main())


def test_a_lost_connection_is_survived_without_a_second_execution() -> None:
    async def main() -> None:
        async with started(2) as (cluster, kv):
            front = cluster.frontends[0]
            front.script = lambda op: None
            write = asyncio.create_task(kv.put("k", b"v"))
            read = asyncio.create_task(kv.get("k"))
            await becomes(lambda: len(front.held) == 2)
            cluster.shared.execute(front.held[0][0])
            await cluster.stop(1)
            assert (await write).version == 1
            assert (await read) is not None
            assert len(cluster.shared.applied) == 1
            # And the node is used again once it is back and leads.
            front.script = None
            await cluster.start(1)
            cluster.frontends[1].script = lambda op: failed(Code.NOT_LEADER, hint=1)
            assert (await kv.put("k", b"w")).version == 2

    asyncio.run(main())


def test_a_silent_node_is_left_for_another() -> None:
    async def main() -> None:
        async with started(2) as (cluster, kv):
            await kv.put("k", b"v")
            cluster.frontends[0].script = lambda op: None
            await kv.put("k", b"w")
            first, second = cluster.frontends[0].ops[-1], cluster.frontends[1].ops[-1]
            assert (first.client, first.seq) == (second.client, second.seq)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "told"), [("PACKED_KEY", "raftkv-something-else"), ("PACKED_FORM", "1")], ids=["none", "others"]
)
def test_nodes_without_the_same_packed_messages_are_asked_in_the_other_form(
    monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    packed: list[bool] = []

    def parse(message: pipeline._Message) -> int:
        units = read(message)
        packed.append(message.packed)
        return units

    read = pipeline._Message.parse
    monkeypatch.setattr(pipeline._Message, "parse", parse)

    async def use() -> list[Any]:
        async with started() as (cluster, kv):
            version = (await kv.put("k", b"v", ttl=9.0)).version
            assert (await kv.cas("k", b"v", b"w")).version == version + 1
            with pytest.raises(ConditionFailed):
                await kv.put("k", b"x", if_version=version)
            with pytest.raises(ConditionFailed):
                await kv.delete("k", if_version=version)
            assert not await kv.cas("k", None, b"y")
            record = await kv.get("k", consistency="quorum")
            assert record is not None
            assert (record.value, record.version) == (b"w", version + 1)
            assert await kv.delete("k")
            return [replace(op, client=b"") if isinstance(op, Write) else op for op in cluster.frontends[0].ops]

    new = asyncio.run(use())
    assert all(packed)
    packed.clear()
    monkeypatch.setattr(service, name, told)
    assert asyncio.run(use()) == new, "both forms carry the same commands"
    assert packed
    assert not any(packed)


def test_a_broken_stream_does_not_look_like_a_cancelled_task() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            cluster.frontends[0].script = lambda op: None
            endpoint = GrpcTransport().endpoint(cluster.endpoints)
            stream = await endpoint.open()
            reading = asyncio.create_task(stream.read())
            await asyncio.sleep(0)
            stream.cancel()
            with pytest.raises(TransportError):
                await reading
            with pytest.raises(TransportError):
                await stream.write(Batch([], [], 1))
            scanning = asyncio.create_task(endpoint.scan(kv_pb2.ScanRequest(), 5.0))
            await becomes(lambda: cluster.frontends[0].held)
            await endpoint.close()
            with pytest.raises(TransportError):
                await scanning

    asyncio.run(main())


def test_a_node_that_is_frozen_is_left_and_used_again() -> None:
    async def main() -> None:
        async with started(2) as (cluster, kv):
            await kv.put("k", b"v")
            front = cluster.frontends[0]
            front.script = lambda op: None  # alive for TCP, never an answer
            for number in range(8):
                assert (await kv.put(f"k{number}", b"v")).version > 0
            channel = kv._engine._channels[cluster.addresses[0]]
            await becomes(lambda: channel._stream is None)  # it was silent for too long and was broken off
            front.script = None
            cluster.frontends[1].script = lambda op: failed(Code.NOT_LEADER, hint=1)
            assert (await kv.put("back", b"v")).version > 0
            assert cluster.frontends[0].ops[-1].key == b"back"

    asyncio.run(main())


def test_a_late_answer_still_counts() -> None:
    async def main() -> None:
        async with started(1) as (cluster, kv):
            front = cluster.frontends[0]
            front.script = lambda op: None
            write = asyncio.create_task(kv.put("k", b"v"))
            await becomes(lambda: len(front.held) == 2)  # given up once, asked again
            (first, index, reply), *_ = front.held
            reply(index, cluster.shared.execute(first))
            assert (await write).version == 1

    asyncio.run(main())


def test_no_node_at_all_is_definite() -> None:
    """And in time: tests/unit/test_client_deadlines.py."""

    async def main() -> None:
        async with started(1) as (cluster, _):
            address = cluster.addresses[0]
        async with AsyncClient(address, timeout=0.5) as kv:
            with pytest.raises(Unavailable, match=r"no result after 0\.\d+ s \(timeout 0\.5 s, \d+ attempts\)"):
                await kv.put("k", b"v")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "error"),
    [(Code.NO_SPACE, NoSpace), (Code.INVALID_ARGUMENT, InvalidArgument), (Code.INTERNAL, OutcomeUnknown)],
)
def test_final_codes_raise_at_once(code: Code, error: type[Exception]) -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            cluster.frontends[0].script = lambda op: failed(code, "why")
            with pytest.raises(error, match="why"):
                await kv.put("k", b"v")
            assert len(cluster.frontends[0].ops) == 1

    asyncio.run(main())


@pytest.mark.parametrize("operation", ["get", "put", "delete", "cas", "scan"])
def test_a_cancelled_call_harms_no_other(operation: str) -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            front = cluster.frontends[0]
            await kv.put("other", b"v")
            front.script = lambda op: None
            call = asyncio.ensure_future(calls(kv)[operation]())
            await becomes(lambda: front.held)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            front.script = None
            front.release()  # the late result finds nobody
            assert (await kv.get("other")) is not None
            await kv.put("other", b"w")
            last = front.ops[-1]
            assert last.first == last.seq

    asyncio.run(main())


def test_a_call_cancelled_before_it_is_sent_is_not_sent() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            await kv.get("warm")
            call = asyncio.create_task(kv.put("k", b"v"))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await kv.put("l", b"v")
            assert b"k" not in [op.key for op in cluster.frontends[0].ops]

    asyncio.run(main())


def test_an_expired_session_is_renewed_if_nothing_can_have_happened() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            front = cluster.frontends[0]
            refused: list[bytes] = []

            def script(op: Any) -> Result:
                if len(refused) < 3:
                    refused.append(op.client)
                    return failed(Code.SESSION_EXPIRED)
                return cluster.shared.execute(op)

            front.script = script
            assert (await kv.put("k", b"v")).version == 1
            ids = [*refused, front.ops[-1].client]
            assert ids == sorted(set(ids))
            assert front.ops[-1].seq == 1

    asyncio.run(main())


def test_an_expired_session_after_an_unknown_attempt_is_said() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            answers = iter([failed(Code.UNKNOWN), failed(Code.SESSION_EXPIRED)])
            cluster.frontends[0].script = lambda op: next(answers)
            with pytest.raises(SessionExpired):
                await kv.put("k", b"v")

    asyncio.run(main())
