"""Guarantee: a caller chooses how often and after what a call is tried again, whether its outcome is to be found out,
and what stands between the client and the network; nothing of it lets a write take effect twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from raftkv import AsyncClient, Client, RetryPolicy
from raftkv.clock import SystemClock
from raftkv.commands.results import Result
from raftkv.errors import (
    BatchError,
    Code,
    InvalidArgument,
    NoSpace,
    OutcomeUnknown,
    SessionExpired,
    Unavailable,
)
from tests.rpc_fakes import FakeCluster, failed, started
from tests.waiting import PATIENCE


class Still(SystemClock):
    """No attempt takes too long, however slow the machine is."""

    def now(self) -> float:
        return 0.0


def writes(kv: AsyncClient, *, resolve: bool) -> list[Callable[[], Awaitable[Any]]]:
    return [
        lambda: kv.put("k", b"v", resolve=resolve),
        lambda: kv.create("k", b"v", resolve=resolve),
        lambda: kv.cas("k", None, b"v", resolve=resolve),
        lambda: kv.put_many({"k": b"v"}, resolve=resolve),
    ]


def lost_then(cluster: FakeCluster, *refusals: Code, ends: bool = True) -> None:
    """The first attempt takes effect and nobody is told; the next ones are refused so; then nodes answer as they do.

    ``ends``: else the last refusal is for ever.
    """
    codes = [Code.UNKNOWN, *refusals]

    def script(op: Any) -> Result:
        done = cluster.shared.execute(op) if not codes or codes[0] is Code.UNKNOWN else None
        if codes:
            return failed(codes.pop(0) if ends or len(codes) > 1 else codes[0])
        assert done is not None
        return done

    for front in cluster.frontends:
        front.script = script


@pytest.mark.parametrize("at", range(4))
def test_an_unknown_outcome_is_found_out_under_the_same_request_id(at: int) -> None:
    async def main() -> None:
        for code in (Code.NO_SPACE, Code.INTERNAL, Code.INVALID_ARGUMENT, Code.WRONG_VERSION):
            async with started(2) as (cluster, kv):
                lost_then(cluster, code, Code.UNAVAILABLE, code)
                assert await writes(kv, resolve=True)[at]()
                ops = [op for front in cluster.frontends for op in front.ops]
                assert len(ops) >= 5
                assert ({op.seq for op in ops}, len(cluster.shared.applied)) == ({1}, 1)
            async with started(2) as (cluster, kv):
                lost_then(cluster, code, ends=False)
                with pytest.raises((OutcomeUnknown, BatchError)):
                    await writes(kv, resolve=False)[at]()

    asyncio.run(main())


def test_what_settles_a_write_ends_it_and_what_has_had_no_effect_is_refused_at_once() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            lost_then(cluster, Code.NO_SPACE)
            await kv.create("k", b"v", resolve=True)
            cluster.frontends[0].script = lambda op: failed(Code.NO_SPACE)
            with pytest.raises(NoSpace):
                await kv.put("k", b"w", resolve=True)
            assert len(cluster.shared.applied) == 1

    asyncio.run(main())


def test_an_outcome_whose_record_has_gone_stays_unknown() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            lost_then(cluster, Code.NO_SPACE, Code.SESSION_EXPIRED, ends=False)
            with pytest.raises(SessionExpired):
                await kv.put("k", b"v", resolve=True)
            assert len(cluster.shared.applied) == 1

    asyncio.run(main())


def test_it_is_not_asked_for_longer_than_the_call_may_take() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            lost_then(cluster, Code.NO_SPACE, ends=False)
            with pytest.raises(TimeoutError) as caught:
                await kv.put("k", b"v", resolve=True, timeout=0.3)
            assert isinstance(caught.value, OutcomeUnknown) or not cluster.frontends[0].ops

    asyncio.run(main())


def test_a_call_is_tried_as_often_as_the_policy_says() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            front = cluster.frontends[0]
            front.script = lambda op: failed(Code.UNAVAILABLE)
            policy = RetryPolicy(attempts=3, first_delay=0.001, max_delay=0.001)
            async with AsyncClient(cluster.endpoints, timeout=PATIENCE, retry=policy, clock=Still()) as kv:
                with pytest.raises(Unavailable):
                    await kv.get("k")
                assert len(front.ops) == 3
                with pytest.raises(BatchError):
                    await kv.put_many({"k": "v"})
                assert len(front.ops) == 6
                # An unknown outcome is found out all the same, if the caller wants that.
                lost_then(cluster, *[Code.UNAVAILABLE] * 6)
                assert (await kv.put("k", b"v", resolve=True)).version == 1

    asyncio.run(main())


def test_a_cluster_that_cannot_be_reached_is_given_up_after_as_many_attempts() -> None:
    async def main() -> None:
        async with AsyncClient("127.0.0.1:1", timeout=PATIENCE, retry=RetryPolicy(attempts=2)) as kv:
            with pytest.raises(Unavailable, match="no node was reached"):
                await kv.get("k")

    asyncio.run(main())


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": True},
        {"first_delay": 0.0},
        {"first_delay": 2.0},
        {"max_delay": 61.0},
        {"errors": (ValueError,)},
        {"errors": [Unavailable]},
    ],
    ids=str,
)
def test_a_policy_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"{next(iter(wrong)).split('_')[-1]}s?"):
        RetryPolicy(**wrong)


class Seen:
    """Adds metadata to RPCs, and notes their names."""

    def __init__(self) -> None:
        self.methods: list[str] = []

    async def _pass(self, proceed: Any, details: Any, asked: Any) -> Any:
        name = details.method.decode() if isinstance(details.method, bytes) else details.method
        self.methods.append(name.rsplit("/")[-1])
        return await proceed(details._replace(metadata=grpc.aio.Metadata(("tenant", "7"))), asked)


class SeenCalls(Seen, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    intercept_unary_unary = Seen._pass  # type: ignore[assignment]


class SeenStreams(Seen, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg]
    intercept_stream_stream = Seen._pass  # type: ignore[assignment]


def test_interceptors_see_every_rpc_of_both_clients() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            calls, streams = SeenCalls(), SeenStreams()
            async with AsyncClient(cluster.endpoints, timeout=PATIENCE, interceptors=[calls, streams]) as kv:
                await kv.put("k", b"v")
                await asyncio.gather(*(kv.get("k") for _ in range(10)))
                assert [record.value async for record in kv.scan()] == [b"v"]
                # A connection that is lost is opened anew.
                await cluster.stop(1)
                await cluster.start(1)
                assert await kv.get("k")
            assert set(calls.methods) == {"GetMap", "Scan"}
            assert streams.methods.count("Pipeline") >= 2

            def use() -> int:
                other = SeenStreams()
                with Client(cluster.endpoints, timeout=PATIENCE, interceptors=[other]) as kv:
                    kv.put("k", b"w")
                return len(other.methods)

            assert await asyncio.to_thread(use) >= 1

    asyncio.run(main())
