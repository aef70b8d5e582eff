"""Guarantee: answers and errors of both clients and of the command tell what a program needs to go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar, cast

import pytest

import raftkv
from raftkv.cli.common import Exit
from raftkv.cli.main import run
from raftkv.client.aio import AsyncClient
from raftkv.client.transport import Endpoint, TransportError
from raftkv.client.types import CasResult
from raftkv.commands.results import Result
from raftkv.errors import ConditionFailed, DeadlineExceeded, OutcomeUnknown, Overloaded, Unavailable
from shards.slots import slot_of
from tests.rpc_fakes import SLOTS, FakeCluster, calls, started
from tests.store_helpers import bits
from tests.waiting import becomes

T = TypeVar("T")


async def synchronously(cluster: FakeCluster, work: Callable[[raftkv.Client], T]) -> T:
    """What ``work`` returns, done in a thread with a synchronous client."""

    def go() -> T:
        with raftkv.Client(cluster.endpoints) as kv:
            return work(kv)

    return await asyncio.to_thread(go)


def test_compare_and_swap_gives_the_version() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            first = await kv.cas("k", None, b"a")
            assert first == CasResult(succeeded=True, version=1)
            assert first
            second = await synchronously(cluster, lambda kv: kv.cas("k", b"a", b"b"))
            assert (bool(second), second.version) == (True, 2)
            refused = await synchronously(cluster, lambda kv: kv.cas("k", b"a", b"c"))
            assert refused == CasResult(succeeded=False, version=2)
            assert not refused
            # The version is the record's: it serves as a condition.
            await kv.put("k", b"c", if_version=refused.version)
            assert await kv.cas("none", b"a", b"b") == CasResult(succeeded=False, version=0)

    asyncio.run(main())


def test_a_failed_condition_names_key_expected_and_actual_version(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            assert (await kv.put("user:1", b"v")).version == 1
            for key, expected, found in (("user:1", 9, 1), ("user:1", raftkv.ABSENT, 1), ("none", 9, 0)):

                def put(kv: raftkv.Client, key: str = key, expected: int = expected) -> object:
                    return kv.put(key, b"v", if_version=expected)

                def delete(kv: raftkv.Client, key: str = key, expected: int = expected) -> object:
                    return kv.delete(key, if_version=expected)

                for writing in (
                    kv.put(key, b"v", if_version=expected),
                    kv.delete(key, if_version=expected),
                    synchronously(cluster, put),
                    synchronously(cluster, delete),
                ):
                    with pytest.raises(ConditionFailed, match=key) as caught:
                        await writing
                    error = caught.value
                    assert (error.key, error.expected, error.version) == (key.encode(), expected, found)
            for options, text in (
                (["put", "user:1", "x", "--if-version", "9"], "expected version 9, found version 1"),
                (["put", "user:1", "x", "--if-absent"], "expected no record, found version 1"),
                (["delete", "user:1", "--if-version", "9"], "expected version 9, found version 1"),
            ):
                code = await asyncio.to_thread(run, [*options, "--endpoints", cluster.endpoints])
                assert (code, capsys.readouterr().err) == (Exit.NOT_MET, f"raftkv: key 'user:1': {text}\n")

    asyncio.run(main())


def test_a_client_tells_slots() -> None:
    slot = slot_of(b"user:1", SLOTS)
    keys = ("{user:1}:name", b"{user:1}:mail", "user:1")

    async def main() -> None:
        async with started() as (cluster, kv):
            assert await kv.slots() == SLOTS
            assert [await kv.slot_of(key) for key in keys] == [slot] * 3
            assert [raftkv.slot_of(key, SLOTS) for key in keys] == [slot] * 3
            assert await synchronously(cluster, lambda kv: [kv.slots(), *(kv.slot_of(key) for key in keys)]) == [
                SLOTS,
                *[slot] * 3,
            ]
            # The record is where it says.
            await kv.put("k", b"v")
            cluster.frontends[0].batches.clear()
            assert [record.key async for record in kv.scan(prefix="{user:1}")] == []
            assert [(op.slot, op.slots) for op in cluster.frontends[0].ops] == [(slot, bits(slot))]
            await cluster.stop(1)
            assert await kv.slots() == SLOTS, "it never changes, so it is asked once"

    asyncio.run(main())


@pytest.mark.parametrize("operation", ["get", "put", "delete", "cas"])
@pytest.mark.parametrize("timeout", [0.001, 0.05])
def test_a_small_budget_is_kept(operation: str, timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the call's own time ends it here."""

    async def main() -> None:
        async with started(2) as (cluster, kv):
            await kv.get("warm")
            monkeypatch.setattr("raftkv.client.engine._SWEEP", 1000.0)
            for front in cluster.frontends:
                front.script = lambda op: None
            kv._timeout = timeout
            # A node that reads the message too late, on a busy machine, says that it is overloaded.
            unknown = () if operation == "get" else (DeadlineExceeded,)
            with pytest.raises((Unavailable, Overloaded, *unknown)) as caught:
                await calls(kv)[operation]()
            assert f"(timeout {timeout:g} s" in str(caught.value)
            # The node is no worse for it, and a late answer does no harm.
            for front in cluster.frontends:
                front.script = None
                front.release()
            assert (await kv.put("other", b"v", timeout=30)).version > 0

    asyncio.run(main())


def test_a_write_that_close_ends_is_no_deadline() -> None:
    async def main() -> None:
        async with started(timeout=600.0) as (cluster, kv):
            front = cluster.frontends[0]
            front.script = lambda op: None
            write = asyncio.create_task(kv.put("k", b"v"))
            await becomes(lambda: front.held)
            await kv.close()
            with pytest.raises(OutcomeUnknown, match=r"^the client was closed; an attempt may have taken effect$"):
                await write
            assert not isinstance(write.exception(), TimeoutError)

    asyncio.run(main())


class _Deaf:
    """Endpoint and transport in one that never says what the map is."""

    def __init__(self) -> None:
        self.given: list[float] = []

    def endpoint(self, address: str) -> Endpoint:
        return cast("Endpoint", self)

    async def open(self) -> object:
        return await self.view(0.0)

    async def view(self, timeout: float) -> object:
        return await asyncio.get_running_loop().create_future()

    async def status(self, timeout: float) -> object:
        self.given.append(timeout)
        raise TransportError(Result(7, detail="nobody"))

    async def close(self) -> None:
        pass


def test_status_takes_no_longer_than_its_timeout() -> None:
    """The map takes some of the time, so there is less for the questions."""

    async def main() -> None:
        deaf = _Deaf()
        async with AsyncClient("a:1,b:2", transport=deaf) as kv:
            seen = await kv.status(timeout=0.1)
        assert [one.error for one in seen] == ["nobody", "nobody"]
        assert all(given < 0.06 for given in deaf.given)

    asyncio.run(main())


@pytest.mark.parametrize("timeout", [0.001, 0.05])
def test_a_small_budget_is_kept_while_no_node_answers(timeout: float) -> None:
    async def main() -> None:
        async with AsyncClient("a:1,b:2", transport=_Deaf()) as kv:
            for call in (kv.get("k", timeout=timeout), kv.put("k", b"v", timeout=timeout), kv.slots(timeout=timeout)):
                with pytest.raises(Unavailable, match=rf"\(timeout {timeout:g} s\): no node was reached"):
                    await call

    asyncio.run(main())
