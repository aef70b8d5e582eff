"""Guarantee: reads of one message that wait for a majority's word wait together, and each is answered once."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

from raftkv.commands.base import Command
from raftkv.commands.bounds import Mode
from raftkv.commands.records import Get, Put
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.frontend.port import Caller, Origin
from raftkv.node import messages
from raftkv.node.client_ids import ClientIds
from raftkv.node.router import Router
from raftkv.raft.reads import ReadDone
from raftkv.store.records import Store
from shards.map import Group, Node, ShardMap
from tests.peer_world import ManualClock
from tests.unit.test_node_router import NoGroups, NoUsers, RecordingPeers

READS: list[Command] = [Get(7, b"a", mode=Mode.QUORUM), Get(7, b"b", mode=Mode.QUORUM), Get(8, b"c", mode=Mode.QUORUM)]


class _Led:
    """A group that this node leads, as long as it says so. ``asked``: (by a quorum, whom to tell)."""

    def __init__(self) -> None:
        self.leading = True
        self.leased = False
        self.asked: list[tuple[bool, ReadDone]] = []

    def leads(self) -> bool:
        return self.leading

    def lease_holds(self) -> bool:
        return self.leased

    def read(self, quorum: bool, done: ReadDone) -> None:
        self.asked.append((quorum, done))


class _World:
    def __init__(self) -> None:
        self.group, self.peers, self.clock = _Led(), RecordingPeers(), ManualClock()
        self.results: dict[int, Result] = {}
        store = Store()
        store.begin([7, 8])
        store.apply(1, [Put(7, b"a", b"1"), Put(8, b"c", b"3")])
        ids = ClientIds(self.clock.wall, random.Random(1))
        self.router = Router(
            2,
            data={1: SimpleNamespace(group=self.group, store=store)},  # type: ignore[dict-item]
            groups=NoGroups(),
            peers=self.peers,
            clock=self.clock,
            ids=ids,
            users=NoUsers(),
            quorum_reads=False,
            leaderless=3.0,
        )
        nodes = tuple(Node(one, f"n{one}:7401", f"n{one}:7501", f"life {one}") for one in (1, 2))
        self.router.on_map(ShardMap("c", 1, 256, nodes, (Group(0, (1,)), Group(1, (1, 2))), (1,) * 256), None)

    def submit(self, ops: list[Command], caller: Caller) -> None:
        def reply(index: int, result: Result) -> None:
            assert index not in self.results
            self.results[index] = result

        self.router.submit(ops, 5.0, reply, caller)


def test_reads_of_a_message_ask_the_group_once() -> None:
    world = _World()
    world.submit([*READS, Get(7, b"a")], Caller(Origin(1)))
    assert world.results == {}
    assert world.router.outstanding[0] == 4
    quorum, lease = sorted(world.group.asked, key=lambda asked: not asked[0])
    assert (quorum[0], lease[0]) == (True, False), "those that a lease may allow do not wait for the others"
    quorum[1](Code.OK)
    assert [world.results[index].value for index in range(3)] == [b"1", None, b"3"]
    lease[1](Code.OK)
    assert world.results[3].value == b"1"
    assert world.router.outstanding == (0, 0)


def test_a_lease_answers_at_once() -> None:
    world = _World()
    world.group.leased = True
    world.submit([Get(7, b"a"), Get(8, b"c")], Caller(Origin(1)))
    assert [world.results[index].value for index in range(2)] == [b"1", b"3"]
    assert (world.group.asked, world.router.outstanding) == ([], (0, 0))


def test_reads_go_on_at_the_next_leader() -> None:
    asyncio.run(_next_leader())


async def _next_leader() -> None:
    world = _World()
    world.submit(READS, Caller(Origin(1)))
    world.group.leading = False
    world.router.on_leads(1, [1])
    ((_, done),) = world.group.asked
    done(Code.NOT_LEADER)
    await world.clock.advance(0.0)
    ((node, message),) = world.peers.sent
    number, _, _, ops = messages.operations(message)
    assert (node, ops) == (1, READS)
    world.router.on_answers(1, [(number, at, Result(0, at + 1)) for at in range(3)])
    assert [world.results[at].version for at in range(3)] == [1, 2, 3]
    assert world.router.outstanding == (0, 0)


def test_reads_without_a_word_are_answered_at_their_deadline() -> None:
    world = _World()
    world.submit(READS, Caller(Origin(1)))
    world.clock.jump(4.0)
    world.router.sweep()
    assert world.results == {}
    world.clock.jump(1.1)
    world.router.sweep()
    assert [world.results[index].code for index in range(3)] == [Code.DEADLINE_EXCEEDED] * 3
    assert world.router.outstanding == (0, 0)
    ((_, done),) = world.group.asked
    done(Code.OK)  # and nobody is answered twice


def test_reads_whose_caller_has_gone_take_no_room() -> None:
    world, caller = _World(), Caller(Origin(1))
    world.submit(READS, caller)
    caller.gone = True
    world.router.sweep()
    assert [world.results[index].code for index in range(3)] == [Code.UNAVAILABLE] * 3
    assert world.router.outstanding == (0, 0)
