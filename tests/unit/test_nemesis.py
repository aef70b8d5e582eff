"""The makers of faults on real clusters: whom they choose, what they cut, and when they believe that it took effect."""

from __future__ import annotations

import asyncio
import inspect
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from faults.abuse.acts import ACTS
from faults.abuse.wire import PREFIX
from faults.process import nemesis
from faults.process.fault import Fault
from faults.process.nemesis import FAULTS, together
from faults.process.scenarios import SCENARIOS
from faults.process.toxiproxy import STREAMS
from faults.process.world import Pair, World
from faults.workloads import WORKLOADS
from shards.map import META_GROUP


@dataclass
class FakeWatcher:
    leaders: dict[int, tuple[int, int]]
    silences: dict[Pair, float | None] = field(default_factory=dict)
    trips: dict[Pair, float] = field(default_factory=dict)
    statuses: dict[int, Any] = field(default_factory=dict)

    def silence(self, node: int, peer: int) -> float | None:
        return self.silences.get((node, peer), 0.0)

    def round_trip(self, node: int, peer: int) -> float:
        return self.trips.get((node, peer), 0.001)


class FakeWorld:
    """Five nodes, three groups of three; what is done to it is written down."""

    def __init__(self, count: int = 5) -> None:
        self.nodes = list(range(1, count + 1))
        self.down: set[int] = set()
        self.paused: set[int] = set()
        self.gone: set[int] = set()
        self.disks: dict[int, Any] = {}
        self.shape = SimpleNamespace(clients=("c1",))
        self.watcher = FakeWatcher({0: (1, 3), 1: (2, 3), 2: (3, 3)})
        self.cluster = SimpleNamespace(pid=lambda node: None if node in self.down else 100 + node)
        self.done: list[tuple[Any, ...]] = []

    @property
    def alive(self) -> list[int]:
        return [node for node in self.nodes if node not in self.down]

    def voters(self, group: int) -> tuple[int, ...]:
        return {0: (1, 2, 3), 1: (2, 3, 4), 2: (3, 4, 5)}[group]

    async def kill(self, nodes: list[int]) -> None:
        self.down.update(nodes)
        self.done.append(("kill", *nodes))

    async def restart(self, nodes: list[int]) -> None:
        self.down.difference_update(nodes)
        self.done.append(("restart", *nodes))

    async def cut(self, pairs: list[Pair], toxic: Any) -> None:
        self.done.append(("cut", toxic.kind, *pairs))

    async def mend(self, pairs: list[Pair], toxic: Any) -> None:
        self.done.append(("mend", toxic.kind, *pairs))


def make(kind: str, world: FakeWorld, seed: int = 1) -> Fault:
    fault = FAULTS[kind](cast(World, world), random.Random(seed))
    assert fault is not None
    return fault


def cut_pairs(world: FakeWorld) -> set[Pair]:
    return {pair for entry in world.done if entry[0] == "cut" for pair in entry[2:]}


def test_scenarios_name_faults_and_workloads_that_exist_and_use_every_fault() -> None:
    used = {kind for one in SCENARIOS.values() for kind in one.faults}
    assert used == set(FAULTS)
    assert {name for one in SCENARIOS.values() for name in one.workloads} == set(WORKLOADS)
    assert all(one.name == name for name, one in SCENARIOS.items())


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_is_proved_by_the_process_and_undone_by_a_start(seed: int) -> None:
    async def scenario() -> None:
        world = FakeWorld()
        fault = make("kill leader", world, seed)
        (victim,) = fault.targets
        assert world.watcher.leaders[fault.group or 0][0] == victim
        assert await fault.proof() == ""
        await fault.inject()
        assert "which led groups" in await fault.proof()
        await fault.heal()
        assert world.done == [("kill", victim), ("restart", victim)]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("kind", "nodes", "count"),
    [("kill minority", 5, 2), ("kill majority", 5, 3), ("kill all", 5, 5), ("kill minority", 3, 1)],
)
def test_how_many_nodes_die(kind: str, nodes: int, count: int) -> None:
    assert len(make(kind, FakeWorld(nodes)).targets) == count


@pytest.mark.parametrize("seed", range(8))
def test_a_follower_that_is_chosen_leads_nothing_if_there_is_one(seed: int) -> None:
    fault = make("kill follower", FakeWorld(), seed)
    if fault.group in (1, 2):
        assert fault.targets[0] in (4, 5)


