"""Guarantee: calls on several keys travel together, end in time and tell of each key what became of it; a client whose
call was cancelled, whichever, goes on. On virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from faults.sim.clock import SimClock
from faults.sim.loop import SimLoop, SimProcess, simulate
from faults.sim.network import MemoryNetwork
from faults.sim.transport import SimChannel, SimServer
from raftkv import AsyncClient, Record, TransactionResult, WriteResult
from raftkv.client.transport import GrpcTransport
from raftkv.commands.base import Command
from raftkv.commands.records import Put
from raftkv.commands.results import Result, TransactionAnswer
from raftkv.commands.transactions import Transact
from raftkv.errors import BatchError, Code, DeadlineExceeded, InvalidArgument, NoSpace, Unavailable, UsageError
from raftkv.frontend.port import AdminPort
from raftkv.limits import MAX_BATCH_OPS, MAX_TXN_STEPS
from shards.map import Group, Node, ShardMap
from shards.slots import slot_of
from tests.rpc_fakes import CLUSTER, SLOTS, FakeFrontend, Shared, calls, failed

Work = Callable[[AsyncClient, list[FakeFrontend]], Awaitable[None]]


def with_two_leaders(work: Work) -> None:
    """Node 1 leads the lower half of the slots, node 2 the upper one."""

    async def main(loop: SimLoop) -> None:
        network, shared = MemoryNetwork(), Shared()
        clock = SimClock(loop, SimProcess(loop, "all"))
        fronts = [FakeFrontend(node, shared) for node in (1, 2)]
        nodes = tuple(Node(front.node, f"n{front.node}:1", f"n{front.node}:1", "") for front in fronts)
        groups = tuple(Group(group, (1, 2)) for group in (0, 1, 2))
        owners = tuple(1 + (slot >= SLOTS // 2) for slot in range(SLOTS))
        for front in fronts:
            front.map = ShardMap(CLUSTER, 1, SLOTS, nodes, groups, owners)
            front.leading = {0: 1, 1: 1, 2: 2}
            host = network.host(f"n{front.node}")
            await SimServer(cast(AdminPort, front), f"n{front.node}:1", host, clock).start()
        transport = GrpcTransport(lambda address: cast(Any, SimChannel(network.host("c"), address)))
        async with AsyncClient("n1:1", timeout=5.0, transport=transport, clock=clock) as kv:
            await work(kv, fronts)

    simulate(main)


KEYS = [f"k{number}" for number in range(20)]


def led_by(node: int) -> list[str]:
    return [key for key in KEYS if 1 + (slot_of(key.encode(), SLOTS) >= SLOTS // 2) == node]


def test_one_message_to_each_leader() -> None:
    async def work(kv: AsyncClient, fronts: list[FakeFrontend]) -> None:
        written = await kv.put_many((key, key.upper()) for key in KEYS)
        assert len(written) == len(KEYS)
        found = await kv.get_many([*KEYS, "none"])
        assert [record and record.value for record in found] == [*(key.upper().encode() for key in KEYS), None]
        assert [record and record.version for record in found[:-1]] == [one.version for one in written]
        assert await kv.delete_many(KEYS) == [True] * len(KEYS)
        for front in fronts:
            mine = led_by(front.node)
            assert [[op.key.decode() for op in batch if op.key != b"none"] for batch, _ in front.batches] == 3 * [mine]  # type: ignore[attr-defined]

    with_two_leaders(work)


def test_more_than_a_message_holds_go_in_several() -> None:
    async def work(kv: AsyncClient, fronts: list[FakeFrontend]) -> None:
        many = [f"{{one}}{number}" for number in range(MAX_BATCH_OPS + 10)]
        assert await kv.get_many(many) == [None] * len(many)
        assert max(len(front.ops) for front in fronts) == len(many)

    with_two_leaders(work)


def test_some_fail_and_the_others_are_done() -> None:
    async def work(kv: AsyncClient, fronts: list[FakeFrontend]) -> None:
        def full(op: Command) -> Result:
            assert isinstance(op, Put)
            return failed(Code.NO_SPACE, "full") if op.key in (b"k3", b"k7") else Result(0, 9)

        for front in fronts:
            front.script = full
        with pytest.raises(
            BatchError, match="2 of 20 operations failed: 'k3': NoSpace: full; 'k7': NoSpace: full$"
        ) as caught:
            await kv.put_many(dict.fromkeys(KEYS, "v"))
        assert set(caught.value.errors) == {b"k3", b"k7"}
        for key, result in zip(KEYS, caught.value.results, strict=True):
            assert isinstance(result, NoSpace) if key in ("k3", "k7") else result == WriteResult(9)

    with_two_leaders(work)


@pytest.mark.parametrize("timeout", [2.0, 0.05])
def test_what_gets_no_answer_ends_at_the_deadline(timeout: float) -> None:
    async def work(kv: AsyncClient, fronts: list[FakeFrontend]) -> None:
        await kv.get_many(KEYS)
        clock, silent = asyncio.get_running_loop(), set(led_by(1)[:2])
        for front in fronts:
            front.script = lambda op: None if cast(Put, op).key.decode() in silent else Result(0, 5)
        began = clock.time()
        for ask, error in (
            (lambda: kv.put_many(dict.fromkeys(KEYS, "v"), timeout=timeout), DeadlineExceeded),
            (lambda: kv.get_many(KEYS, timeout=timeout), Unavailable),
        ):
            with pytest.raises(BatchError) as caught:
                await ask()
            assert {key.decode() for key in caught.value.errors} == silent
            assert all(type(one) is error for one in caught.value.errors.values())
        assert clock.time() - began < 2 * timeout + 0.1

    with_two_leaders(work)


def test_what_is_refused_for_a_while_is_asked_again() -> None:
    async def work(kv: AsyncClient, fronts: list[FakeFrontend]) -> None:
        refused: set[bytes] = set()

        def hesitant(op: Command) -> Result:
            assert isinstance(op, Put)
            if op.key in refused:
                return Result(0, 3)
            refused.add(op.key)
            return failed(Code.SLOT_MOVING, "in a moment")

        for front in fronts:
            front.script = hesitant
        assert await kv.put_many(dict.fromkeys(KEYS, "v")) == [WriteResult(3)] * len(KEYS)
        seqs = [(op.key, op.seq) for front in fronts for op in front.ops]
        assert len(set(seqs)) * 2 == len(seqs), "each was asked twice under one number"

    with_two_leaders(work)


def test_a_wrong_leader_is_left_for_the_right_one() -> None:
    async def work(kv: AsyncClient, fronts: list[FakeFrontend]) -> None:
        await kv.get_many(KEYS)
        fronts[0].script = lambda op: Result(Code.NOT_LEADER, hint=2)
        assert len(await kv.put_many(dict.fromkeys(KEYS, "v"))) == len(KEYS)

    with_two_leaders(work)


def test_bad_arguments_never_leave_the_client() -> None:
    async def work(kv: AsyncClient, fronts: list[FakeFrontend]) -> None:
        bad: list[tuple[Callable[[], Awaitable[object]], str]] = [
            (lambda: kv.put_many([("a", "1"), (b"a", "2")]), "key 'a' is given twice"),
            (lambda: kv.delete_many(["a", "b", "a"]), "key 'a' is given twice"),
            (lambda: kv.get_many("abc"), "put it into a list"),
            (lambda: kv.get_many(["a", ""]), "the key is empty"),
            (lambda: kv.put_many({"a": 1}), "must be bytes or str"),  # type: ignore[arg-type]
            (lambda: kv.incr("a", 2**63), "is not a signed 64-bit integer"),
            (lambda: kv.incr("a", True), "is not a signed 64-bit integer"),
            (lambda: kv.update("a", "b", version=0), "create"),
            (lambda: kv.touch("a", 0), "a TTL of 0 s"),
            (lambda: kv.touch("a", None), "persist"),  # type: ignore[arg-type]
            (lambda: kv.delete("a", if_version=1, if_value="b"), "mutually exclusive"),
            (lambda: kv.txn().commit(), "empty"),
            (lambda: kv.txn().put("a", "1").delete("a").commit(), "writes key 'a' twice"),
        ]
        for ask, why in bad:
            with pytest.raises(InvalidArgument, match=why):
                await ask()
        for wrong in ({}, {"version": 1, "absent": True}, {"version": -1}):
            with pytest.raises(InvalidArgument):
                kv.txn().check("a", **wrong)  # type: ignore[arg-type]
        assert [*await kv.get_many([]), *await kv.put_many({}), *await kv.delete_many([])] == []
        assert [op for front in fronts for op in front.ops] == []

    with_two_leaders(work)


def test_transactions_with_many_steps_leave_in_several_messages() -> None:
    async def work(kv: AsyncClient, fronts: list[FakeFrontend]) -> None:
        def told(op: Command) -> Result:
            assert isinstance(op, Transact)
            return Result(0, answer=TransactionAnswer(True, tuple((0, None, -1) for _ in op.steps), 0))

        for front in fronts:
            front.script = told

        def asked() -> Awaitable[TransactionResult]:
            txn = kv.txn()
            for number in range(MAX_TXN_STEPS):
                txn.get(f"{{one}}{number}")
            return txn.commit()

        # More steps than a node takes in one message.
        many = 2 * MAX_BATCH_OPS // MAX_TXN_STEPS
        assert all(await asyncio.gather(*(asked() for _ in range(many))))
        assert sum(len(front.ops) for front in fronts) == many

    with_two_leaders(work)


def test_a_transaction_is_committed_once() -> None:
    async def work(kv: AsyncClient, fronts: list[FakeFrontend]) -> None:
        for front in fronts:
            front.script = lambda op: failed(Code.NO_SPACE, "full")
        txn = kv.txn().put("a", "1")
        with pytest.raises(NoSpace):
            await txn.commit()
        with pytest.raises(UsageError, match="committed already"):
            await txn.commit()

    with_two_leaders(work)


@pytest.mark.parametrize("turns", [0, 1, 30])
def test_a_client_whose_call_was_cancelled_goes_on(turns: int) -> None:
    async def work(kv: AsyncClient, fronts: list[FakeFrontend]) -> None:
        for name, call in calls(kv).items():
            for front in fronts:
                front.script = lambda op: None
            task = asyncio.ensure_future(call())
            for _ in range(turns):
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled(), name
            for front in fronts:
                front.script = None
                front.held.clear()
            written = await kv.put("after", name)
            assert await kv.get("after") == Record(b"after", name.encode(), written.version)
        for front in fronts:
            puts = [op for op in front.ops if isinstance(op, Put) and op.key == b"after"]
            assert [op.first for op in puts] == [op.seq for op in puts], "nobody waits for what was cancelled"

    with_two_leaders(work)
