"""Guarantee: a source's leader copies slots straight to the target, once however often it is asked; and in a whole move
no record passes the driver."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from raftkv.api.status import Move
from raftkv.commands.base import GroupCommand
from raftkv.commands.meta import ChangeCluster
from raftkv.commands.moving import Complete, Copy, Copying, Freeze, ImportChunk, ImportFinal, MoveState
from raftkv.commands.records import Put
from raftkv.commands.results import CopyReport, Result
from raftkv.errors import Code
from raftkv.node.drivers.copier import Copier
from raftkv.node.drivers.internal_client import Failed
from raftkv.node.drivers.mover import Mover
from raftkv.store.codec import unpack
from raftkv.store.meta_state import MetaState
from raftkv.store.records import Store
from shards.moves import Phase
from tests.peer_world import ManualClock, rest
from tests.store_helpers import begin, make, one, roles, state

SLOTS = (0, 1)
MOVE = 7
SOURCE, TARGET = 1, 2
VALUE = b"v" * 1000


class World:
    """The stores of two groups whose leaders execute at once; the source's leader has a copier."""

    def __init__(self, keys: int = 1000) -> None:
        self.stores: dict[int, Store] = {SOURCE: make(*SLOTS), TARGET: make(9)}
        for key in range(keys):
            one(self.stores[SOURCE], Put(key % 2, b"%d" % key, VALUE))
        self.leads = True
        self.asked: list[GroupCommand] = []
        """Of the target, by the source's leader."""
        self.hold: asyncio.Event | None = None
        self.clock = ManualClock()
        group = SimpleNamespace(read=lambda _, done: done(Code.OK if self.leads else Code.NOT_LEADER))
        replicas = SimpleNamespace(data={SOURCE: SimpleNamespace(group=group, store=self.stores[SOURCE])})
        self.copier = Copier(cast(Any, replicas), self.of_source, self.clock)

    async def of_source(self, op: GroupCommand) -> Result:
        self.asked.append(op)
        if self.hold is not None:
            await self.hold.wait()
        return await self.execute(op)

    async def execute(self, op: GroupCommand) -> Result:
        store = self.stores[op.group]
        if isinstance(op, MoveState):
            result = store.move_state(op.move)
        elif isinstance(op, Copying):
            result = await self.run(op)
        else:
            result = one(store, op)
        if result.code:
            raise Failed(result.detail)
        return result

    def run(self, op: Copying) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.copier.run(op, future.set_result)
        return future

    async def report(self, op: Copying) -> CopyReport:
        result = await self.run(op)
        assert result.code == Code.OK, result.detail
        assert isinstance(result.answer, CopyReport)
        return result.answer