@pytest.mark.parametrize("seed", range(8))
def test_cuts_have_the_shape_of_their_names(seed: int) -> None:
    async def scenario() -> None:
        for kind in ("isolate leader", "split", "one way", "bridge", "majorities ring"):
            world = FakeWorld()
            fault = make(kind, world, seed)
            await fault.inject()
            pairs = cut_pairs(world)
            hears = {
                node: {other for other in world.nodes if other != node and (other, node) not in pairs}
                for node in world.nodes
            }
            if kind == "isolate leader":
                (leader,) = fault.targets
                assert {node for node, heard in hears.items() if not heard} == {leader}
                assert all(len(heard) == 3 for node, heard in hears.items() if node != leader)
            elif kind == "split":
                assert sorted(len(heard) for heard in hears.values()) == [1, 1, 2, 2, 2]
                assert {leader for leader, _ in world.watcher.leaders.values()} & set(fault.targets)
            elif kind == "one way":
                assert pairs
                assert not {(b, a) for a, b in pairs} & pairs
            elif kind == "bridge":
                assert sorted(len(heard) for heard in hears.values()) == [2, 2, 2, 2, 4]
            else:
                assert [len(heard) for heard in hears.values()] == [2] * 5
                assert len({frozenset({node, *heard}) for node, heard in hears.items()}) == 5
            await fault.heal()
            cuts = [entry[1:] for entry in world.done if entry[0] == "cut"]
            assert cuts == [entry[1:] for entry in world.done if entry[0] == "mend"]

    asyncio.run(scenario())


def test_a_cut_counts_only_when_no_direction_is_heard() -> None:
    async def scenario() -> None:
        world = FakeWorld()
        fault = make("isolate leader", world)
        await fault.inject()
        pairs = sorted(cut_pairs(world))
        assert await fault.proof() == ""
        world.watcher.silences = {(b, a): 1.0 for a, b in pairs}
        assert "8 directions" in await fault.proof()
        a, b = pairs[0]
        world.watcher.silences[b, a] = 0.1
        assert await fault.proof() == "", "one of them is heard"
        world.watcher.silences[b, a] = None
        assert "7 directions" in await fault.proof(), "nobody answers for it"
        world.watcher.silences = dict.fromkeys(world.watcher.silences)
        assert await fault.proof() == "", "nobody tells anything"

    asyncio.run(scenario())


def test_a_sick_link_counts_when_a_ping_shows_it() -> None:
    async def scenario() -> None:
        world = FakeWorld()
        fault = make("latency", world)
        await fault.inject()
        assert await fault.proof() == ""
        world.watcher.trips[max(cut_pairs(world))] = 2.0
        assert await fault.proof() == "a ping takes 2.000 s"

    asyncio.run(scenario())


def test_two_at_once_count_when_both_were_seen() -> None:
    async def scenario() -> None:
        world = FakeWorld()
        kill, cut = make("kill leader", world, 1), make("one way", world, 2)
        both = together(kill, cut)
        assert both.kind == nemesis.COMBINED
        assert both.hold == max(kill.hold, cut.hold)
        await both.inject()
        assert await both.proof() == ""
        world.watcher.silences = {(b, a): 1.0 for a, b in cut_pairs(world)}
        assert "is gone" in (proof := await both.proof())
        assert "was heard" in proof
        await both.heal()
        assert [entry[0] for entry in world.done] == ["kill", "cut", "mend", "restart"]

    asyncio.run(scenario())


def test_nothing_is_done_where_there_is_nothing_to_do_it_to() -> None:
    world = FakeWorld(3)
    world.watcher.leaders = {}
    rng = random.Random(1)
    kinds = ["kill leader", "pause leader", "isolate leader", "latency", "cut client", "slow disk", "full disk"]
    for kind in (*kinds, "flood", "idle sockets", "large answers"):
        assert FAULTS[kind](cast(World, world), rng) is None
    assert FAULTS["majorities ring"](cast(World, world), rng) is None
    world.down.add(1)
    assert FAULTS["replace node"](cast(World, world), rng) is None


