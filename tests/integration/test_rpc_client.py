"""Guarantee: the client follows leaders, never executes twice, tells what is known and never waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

import raftkv
from raftkv.client.aio import AsyncClient
from raftkv.client.forks import forks
from raftkv.client.transport import GrpcTransport, TransportError
from raftkv.clock import SystemClock
from raftkv.errors import (
    Code,
    ConditionFailed,
    DeadlineExceeded,
    InvalidArgument,
    NoSpace,
    OutcomeUnknown,
    Overloaded,
    SessionExpired,
    TooLarge,
    Unavailable,
    UsageError,
    WrongCluster,
)
from raftkv.limits import MAX_VALUE_BYTES
from raftkv.store.operations import Kind, Mode, Op, Result
from raftkv.v1 import kv_pb2
from tests.rpc_fakes import FakeCluster, Shared, failed, one_group_map


@asynccontextmanager
async def started(
    count: int = 1, timeout: float = 5.0, seeds: int | None = None
) -> AsyncIterator[tuple[FakeCluster, AsyncClient]]:
    async with FakeCluster(count) as cluster, AsyncClient(cluster.addresses[:seeds], timeout=timeout) as kv:
        yield cluster, kv


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that another task brings about."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def elapsed_since(start: float) -> float:
    return SystemClock().now() - start


def test_every_call_does_what_it_says() -> None:
    async def main() -> None:
        async with started(3) as (cluster, kv):
            assert await kv.get("k") is None
            written = await kv.put("k", "wert", ttl=1.5)
            record = await kv.get(b"k")
            assert record == raftkv.Record(b"k", b"wert", written.version, None)
            with pytest.raises(ConditionFailed) as caught:
                await kv.put("k", b"x", if_version=raftkv.ABSENT)
            assert caught.value.version == written.version
            await kv.put("k", b"x", if_version=written.version)
            assert await kv.cas("k", expected=b"x", value=b"y")
            assert not await kv.cas("k", b"x", b"z")
            assert await kv.cas("new", None, b"z")
            with pytest.raises(ConditionFailed):
                await kv.delete("k", if_version=1)
            assert await kv.delete("k")
            assert not await kv.delete("k")
            puts = [op for op in cluster.shared.applied if op.kind == Kind.PUT]
            assert puts[0].ttl == 1500
            assert [op.seq for op in cluster.shared.applied] == list(range(1, 10))

    asyncio.run(main())


def test_time_left_becomes_a_moment() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            cluster.frontends[0].script = lambda op: Result(0, 4, b"v", 60_000)
            before = SystemClock().wall()
            record = await kv.get("k")
            assert record is not None
            assert record.expires_at is not None
            assert before + 60 <= record.expires_at <= SystemClock().wall() + 60

    asyncio.run(main())


def test_calls_of_one_turn_share_a_message_to_the_leader() -> None:
    async def main() -> None:
        async with started(3) as (cluster, kv):
            cluster.lead(2)
            await kv.get("warm")
            front = cluster.frontends[1]
            front.batches.clear()
            await asyncio.gather(*(kv.put(f"k{i}", b"v") for i in range(50)))
            assert [len(batch) for batch, _ in front.batches] == [50]
            assert {op.client for op in front.ops} == {front.ops[0].client}
            assert [op.first for op in front.ops] == [1] * 50
            assert not cluster.frontends[0].batches
            assert not cluster.frontends[2].batches

    asyncio.run(main())


def test_first_incomplete_follows_the_calls_that_are_waited_for() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            front = cluster.frontends[0]
            front.script = lambda op: None if op.key == b"slow" else cluster.shared.execute(op)
            slow = asyncio.create_task(kv.put("slow", b"v"))
            await until(lambda: front.held)
            await kv.put("a", b"v")
            await kv.put("b", b"v")
            assert front.ops[-1][7:10] == (front.ops[0].client, 3, 1)
            front.release()
            await slow
            await kv.put("c", b"v")
            assert front.ops[-1].first == 4

    asyncio.run(main())


def test_a_hint_is_followed_and_remembered() -> None:
    async def main() -> None:
        async with started(3) as (cluster, kv):
            await kv.get("warm")
            cluster.frontends[0].script = lambda op: failed(Code.NOT_LEADER, hint=3)
            await kv.put("k", b"v")
            assert [op.key for op in cluster.frontends[2].ops] == [b"k"]
            asked = len(cluster.frontends[0].ops)
            await kv.get("k")
            assert len(cluster.frontends[0].ops) == asked

    asyncio.run(main())


def test_a_forwarding_nodes_hint_moves_the_next_call() -> None:
    async def main() -> None:
        async with started(2) as (cluster, kv):
            cluster.frontends[0].script = lambda op: cluster.shared.execute(op)._replace(hint=2)
            await kv.put("k", b"v")
            await kv.get("k")
            assert [op.kind for op in cluster.frontends[1].ops] == [Kind.GET]

    asyncio.run(main())


def test_consistency_travels_and_stale_reads_spread() -> None:
    async def main() -> None:
        async with started(3) as (cluster, kv):
            await kv.get("k", consistency="quorum")
            assert cluster.frontends[0].ops[-1].mode == Mode.QUORUM
            for _ in range(6):
                await kv.get("k", consistency="stale")
            assert [len(front.ops) for front in cluster.frontends] == [3, 2, 2]
            assert cluster.frontends[2].ops[-1].mode == Mode.STALE

    asyncio.run(main())


@pytest.mark.parametrize(
    "code", [Code.UNKNOWN, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.SLOT_MOVING, Code.NOT_CAUGHT_UP]
)
def test_a_retry_keeps_its_name_and_takes_effect_once(code: Code) -> None:
    async def main() -> None:
        async with started(2) as (cluster, kv):
            answers = 0

            def script(op: Op) -> Result:
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
            await until(lambda: len(front.held) == 2)
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
        async with started(2, timeout=3.0) as (cluster, kv):
            await kv.put("k", b"v")
            cluster.frontends[0].script = lambda op: None
            start = SystemClock().now()
            await kv.put("k", b"w")
            assert elapsed_since(start) < 2.5
            first, second = cluster.frontends[0].ops[-1], cluster.frontends[1].ops[-1]
            assert (first.client, first.seq) == (second.client, second.seq)

    asyncio.run(main())


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
                await stream.write(kv_pb2.PipelineRequest())
            scanning = asyncio.create_task(endpoint.scan(kv_pb2.ScanRequest(), 5.0))
            await until(lambda: cluster.frontends[0].held)
            await endpoint.close()
            with pytest.raises(TransportError):
                await scanning

    asyncio.run(main())


def test_a_node_that_is_frozen_is_left_and_used_again() -> None:
    async def main() -> None:
        async with started(2, timeout=10.0) as (cluster, kv):
            await kv.put("k", b"v")
            front = cluster.frontends[0]
            front.script = lambda op: None  # alive for TCP, never an answer
            for number in range(8):
                assert (await kv.put(f"k{number}", b"v")).version > 0
            channel = kv._engine._channels[cluster.addresses[0]]
            await until(lambda: channel._stream is None)  # it was silent for too long and was broken off
            front.script = None
            cluster.frontends[1].script = lambda op: failed(Code.NOT_LEADER, hint=1)
            assert (await kv.put("back", b"v")).version > 0
            assert cluster.frontends[0].ops[-1].key == b"back"

    asyncio.run(main())


def test_a_late_answer_still_counts() -> None:
    async def main() -> None:
        async with started(1, timeout=4.0) as (cluster, kv):
            front = cluster.frontends[0]
            front.script = lambda op: None
            write = asyncio.create_task(kv.put("k", b"v"))
            await until(lambda: len(front.held) == 2)  # given up once, asked again
            (first, index, reply), *_ = front.held
            reply(index, cluster.shared.execute(first))
            assert (await write).version == 1

    asyncio.run(main())


@pytest.mark.parametrize("operation", ["get", "put", "delete", "cas"])
def test_the_deadline_is_total_and_its_error_truthful(operation: str) -> None:
    async def main() -> None:
        async with started(2, timeout=0.5) as (cluster, kv):
            await kv.get("warm", timeout=5)
            for front in cluster.frontends:
                front.script = lambda op: None
            start = SystemClock().now()
            with pytest.raises(Unavailable if operation == "get" else DeadlineExceeded):
                await calls(kv)[operation]()
            assert 0.4 < elapsed_since(start) < 1.5

    asyncio.run(main())


def calls(kv: AsyncClient) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        "get": lambda: kv.get("k"),
        "put": lambda: kv.put("k", b"v"),
        "delete": lambda: kv.delete("k"),
        "cas": lambda: kv.cas("k", None, b"v"),
        "scan": lambda: kv.scan_slot(0),
    }


@pytest.mark.parametrize("operation", ["put", "delete", "cas", "get"])
def test_refusals_until_the_deadline_are_definite(operation: str) -> None:
    async def main() -> None:
        async with started(2, timeout=0.4) as (cluster, kv):
            await kv.get("warm", timeout=5)
            for code, error in ((Code.UNAVAILABLE, Unavailable), (Code.OVERLOADED, Overloaded)):
                for front in cluster.frontends:
                    front.script = lambda op, code=code: failed(code, "no leader")
                with pytest.raises(error, match="no leader"):
                    await calls(kv)[operation]()

    asyncio.run(main())


def test_no_node_at_all_is_definite_and_in_time() -> None:
    async def main() -> None:
        async with started(1) as (cluster, _):
            address = cluster.addresses[0]
        async with AsyncClient(address, timeout=0.5) as kv:
            start = SystemClock().now()
            with pytest.raises(Unavailable, match="no result within 0.5 s"):
                await kv.put("k", b"v")
            assert elapsed_since(start) < 1.5

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


def test_bad_arguments_never_leave_the_client() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            for bad in (
                kv.put("", b"v"),
                kv.put("k", b"v", ttl=-1),
                kv.put("k", b"v", if_version=-1),
                kv.get("k", timeout=0),
                kv.get("k", consistency="strong"),  # type: ignore[arg-type]
                kv.delete(5),  # type: ignore[arg-type]
            ):
                with pytest.raises(InvalidArgument):
                    await bad
            with pytest.raises(TooLarge):
                await kv.cas("k", b"v" * (MAX_VALUE_BYTES + 1), b"v")
            assert not cluster.frontends[0].batches
            assert (await kv.put("k", b"v" * MAX_VALUE_BYTES)).version == 1
            assert len(await asyncio.gather(*(kv.get("k") for _ in range(20)))) == 20
            await asyncio.gather(*(kv.put(f"k{i}", b"v" * MAX_VALUE_BYTES) for i in range(10)))

    asyncio.run(main())


@pytest.mark.parametrize("operation", ["get", "put", "delete", "cas", "scan"])
def test_a_cancelled_call_harms_no_other(operation: str) -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            front = cluster.frontends[0]
            await kv.put("other", b"v")
            front.script = lambda op: None
            call = asyncio.ensure_future(calls(kv)[operation]())
            await until(lambda: front.held)
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

            def script(op: Op) -> Result:
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


def test_a_newer_map_is_fetched_and_followed() -> None:
    async def main() -> None:
        async with started(2, seeds=1) as (cluster, kv):
            await kv.get("k")
            old = cluster.frontends[0]
            newer = one_group_map(list(reversed(cluster.addresses)), epoch=2)
            cluster.set_map(newer)  # node 1 is now the second address, and leads
            await kv.get("k")
            await until(lambda: kv._engine._routing.view is not None and kv._engine._routing.view.epoch == 2)
            asked = len(old.ops)
            await kv.get("k")
            assert len(old.ops) == asked
            assert cluster.frontends[1].ops[-1].key == b"k"

    asyncio.run(main())


def test_another_cluster_gets_no_operation() -> None:
    async def main() -> None:
        async with FakeCluster() as mine, FakeCluster(shared=Shared()) as other:
            other.frontends[0].cluster_id = "other"
            other.set_map(one_group_map(other.addresses, cluster="other"))
            async with AsyncClient(mine.addresses, timeout=2.0) as kv:
                await kv.put("k", b"v")
                # The map now names an address at which the other cluster listens.
                mine.set_map(one_group_map(other.addresses, epoch=2))
                await kv.get("k")
                await until(lambda: kv._engine._routing.view is not None and kv._engine._routing.view.epoch == 2)
                with pytest.raises(WrongCluster, match="other"):
                    await kv.put("k", b"w")
            assert not other.frontends[0].ops

    asyncio.run(main())


def test_a_cluster_that_is_not_ready_yet_is_waited_for() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            known = cluster.frontends[0].map
            cluster.frontends[0].map = None
            write = asyncio.create_task(kv.put("k", b"v"))
            await asyncio.sleep(0.05)
            assert not write.done()
            cluster.frontends[0].map = known
            assert (await write).version == 1

    asyncio.run(main())


def test_all_records_are_read_in_pages() -> None:
    async def main() -> None:
        async with started(2) as (cluster, kv):
            expected = {}
            for number in range(300):
                key, value = f"{{{number % 3}}}{number}".encode(), b"v" * 3000
                cluster.shared.records[key] = (value, number + 1)
                expected[key] = value
            found = [record async for record in kv.records()]
            assert len(found) == 300
            assert {record.key: record.value for record in found} == expected
            page, more = await kv.scan_slot(kv._engine._routing.slot(b"{0}"), limit_bytes=5000)
            assert (len(page), more) == (2, True)
            with pytest.raises(InvalidArgument, match="no slot 256"):
                await kv.scan_slot(256)
            async for _ in kv.records():
                break

    asyncio.run(main())


def test_scans_are_retried_elsewhere() -> None:
    async def main() -> None:
        async with started(2) as (cluster, kv):
            cluster.shared.records[b"k"] = (b"v", 1)
            cluster.frontends[0].script = lambda op: failed(Code.NOT_LEADER, hint=2)
            assert [record.key async for record in kv.records()] == [b"k"]

    asyncio.run(main())


def test_connections_to_addresses_that_left_the_map_are_closed() -> None:
    async def main() -> None:
        async with started(2, seeds=1) as (cluster, kv):
            cluster.lead(2)
            await kv.get("k")
            gone = cluster.addresses[1]
            assert gone in kv._engine._channels
            cluster.lead(1)
            cluster.set_map(one_group_map(cluster.addresses[:1], epoch=2))
            await kv.get("k")
            await until(lambda: gone not in kv._engine._channels)
            assert (await kv.put("k", b"v")).version == 1

    asyncio.run(main())


def test_status_tells_of_every_endpoint() -> None:
    async def main() -> None:
        async with started(3, seeds=1) as (cluster, kv):
            await cluster.stop(3)
            statuses = await kv.status(timeout=1.0)
            assert [status.address for status in statuses] == cluster.addresses
            assert [status.status.node for status in statuses if status.status is not None] == [1, 2]
            assert statuses[2].status is None
            assert statuses[2].error
            first = statuses[0].status
            assert first == cluster.frontends[0].status()

    asyncio.run(main())


def test_misuse_gets_clear_errors() -> None:
    async def main() -> None:
        async with started() as (_, kv):
            await kv.put("k", b"v")

            def elsewhere() -> None:
                async def use() -> None:
                    with pytest.raises(UsageError, match="another event loop"):
                        await kv.get("k")

                asyncio.run(use())

            await asyncio.get_running_loop().run_in_executor(None, elsewhere)
            await kv.close()
            await kv.close()
            with pytest.raises(UsageError, match="closed"):
                await kv.get("k")

    asyncio.run(main())


def test_closing_ends_outstanding_calls_truthfully() -> None:
    async def main() -> None:
        async with started(timeout=30.0) as (cluster, kv):
            front = cluster.frontends[0]
            front.script = lambda op: None
            write = asyncio.create_task(kv.put("k", b"v"))
            read = asyncio.create_task(kv.get("k"))
            await until(lambda: len(front.held) == 2)
            await kv.close()
            with pytest.raises(OutcomeUnknown):
                await write
            with pytest.raises(UsageError):
                await read

    asyncio.run(main())


def serve_in_thread() -> tuple[FakeCluster, Callable[[], None]]:
    """A fake cluster on a loop of its own, and what ends it."""
    cluster = FakeCluster()
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with cluster:
            ready.set()
            await over.wait()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)

    def stop() -> None:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)

    return cluster, stop


def test_the_synchronous_client_has_the_same_calls() -> None:
    cluster, stop = serve_in_thread()
    try:
        with raftkv.Client(cluster.endpoints, timeout=5.0) as kv:
            written = kv.put("k", b"v")
            assert kv.get("k") == raftkv.Record(b"k", b"v", written.version)
            with pytest.raises(ConditionFailed):
                kv.put("k", b"w", if_version=raftkv.ABSENT)
            assert kv.cas("k", b"v", b"w")
            assert [record.value for record in kv.records()] == [b"w"]
            assert kv.scan_slot(0) == ([], False)
            assert kv.status()[0].status is not None
            assert kv.delete("k")
            workers = [threading.Thread(target=kv.put, args=(f"t{i}", b"v")) for i in range(8)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            assert len(list(kv.records())) == 8
        kv.close()
        with pytest.raises(UsageError, match="closed"):
            kv.get("k")
    finally:
        stop()


def test_a_forked_process_is_told_to_make_its_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, stop = serve_in_thread()
    try:
        with raftkv.Client(cluster.endpoints, timeout=5.0) as kv:
            kv.put("k", b"v")
            with monkeypatch.context() as patch:
                # What a child sees, without forking a process that runs gRPC's threads.
                own = forks()
                patch.setattr("raftkv.client.sync.forks", lambda: own + 1)
                with pytest.raises(UsageError, match="fork"):
                    kv.get("k")
                kv.close()  # does nothing there
            assert kv.get("k") is not None

            async def forked() -> None:
                client = AsyncClient(cluster.endpoints)
                with monkeypatch.context() as patch:
                    patch.setattr("raftkv.client.engine.forks", lambda: own + 1)
                    with pytest.raises(UsageError, match="fork"):
                        await client.get("k")
                assert await client.get("k") is not None
                await client.close()

            asyncio.run(forked())
    finally:
        stop()


def test_importing_the_package_loads_no_engine_and_no_client() -> None:
    import subprocess
    import sys

    program = (
        "import raftkv, sys; print(sorted({'grpc', 'pysyncobj', 'asyncio', 'uvloop'} & set(sys.modules)));"
        "raftkv.AsyncClient; print('pysyncobj' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]
    assert set(raftkv.__all__) <= set(dir(raftkv))
    with pytest.raises(AttributeError):
        _ = raftkv.no_such_name
