"""The router between two of its own lives: answers to what was forwarded before a restart are nobody's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from raftkv import limits
from raftkv.commands.base import Command, GroupCommand, Sender
from raftkv.commands.records import Cas, Get, Put
from raftkv.commands.results import Result
from raftkv.commands.updates import GetAndDelete
from raftkv.errors import Code
from raftkv.frontend.port import Origin
from raftkv.node import messages
from raftkv.node.client_ids import ClientIds
from raftkv.node.router import Router
from raftkv.raft import RaftGroup
from shards.map import Group, Node, ShardMap
from tests.peer_world import ManualClock
from tests.store_helpers import bits, make, one, scan_of


class RecordingPeers:
    """Links that are up and remember what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, list[Any]]] = []
        self.waiting = 0

    def send(self, node: int, message: list[Any]) -> None:
        self.sent.append((node, message))

    def unsent(self, node: int) -> int:
        return self.waiting

    def up(self, node: int) -> bool:
        return node != 2


class NoGroups:
    def get(self, group: int) -> RaftGroup | None:
        return None

    def execute(self, group: RaftGroup, op: GroupCommand, size: int, done: Callable[[Result], None]) -> None:
        raise AssertionError("this node has no groups")


class NoUsers:
    def refusals_for(self, origin: Origin, ops: Sequence[Command]) -> dict[int, Result]:
        return {}


class _Life:
    """Node 2, which has no replica unless it is in ``data``, from one start to its end."""

    def __init__(self, seed: int, data: dict[int, Any] | None = None) -> None:
        self.peers = RecordingPeers()
        self.clock = ManualClock()
        self.results: list[tuple[int, Result]] = []
        self.router = Router(
            2,
            data=data or {},
            groups=NoGroups(),
            peers=self.peers,
            clock=self.clock,
            ids=ClientIds(self.clock.wall, random.Random(seed)),
            users=NoUsers(),
            quorum_reads=False,
            leaderless=3.0,
        )
        nodes = tuple(Node(one, f"n{one}:7401", f"n{one}:7501", f"life {one}") for one in (1, 2))
        self.router.on_map(ShardMap("c", 1, 256, nodes, (Group(0, (1,)), Group(1, (1,))), (1,) * 256), None)

    async def forward(self, op: Command) -> int:
        """The number under which ``op`` went to node 1."""
        self.router.submit([op], 5.0, lambda index, result: self.results.append((index, result)))
        await self.clock.advance(0.0)
        node, message = self.peers.sent[-1]
        number, _, _, ops = messages.operations(message)
        assert (node, message[0], ops) == (1, "op", [op])
        return number


def test_an_answer_to_what_a_node_forwarded_before_its_restart_is_not_taken_for_another() -> None:
    asyncio.run(_two_lives())


async def _two_lives() -> None:
    """Both lives counted their batches from 1: the second took an answer to the first's write for its own read's."""
    before, after = _Life(1), _Life(2)
    old = await before.forward(Get(7, b"other"))
    new = await after.forward(Get(7, b"mine"))
    after.router.on_answers(1, [(old, 0, Result(0, 1, b"value of other"))])
    assert after.results == []
    after.router.on_answers(1, [(new, 0, Result(0, 2, b"value of mine"))])
    assert [(index, result.value) for index, result in after.results] == [(0, b"value of mine")]
    assert 0 < new < 1 << 63, "an integer of a message"


def test_operations_of_other_nodes_are_held_to_the_limits() -> None:
    """Whatever door they come through: a larger one would get into the log, and never into a frame again."""
    asyncio.run(_too_large())


async def _too_large() -> None:
    life = _Life(1)
    large = b"x" * (limits.MAX_VALUE_BYTES + 1)
    ops: list[Command] = [
        Put(7, b"k", large),
        scan_of(999, slots=bits(7)),
        Cas(7, b"k", b"v", expected=large),
        scan_of(998, slots=bits(7)),
    ]
    life.router.on_forwarded(1, 5, 1000, Origin(7, Sender.CLIENT), ops)
    await life.clock.advance(0.0)
    node, message = life.peers.sent[-1]
    assert (node, message[0]) == (1, "re")
    assert {index: result.code for _, index, result in messages.answers(message)} == {
        0: Code.TOO_LARGE,
        1: Code.INVALID_ARGUMENT,
        2: Code.TOO_LARGE,
        3: Code.INVALID_ARGUMENT,
    }


def test_a_write_whose_answer_finds_no_room_is_not_begun_for_another_node() -> None:
    asyncio.run(_no_room())


async def _no_room() -> None:
    store = make(7)
    one(store, Put(7, b"k", b"v"))
    life = _Life(1, {1: SimpleNamespace(store=store, group=SimpleNamespace(leads=lambda: False))})
    life.peers.waiting = limits.MAX_UNSENT_ANSWER_BYTES + 1
    life.router.on_forwarded(
        1, 5, 1000, Origin(7, Sender.CLIENT), [GetAndDelete(7, b"k"), GetAndDelete(7, b"none"), Put(7, b"k", b"v")]
    )
    await life.clock.advance(0.0)
    answers = messages.answers(life.peers.sent[-1][1])
    assert {index: result.code for _, index, result in answers} == {
        0: Code.OVERLOADED,
        1: Code.NOT_LEADER,
        2: Code.NOT_LEADER,
    }


def test_only_leaders_of_known_groups_are_remembered() -> None:
    life = _Life(1)
    life.router.on_leads(1, [1, 5, 2**63])
    assert (life.router.leader_of(1), life.router.leader_of(5)) == (1, 0)
    assert len(life.router._leaders._hints) == 1
