"""Guarantee: faults meet whom they name, cut what they say, are undone, and count only when the cluster shows them."""

from __future__ import annotations

import asyncio
import inspect
import random
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from faults.abuse.acts import ACTS
from faults.driver import Effect, Way, host, node_at
from faults.keys import PREFIX
from faults.nemesis.fault import Fault, between, perform, together
from faults.nemesis.links import flapping, loose
from faults.process.nemesis import FAULTS
from faults.process.scenarios import SCENARIOS
from faults.process.world import World, WorldShape
from faults.sim.loop import SimLoop, simulate
from faults.sim.nemesis import catalogue
from faults.sim.storm import KINDS, Storm
from faults.workloads.kinds import WORKLOADS
from shards.map import META_GROUP


@dataclass
class FakeWatcher:
    leaders: dict[int, tuple[int, int]]
    silences: dict[tuple[int, int], float | None] = field(default_factory=dict)
    trips: dict[tuple[int, int], float] = field(default_factory=dict)
    statuses: dict[int, Any] = field(default_factory=dict)
    awaited: set[int] = field(default_factory=set)

    def silence(self, node: int, peer: int) -> float | None:
        return self.silences.get((node, peer), 0.0)

    def round_trip(self, node: int, peer: int) -> float:
        return self.trips.get((node, peer), 0.001)


@dataclass
class FakeLink:
    name: str
    toxics: set[str] = field(default_factory=set)

    def add(self, kind: str, stream: str, **_: int) -> None:
        self.toxics.add(f"{kind}_{stream}")

    def remove(self, name: str) -> None:
        self.toxics.remove(name)


class FakeCluster:
    tls = None

    def __init__(self, count: int) -> None:
        self.nodes = list(range(1, count + 1))
        self.dead: set[int] = set()

    def pid(self, node: int) -> int | None:
        return None if node in self.dead else 100 + node

    def address(self, node: int) -> str:
        return f"node-{node}"

    def kill(self, node: int) -> None:
        self.dead.add(node)

    def restart(self, node: int, *, wait: bool) -> None:
        self.dead.remove(node)


class FakeWorld(World):
    """Five nodes, three groups of three, one client; processes, proxies and what nodes say are made up."""

    def __init__(self, count: int = 5) -> None:
        journal: Any = SimpleNamespace(event=lambda *_, **__: None)
        super().__init__(Path(), WorldShape(clients=("c1",)), journal, "")
        self.fake = FakeWatcher({0: (1, 3), 1: (2, 3), 2: (3, 3)})
        self.watcher = cast(Any, self.fake)
        self.cluster = cast(Any, FakeCluster(count))
        pairs = [(a, b) for a in self.nodes for b in self.nodes if a != b]
        self._links = cast(Any, {pair: FakeLink(f"{pair}") for pair in pairs})
        self._doors = cast(Any, {("c1", f"node-{node}"): FakeLink(f"c1 {node}") for node in self.nodes})

    def voters(self, group: int) -> tuple[int, ...]:
        return {0: (1, 2, 3), 1: (2, 3, 4), 2: (3, 4, 5)}[group]

    async def door_open(self, client: str, node: int) -> bool:
        return not cast(Any, self._doors[client, f"node-{node}"]).toxics

    def toxics(self) -> int:
        return sum(len(cast(Any, link).toxics) for link in (*self._links.values(), *self._doors.values()))

    def closed(self) -> set[Way]:
        """The ways on which something lies, on all connections that they use."""
        ends = [*map(host, self.nodes), "c1"]
        ways = {(one, other) for one in ends for other in ends if one != other}
        return {
            way
            for way in ways
            if all(
                any(toxic.endswith(stream) for toxic in cast(Any, link).toxics) for link, stream in self._streams(*way)
            )
        }

    def nobody_hears(self, ways: set[Way]) -> None:
        self.fake.silences = {(node_at(b), node_at(a)): 1.0 for a, b in ways if node_at(a) and node_at(b)}


def make(kind: str, world: World, seed: int = 1) -> Fault:
    fault = FAULTS[kind](world, random.Random(seed))
    assert fault is not None
    return fault


async def injected(fault: Fault) -> Effect:
    effect = await fault.inject()
    assert effect is not None
    return effect