def run(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World()
        begin(world.stores[SOURCE], world.stores[TARGET], SLOTS, MOVE)
        await scenario(world)
        await rest()
        assert world.copier._running == {}

    asyncio.run(main())


def test_slots_are_copied_in_parts_and_completed() -> None:
    async def scenario(world: World) -> None:
        source, target = world.stores[SOURCE], world.stores[TARGET]
        first = await world.report(Copy(SOURCE, MOVE, TARGET, 0, b"", 100_000))
        assert (first.more, first.records) == (True, 0)
        assert 100_000 <= first.copied < 200_000
        assert (state(target).seq, state(target).cursor) == (first.seq, first.cursor)
        second = await world.report(Copy(SOURCE, MOVE, TARGET, first.seq, first.cursor, 10_000_000))
        assert not second.more
        one(source, Put(0, b"late", VALUE))
        one(source, Freeze(SOURCE, MOVE))
        last = await world.report(Complete(SOURCE, MOVE, TARGET, second.seq, second.cursor))
        assert (last.records, last.more) == (1001, False)
        assert roles(target) == ("none", "staged")
        kinds = {type(op) for op in world.asked}
        assert kinds == {ImportChunk, ImportFinal}

    run(scenario)


def test_what_is_asked_for_again_meanwhile_is_done_once() -> None:
    async def scenario(world: World) -> None:
        world.hold = asyncio.Event()
        copy = Copy(SOURCE, MOVE, TARGET, 0, b"", 100_000)
        waiting = [world.run(copy), world.run(copy)]
        await rest()
        # Another driver is a step further: it waits for its turn, then finds that it has to look again.
        one(world.stores[SOURCE], Freeze(SOURCE, MOVE))
        ahead = world.run(Complete(SOURCE, MOVE, TARGET, 0, b""))
        await rest()
        assert len(world.asked) == 1
        world.hold.set()
        first, second = [await one for one in waiting]
        assert first is second
        assert first.code == Code.OK
        assert (await ahead).code == Code.CONDITION_FAILED

    run(scenario)


def test_who_does_not_lead_or_is_out_of_date_says_so() -> None:
    async def scenario(world: World) -> None:
        world.leads = False
        for op in (Copy(SOURCE, MOVE, TARGET, 0, b"", 1), Complete(SOURCE, MOVE, TARGET, 0, b"")):
            assert (await world.run(op)).code == Code.NOT_LEADER
        assert (await world.run(Copy(5, MOVE, TARGET, 0, b"", 1))).code == Code.NOT_LEADER, "no replica here"
        world.leads = True
        assert not world.asked
        await world.report(Copy(SOURCE, MOVE, TARGET, 0, b"", 1))
        late = await world.run(Copy(SOURCE, MOVE, TARGET, 0, b"", 1))
        assert (late.code, late.detail) == (Code.CONDITION_FAILED, "not the next chunk")
        other = await world.run(Copy(SOURCE, MOVE + 1, TARGET, 0, b"", 1))
        assert (other.code, other.detail) == (Code.CONDITION_FAILED, "not the source of the move")
        early = await world.run(Complete(SOURCE, MOVE, TARGET, 1, state(world.stores[TARGET]).cursor))
        assert (early.code, early.detail) == (Code.CONDITION_FAILED, "the slots are not frozen")

    run(scenario)


def test_a_copy_that_is_ended_leaves_nothing_behind() -> None:
    async def scenario(world: World) -> None:
        world.hold = asyncio.Event()
        told: list[Result] = []
        one(world.stores[SOURCE], Freeze(SOURCE, MOVE))
        world.copier.run(Complete(SOURCE, MOVE, TARGET, 0, b""), told.append)
        await rest()
        world.copier.close()
        await rest()
        assert told == []

    run(scenario)


def test_no_record_passes_the_driver() -> None:
    asyncio.run(_drive())


async def _drive() -> None:
    world = World()
    move = Move(MOVE, SLOTS, SOURCE, TARGET, Phase.STARTED, 0)
    meta = MetaState(moves={MOVE: move})
    asked: list[GroupCommand] = []
    finished: list[list[Any]] = []

    async def ask(op: GroupCommand) -> Result:
        nonlocal meta
        asked.append(op)
        if not isinstance(op, ChangeCluster):
            return await world.execute(op)
        if op.verb == "commit":
            meta = replace(meta, moves={MOVE: replace(move, phase=Phase.COMMITTED)})
        else:
            finished.append(list(unpack(op.arguments)))
            meta = replace(meta, moves={})
        return Result(Code.OK)

    mover = Mover(lambda: meta, ask, world.clock, random.Random(1))
    mover.run()
    while not finished:
        await asyncio.sleep(0)
    assert [op.name if not isinstance(op, ChangeCluster) else op.verb for op in asked] == [
        *("move_state", "move_state", "import_begin", "track", "copy", "freeze", "complete"),
        *("commit", "activate", "release", "finish"),
    ]
    assert world.stores[TARGET].stats().records == 1000
    assert world.stores[SOURCE].stats().records == 0
    assert finished[0][:2] == [MOVE, 1000]
    assert finished[0][2] > 1000 * len(VALUE)
    assert sum(op.size() for op in asked) < 500
    mover.close()
