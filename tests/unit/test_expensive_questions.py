"""Guarantee: what operators ask costs a node little, however often and however many ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from raftkv import limits
from raftkv.api.messages import map_message
from raftkv.api.status import SlotStats
from raftkv.commands.group import Check, Genesis
from raftkv.commands.meta import ReadCluster
from raftkv.commands.records import Put
from raftkv.commands.results import ClusterReport, Result
from raftkv.errors import Code, Overloaded, Unavailable
from raftkv.frontend.grpc import admin as service
from raftkv.frontend.grpc.admin import AdminService
from raftkv.node.inspection import Inspection
from raftkv.store.codec import pack
from raftkv.store.meta import MetaStore
from raftkv.store.meta_state import MetaState
from raftkv.store.records import Store
from raftkv.v1 import admin_pb2
from shards.slots import SLOT_RULE
from tests.peer_world import ManualClock
from tests.rpc_fakes import FakeFrontend, one_group_map
from tests.store_helpers import GROUP, one


class _Replica:
    """A replica whose leader allows every read."""

    def __init__(self, store: Store) -> None:
        self.store = self.machine = store

    def read(self, quorum: bool, done: Callable[[Code], None]) -> None:
        done(Code.OK)


class _Replicas:
    def __init__(self, groups: int) -> None:
        self.data = {group: _Replica(_store()) for group in range(1, groups + 1)}
        self.get = self.data.get


def _store() -> Store:
    store = Store()
    store.apply(1, [Genesis((0,))])
    store.apply(2, [Put(0, b"%05d" % number, b"v" * 1000) for number in range(200)])
    return store


def _pins(store: Store) -> int:
    return sum(slot.pins for slot in store._slots.values())


def test_few_states_are_read_at_a_time_and_a_reader_that_stops_is_let_go() -> None:
    asyncio.run(_readers())


async def _readers() -> None:
    replicas, clock = _Replicas(3), ManualClock()
    inspection = Inspection(replicas, clock)  # type: ignore[arg-type]
    store = replicas.data[1].store

    async def begin(group: int) -> AsyncIterator[bytes]:
        chunks = inspection.read_snapshot(group)
        assert await anext(chunks)
        return chunks

    readers = [await begin(1) for _ in range(limits.MAX_SNAPSHOT_READS)]
    with pytest.raises(Overloaded, match="being read"):
        await begin(2)
    assert _pins(store) == limits.MAX_SNAPSHOT_READS
    clock._now += limits.SNAPSHOT_READ_IDLE - 1
    assert await anext(readers[0])
    inspection.run()
    clock._now += 2
    inspection.run()
    assert _pins(store) == 1, "the one that stopped holds nothing any more"
    with pytest.raises(Unavailable, match="no chunk was asked for"):
        async for _ in readers[1]:
            pass
    third = await begin(2)
    assert [chunk async for chunk in readers[0]], "the other goes on to its end"
    assert [chunk async for chunk in third]
    assert _pins(store) == 0
    async for _ in inspection.read_snapshot(1):
        break


def test_a_tick_does_little_of_a_check() -> None:
    """Two milliseconds of the clock, whatever the number of groups and checks; one piece at least."""

    class Clock(ManualClock):
        def now(self) -> float:
            self._now += 0.0005
            return self._now

    replicas = _Replicas(2)
    inspection = Inspection(replicas, Clock())  # type: ignore[arg-type]
    checks = []
    for replica in replicas.data.values():
        one(replica.store, Check(GROUP, 5))
        checks.append(replica.store.checks[5])
    ticks = 0
    while any(check.result() is None for check in checks):
        inspection.run()
        ticks += 1
    # 200 records in 7 batches, and a sorted run, in each of two groups; four looks at the clock in a tick.
    assert ticks >= 4
    assert checks[0].result() == checks[1].result()


class _Context:
    def time_remaining(self) -> None:
        return None


def _served(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeFrontend, AdminService, list[Any]]:
    made: list[Any] = []
    plain = map_message

    def counted(*arguments: Any) -> admin_pb2.GetMapResponse:
        made.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(service, "map_message", counted)
    frontend = FakeFrontend(shard_map=one_group_map(["h:1", "h:2"]))
    return frontend, AdminService(frontend), made


def test_the_map_becomes_a_message_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frontend, admin, made = _served(monkeypatch)
    context: Any = _Context()

    async def main() -> None:
        first = await admin.GetMap(admin_pb2.GetMapRequest(slot_rule=SLOT_RULE), context)
        frontend.map = one_group_map(["h:1", "h:2"])
        assert await admin.GetMap(admin_pb2.GetMapRequest(slot_rule=SLOT_RULE), context) is first, "an equal map"
        frontend.leading = {1: 2}
        second = await admin.GetMap(admin_pb2.GetMapRequest(slot_rule=SLOT_RULE), context)
        assert [group.leader for group in second.groups] == [0, 2]
        frontend.map = one_group_map(["h:1", "h:2"], epoch=2)
        assert (await admin.GetMap(admin_pb2.GetMapRequest(slot_rule=SLOT_RULE), context)).epoch == 2

    asyncio.run(main())
    assert len(made) == 3


def test_a_state_that_has_not_changed_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    frontend, admin, made = _served(monkeypatch)
    context: Any = _Context()
    store = MetaStore()
    store.state = MetaState(map=frontend.map)
    read: list[Any] = []
    plain = MetaState.from_wire

    def counted(wire: Any) -> MetaState:
        read.append(wire)
        return plain(wire)

    monkeypatch.setattr(MetaState, "from_wire", counted)
    frontend.script = lambda op: store.describe() if isinstance(op, ReadCluster) else Result(0)

    async def main() -> None:
        for store.time in (5, 6, 7):
            state = await admin.GetState(admin_pb2.GetStateRequest(slot_rule=SLOT_RULE), context)
            assert (state.now_ms, state.map.epoch, list(state.draining)) == (store.time, 1, [])
        store.state = MetaState(map=frontend.map, draining=(2,))
        assert list((await admin.GetState(admin_pb2.GetStateRequest(slot_rule=SLOT_RULE), context)).draining) == [2]

    asyncio.run(main())
    assert (len(read), len(made)) == (2, 1)
    assert store.describe().answer == ClusterReport(store.time, pack(store.state.to_wire()))


def test_who_asks_for_slots_at_once_gets_one_answer() -> None:
    class Frontend(FakeFrontend):
        asked = 0

        def slot_stats(self) -> list[SlotStats]:
            self.asked += 1
            return [SlotStats(slot, 1, 2, 3, 4) for slot in range(16_384)]

    frontend = Frontend()
    admin, context = AdminService(frontend), _Context()

    async def main() -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.create_task(count())
        asked: Any = (admin.GetSlots(admin_pb2.GetSlotsRequest(), context) for _ in range(50))  # type: ignore[arg-type]
        answers = await asyncio.gather(*asked)
        counting.cancel()
        assert {id(answer) for answer in answers} == {id(answers[0])}
        assert len(answers[0].slots) == 16_384
        assert turns >= 16_384 // 512, "others had their turns meanwhile"
        await admin.GetSlots(admin_pb2.GetSlotsRequest(), context)  # type: ignore[arg-type]

    asyncio.run(main())
    assert frontend.asked == 2