def test_every_kind_of_a_storm_can_be_made() -> None:
    assert catalogue(Storm.draw(1)).keys() == {*KINDS}


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
        assert world.leaders()[fault.group or 0] == victim
        effect = await injected(fault)
        assert (world.down, world.cluster.pid(victim)) == ({victim}, None)
        assert "which led groups" in await effect.shown()
        await effect.end()
        assert (world.down, world.cluster.pid(victim)) == (set(), 100 + victim)
        assert await effect.shown() == "", "it runs"

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
            effect = await injected(fault)
            ways = world.closed()
            hears = {
                node: {other for other in world.nodes if other != node and (host(other), host(node)) not in ways}
                for node in world.nodes
            }
            sizes = sorted(len(heard) for heard in hears.values())
            assert not {way for way in ways if "c1" in way}, "clients reach all nodes"
            if kind == "isolate leader":
                (leader,) = fault.targets
                assert {node for node, heard in hears.items() if not heard} == {leader}
                assert sizes == [0, 3, 3, 3, 3]
            elif kind == "split":
                assert sizes in ([1, 1, 2, 2, 2], [0, 3, 3, 3, 3])
                assert {*world.leaders().values()} & set(fault.targets)
            elif kind == "one way":
                assert ways
                assert not {(b, a) for a, b in ways} & ways
            elif kind == "bridge":
                assert sizes == [2, 2, 2, 2, 4]
            else:
                assert sizes == [2] * 5
                assert len({frozenset({node, *heard}) for node, heard in hears.items()}) == 5
            await effect.end()
            assert world.toxics() == 0

    asyncio.run(scenario())


def test_a_way_that_two_faults_cut_opens_when_both_are_over() -> None:
    async def scenario() -> None:
        world = FakeWorld()
        ways = [("n1", "n2")]
        one, other = await world.cut(ways, "black hole"), await world.cut(ways, "black hole")
        await one.end()
        assert world.closed() == {*ways}
        await other.end()
        assert world.toxics() == 0

    asyncio.run(scenario())


def test_a_cut_counts_only_when_no_direction_is_heard() -> None:
    async def scenario() -> None:
        world = FakeWorld()
        effect = await injected(make("isolate leader", world))
        assert await effect.shown() == ""
        world.nobody_hears(world.closed())
        assert "8 directions" in await effect.shown()
        heard = min(world.fake.silences)
        world.fake.silences[heard] = 0.1
        assert await effect.shown() == "", "one of them is heard"
        world.fake.silences[heard] = None
        assert "7 directions" in await effect.shown(), "nobody answers for it"
        world.fake.silences = dict.fromkeys(world.fake.silences)
        assert await effect.shown() == "", "nobody tells anything"

    asyncio.run(scenario())


def test_a_sick_link_counts_when_a_ping_shows_it() -> None:
    async def scenario() -> None:
        world = FakeWorld()
        effect = await injected(make("latency", world))
        assert await effect.shown() == ""
        a, b = max(world.closed())
        world.fake.trips[node_at(a), node_at(b)] = 2.0
        assert await effect.shown() == "a ping takes 2.000 s"

    asyncio.run(scenario())


def test_flapping_ways_break_and_heal_until_somebody_has_seen_it_often_enough() -> None:
    closed: set[Way] = set()

    async def cut(ways: list[Way], _: str) -> Effect:
        closed.update(ways)
        return Effect(lambda: "nothing is heard", closed.clear)

    async def scenario(_: SimLoop) -> None:
        driver: Any = SimpleNamespace(nodes=[1, 2, 3], alive=[1, 2, 3], leaders=lambda: {1: 2}, cut=cut)
        fault = flapping(loose(1.0), between(1.0, 1.0), "black hole")(driver, random.Random(1))
        assert fault is not None
        assert (fault.targets, fault.group) == ((2,), 1)
        effect = await injected(fault)
        looks = 1
        while not (proof := await effect.shown()):
            assert closed == set(), "each look ends with a whole link"
            looks += 1
        assert looks >= 3
        assert proof == f"{looks} times; nothing is heard"

    simulate(scenario)


def test_two_at_once_count_when_both_were_seen() -> None:
    async def scenario() -> None:
        world = FakeWorld()
        kill, cut = make("kill leader", world, 1), make("one way", world, 2)
        both = together(kill, cut)
        assert both.hold == max(kill.hold, cut.hold)
        effect = await injected(both)
        assert await effect.shown() == ""
        world.nobody_hears(world.closed())
        assert "is gone" in (proof := await effect.shown())
        assert "was heard" in proof
        await effect.end()
        assert (world.down, world.toxics()) == (set(), 0)

    asyncio.run(scenario())