class Doors(FakeWorld):
    """Clients' ways to nodes; ``shut`` ones carry no answers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocked: set[int] = set()
        self.streams: set[str] = set()

    async def shut(self, client: str, nodes: list[int], toxic: Any, streams: tuple[str, ...] = STREAMS) -> None:
        self.blocked.update(nodes)
        self.streams.update(streams)

    async def open(self, client: str, nodes: list[int], toxic: Any, streams: tuple[str, ...] = STREAMS) -> None:
        assert set(streams) == self.streams
        self.blocked.difference_update(nodes)

    async def door_open(self, client: str, node: int) -> bool:
        return node not in self.blocked


def test_lost_answers_are_lost_in_one_direction_of_all_ways_of_one_client() -> None:
    async def check() -> None:
        world = Doors()
        fault = make("lose answers", world)
        assert await fault.proof() == ""
        await fault.inject()
        assert (world.blocked, world.streams) == ({1, 2, 3, 4, 5}, {"downstream"})
        assert "no call of c1 is answered by n1, n2, n3, n4, n5" in await fault.proof()
        await fault.heal()
        assert world.blocked == set()

    asyncio.run(check())


@pytest.mark.parametrize("seed", range(4))
def test_an_isolated_leader_keeps_its_client_and_nobody_else(seed: int) -> None:
    async def check() -> None:
        world = Doors()
        fault = make("isolate with client", world, seed)
        (leader,) = fault.targets
        assert fault.group != META_GROUP, "the client asks that leader for keys"
        await fault.inject()
        assert world.blocked == {1, 2, 3, 4, 5} - {leader}
        assert cut_pairs(world) == {pair for other in world.blocked for pair in ((leader, other), (other, leader))}
        assert await fault.proof() == "", "the nodes hear each other still"
        world.watcher.silences = {(b, a): 1.0 for a, b in cut_pairs(world)}
        assert await fault.proof()
        world.blocked.add(leader)
        assert await fault.proof() == "", "the client is alone"
        await fault.heal()
        assert world.blocked == {leader}

    asyncio.run(check())


class Abuser:
    def __init__(self) -> None:
        self.counts: dict[str, Any] = {}
        self.ended = False

    async def until(self, _reached: Any, _timeout: float) -> bool:
        return True

    async def end(self) -> dict[str, Any]:
        self.ended = True
        return self.counts


class Abused(FakeWorld):
    """Where abusers are started; ``abuser`` is the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster.address = lambda node: f"node-{node}"
        self.open = 40
        self.stored: list[str] = []

    async def abuse(self, act: str, **arguments: Any) -> Abuser:
        inspect.signature(ACTS[act]).bind({}, None, **arguments)  # raises TypeError
        self.done.append((act, *arguments["addresses"]))
        self.abuser = Abuser()
        return self.abuser

    def descriptors(self, node: int) -> int:
        return self.open

    def client(self, name: str, timeout: float) -> Any:
        stored = self.stored

        class Client:
            async def __aenter__(self) -> Any:
                return self

            async def __aexit__(self, *_: object) -> None:
                return

            async def put(self, key: str, value: bytes) -> None:
                stored.append(key)

        return Client()


@pytest.mark.parametrize(
    ("kind", "nothing", "enough"),
    [
        ("flood", {"answered": 0}, {"answered": 100_000, "codes": {"OK": 3, "OVERLOADED": 9}}),
        ("idle sockets", {"open": 150, "closed": 10}, {"open": 0, "closed": 150}),
        ("large answers", {"asked": 300, "came": 0}, {"asked": 300, "came": 4}),
        ("large answers", {"asked": 300, "came": 300}, {"asked": 300, "came": 4}),
    ],
)
def test_abuse_counts_when_the_node_has_felt_it(kind: str, nothing: dict[str, Any], enough: dict[str, Any]) -> None:
    async def check() -> None:
        world = Abused()
        fault = make(kind, world)
        (leader,) = fault.targets
        assert leader in {node for node, _ in world.watcher.leaders.values()}
        assert await fault.proof() == "", "nobody abuses anything yet"
        await fault.inject()
        assert world.done == [(kind, f"node-{leader}")]
        assert all(key.startswith(PREFIX) for key in world.stored), "no workload knows the key"
        world.abuser.counts = nothing
        assert await fault.proof() == ""
        world.abuser.counts = enough
        assert await fault.proof()
        await fault.heal()
        assert world.abuser.ended

    asyncio.run(check())


def test_idle_sockets_are_seen_by_the_descriptors_of_the_node_too() -> None:
    async def check() -> None:
        world = Abused()
        fault = make("idle sockets", world)
        await fault.inject()
        world.abuser.counts = {"open": 150, "closed": 0}
        assert await fault.proof() == "", "they may all wait for the node to take them"
        world.open += 150
        assert "holds 150 more descriptors" in await fault.proof()

    asyncio.run(check())