def test_a_fault_without_proof_is_kept_up_a_little_longer_and_one_that_cannot_be_is_none() -> None:
    async def scenario() -> None:
        said, now = ["", "", "", "seen"], 0.0
        undone: list[float] = []

        async def proof() -> str:
            nonlocal now
            now += 1.0
            return said.pop(0) if said else ""

        async def undo() -> None:
            undone.append(now)

        async def inject() -> Effect:
            return Effect(proof, undo)

        told: list[str] = []
        fault = Fault("", (), None, 2.0, inject)
        assert await perform(fault, lambda: now, 0.0, longer=9.0, seen=told.append) == "seen"
        assert (told, undone) == (["seen"], [4.0]), "no longer than until it is proved"
        assert await perform(fault, lambda: now, 0.0, longer=3.0) == ""
        assert undone[1:] == [9.0]

        async def nothing() -> None:
            return None

        assert await perform(Fault("", (), None, 0.0, nothing), lambda: now, 0.0) is None

    asyncio.run(scenario())


def test_nothing_is_done_where_there_is_nothing_to_do_it_to() -> None:
    world = FakeWorld(3)
    world.fake.leaders = {}
    rng = random.Random(1)
    kinds = ["kill leader", "pause leader", "isolate leader", "latency", "cut client", "slow disk", "full disk"]
    for kind in (*kinds, "flood", "idle sockets", "large answers"):
        assert FAULTS[kind](world, rng) is None
    assert FAULTS["majorities ring"](world, rng) is None
    world.down.add(1)
    assert FAULTS["replace node"](world, rng) is None


def test_lost_answers_are_lost_in_one_direction_of_all_ways_of_one_client() -> None:
    async def check() -> None:
        world = FakeWorld()
        effect = await injected(make("lose answers", world))
        assert world.closed() == {(host(node), "c1") for node in world.nodes}
        assert "no call of c1 is answered by n1, n2, n3, n4, n5" in await effect.shown()
        await effect.end()
        assert world.toxics() == 0

    asyncio.run(check())


@pytest.mark.parametrize("seed", range(4))
def test_an_isolated_leader_keeps_its_client_and_nobody_else(seed: int) -> None:
    async def check() -> None:
        world = FakeWorld()
        fault = make("isolate with client", world, seed)
        (leader,) = fault.targets
        assert fault.group != META_GROUP, "the client asks that leader for keys"
        effect = await injected(fault)
        others = {host(node) for node in world.nodes if node != leader}
        ends = (host(leader), "c1")
        assert world.closed() == {way for one in ends for other in others for way in ((one, other), (other, one))}
        assert await effect.shown() == "", "the nodes hear each other still"
        world.nobody_hears(world.closed())
        assert await effect.shown()
        cast(Any, world._doors["c1", f"node-{leader}"]).toxics.add("strange")
        assert await effect.shown() == "", "the client is alone"

    asyncio.run(check())


@pytest.mark.parametrize("seed", range(6))
def test_a_client_is_cut_off_from_a_leader_a_majority_or_all(seed: int) -> None:
    async def check() -> None:
        world = FakeWorld()
        fault = make("cut client", world, seed)
        assert len(fault.targets) in (1, 3, 5)
        effect = await injected(fault)
        assert {end for way in world.closed() for end in way} == {"c1", *map(host, fault.targets)}
        assert "no call of c1 is answered by" in await effect.shown()
        await effect.end()
        assert world.toxics() == 0

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
        self.open = 40
        self.stored: list[str] = []
        self.done: list[tuple[str, ...]] = []

    async def abuse(self, act: str, **arguments: Any) -> Any:
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
        assert leader in world.leaders().values()
        effect = await injected(fault)
        assert world.done == [(kind, f"node-{leader}")]
        assert all(key.startswith(PREFIX) for key in world.stored), "no workload knows the key"
        world.abuser.counts = nothing
        assert await effect.shown() == ""
        world.abuser.counts = enough
        assert await effect.shown()
        await effect.end()
        assert world.abuser.ended

    asyncio.run(check())


def test_idle_sockets_are_seen_by_the_descriptors_of_the_node_too() -> None:
    async def check() -> None:
        world = Abused()
        effect = await injected(make("idle sockets", world))
        world.abuser.counts = {"open": 150, "closed": 0}
        assert await effect.shown() == "", "they may all wait for the node to take them"
        world.open += 150
        assert "holds 150 more descriptors" in await effect.shown()

    asyncio.run(check())
