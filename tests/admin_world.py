"""A cluster in memory behind real gRPC servers, for tests of ``raftkv-admin`` and of joining.

The meta group decides as the real one does (its state machine is the real one), and so do the data groups' stores.
What a cluster does by itself, moving slots and changing members, happens at once, or when told if ``auto`` is off.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Self

import pytest

from raftkv.api.status import ClusterSettings, Digests, NodeStatus, PeerStatus, Problem, ReplicaStatus, Role, SlotStats
from raftkv.cli.admin.main import run
from raftkv.clock import SystemClock
from raftkv.commands.base import Command, Read, Write
from raftkv.commands.group import Check, Genesis, Tick
from raftkv.commands.members import Transfer
from raftkv.commands.meta import ChangeCluster, FormCluster, ReadCluster
from raftkv.commands.records import Put
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.frontend.grpc.server import GrpcServer
from raftkv.frontend.port import NODE, Caller
from raftkv.frontend.resources import Resources
from raftkv.store.codec import pack
from raftkv.store.meta import MetaStore
from raftkv.store.records import Store
from raftkv.store.watching import Part, WatchAsk
from shards.map import META_GROUP, Node, ShardMap
from shards.placement import initial_map
from tests.store_helpers import content
from tests.waiting import PATIENCE

CLUSTER = "4d4f7c52-9a3e-4a8e-8c0f-0a3a1b2c3d4e"
SLOTS = 256


class World:
    """Nodes 1 to ``nodes`` with ``groups`` data groups. ``down``: nodes that answer nothing."""

    def __init__(self, nodes: int = 3, groups: int = 2, cluster_id: str = CLUSTER) -> None:
        self.cluster_id = cluster_id
        self.auto = True
        self.meta = MetaStore()
        self.meta_down = False
        self.stores: dict[int, Store] = {}
        self.leading: dict[int, int] = {}
        self.lag: dict[tuple[int, int], int] = {}
        self.missing: set[tuple[int, int]] = set()
        self.not_ready: set[int] = set()
        self.silence: dict[tuple[int, int], float | None] = {}
        self.told: dict[int, tuple[Problem, ...]] = {}
        """Of (node, peer), where it is not 0."""
        self.answers_changes = True
        self.corrupt: dict[tuple[int, int, int], bytes] = {}
        self.why_waiting: dict[int, str] = {}
        self.refuses_transfer: set[int] = set()
        self.served: list[Command] = []
        self._now = 1_000_000
        self._checks: dict[int, int] = {}
        self._loop = asyncio.new_event_loop()
        self._servers: dict[int, GrpcServer] = {}
        self._addresses: dict[int, str] = {}
        self._shape = (nodes, groups)

    # -- life

    def __enter__(self) -> Self:
        started = threading.Event()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(started),))
        self._thread.start()
        assert started.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE)
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        nodes, groups = self._shape
        for node in range(1, nodes + 1):
            await self._start(node)
        members = [
            Node(node, address, f"127.0.0.1:{node}", f"{node:032x}") for node, address in self._addresses.items()
        ]
        first = initial_map(self.cluster_id, members, groups, SLOTS, min(3, nodes))
        self.meta.apply(self._now, [FormCluster(pack(first.to_wire()))])
        for group in first.groups:
            self.leading[group.id] = group.voters[0]
            self._make_store(group.id, first.slots_of(group.id))
        started.set()
        await self._over.wait()
        await asyncio.gather(*(server.stop(0) for server in self._servers.values()))

    async def _start(self, node: int, listen: str = "127.0.0.1:0") -> None:
        server = GrpcServer(_Frontend(self, node), listen, Resources(SystemClock()))
        await server.start()
        self._servers[node] = server
        self._addresses[node] = f"127.0.0.1:{server.port}"

    def _in_loop(self, what: Any) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(PATIENCE)

    def stop_node(self, node: int) -> None:
        """``node`` answers nothing any more; others lead its groups, if they can."""
        self._in_loop(self._servers.pop(node).stop(0))
        for group in self.map.groups:
            alive = [voter for voter in group.voters if voter in self._servers]
            if 2 * len(alive) <= len(group.voters):
                self.leading.pop(group.id, None)
            elif self.leading.get(group.id) == node:
                self.leading[group.id] = alive[0]

    def join(self) -> int:
        """A further node that runs; its id."""
        node = self.meta.state.last_node + 1
        self._in_loop(self._start(node))
        self.add_node(self._addresses[node], f"127.0.0.1:{node}", f"{node:032x}")
        return node

    def add_node(self, address: str, peer_address: str, incarnation: str) -> None:
        """A further member."""
        self.command("add node", address, peer_address, incarnation, sha256(self.join_token().encode()).digest())

    def join_token(self) -> str:
        """Lets one node join."""
        token = f"token {self._now}"
        self.command("add join token", sha256(token.encode()).digest())
        return token

    # -- what tests look at

    @property
    def map(self) -> ShardMap:
        assert self.meta.map is not None
        return self.meta.map

    @property
    def endpoints(self) -> str:
        return ",".join(self._addresses.values())

    def address(self, node: int) -> str:
        return self._addresses[node]

    @property
    def alive(self) -> set[int]:
        return set(self._servers)

    def put(self, key: bytes, value: bytes, ttl: int = 0) -> None:
        """Write a record; ``ttl`` in ms."""
        from shards.slots import slot_of

        slot = slot_of(key, SLOTS)
        assert self.execute(Put(slot, key, value, ttl=ttl)).code == Code.OK

    def records(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for group, store in self.stores.items():
            for slot in self.map.slots_of(group):
                found.update({key: result.value or b"" for key, result in content(store, slot) if result.version})
        return found

    def command(self, verb: str, *arguments: Any) -> int:
        """A command of the meta group; its answer."""
        result = self.execute(ChangeCluster(META_GROUP, self._token(), verb, pack(list(arguments))))
        assert result.code == Code.OK, result
        return result.number

    # -- the cluster

    def _token(self) -> bytes:
        self._now += 1
        return self._now.to_bytes(16, "big")

    def _make_store(self, group: int, slots: Sequence[int]) -> None:
        if group != META_GROUP:
            store = self.stores[group] = Store()
            store.apply(self._now, [Genesis(tuple(slots))])

    def execute(self, op: Command) -> Result:
        self.served.append(op)
        self._now += 100
        if isinstance(op, ChangeCluster | ReadCluster) and self.meta_down:
            return Result(Code.UNAVAILABLE, detail="the meta group has no leader")
        if isinstance(op, ChangeCluster) and (refusal := self.meta.check(op, self._now)) is not None:
            return refusal
        if isinstance(op, ChangeCluster):
            (result,) = self.meta.apply(self._now, [op])
            self._follow()
            return result
        if isinstance(op, ReadCluster):
            self.meta.apply(self._now, [Tick()])
            return self.meta.describe()
        if isinstance(op, Transfer):
            if op.node not in self.map.group(op.group).voters or op.group in self.refuses_transfer:
                return Result(Code.CONDITION_FAILED, detail=f"group {op.group} cannot hand over at this moment")
            self.leading[op.group] = op.node
            return Result(Code.OK)
        if isinstance(op, Check):
            self._checks[op.check] = op.group
            return Result(Code.OK)
        assert isinstance(op, Read | Write)
        store = self.stores[self.map.owners[op.slot]]
        return op.read(store) if isinstance(op, Read) else store.apply(self._now, [op])[0]

    def _follow(self) -> None:
        """What nodes do by themselves."""
        for group in self.map.data_groups():
            if group.id not in self.stores:
                self._make_store(group.id, ())
                self.leading[group.id] = group.voters[0]
        for group_id in set(self.stores).difference(group.id for group in self.map.data_groups()):
            del self.stores[group_id]
            self.leading.pop(group_id, None)
        if self.auto:
            self.settle()

    def settle(self, most: int = 10_000) -> None:
        """Carry out what is wanted: up to ``most`` moves, and all changes of members."""
        tell = self._tell
        while most and tell("next").number:
            most -= 1
            for move in list(self.meta.state.moves.values()):
                tell("commit", move.id)
                for slot in move.slots:
                    source, target = self.stores[move.source]._slots, self.stores[move.target]._slots
                    target[slot] = source.pop(slot)
                    for key in target[slot].records:
                        source.order.remove(key)
                        target.order.add(key)
                tell("finish", move.id, 10 * len(move.slots), 1000 * len(move.slots), 5 + move.id % 10)
        for group, voters in list(self.meta.state.wanted.items()):
            for node in voters:
                tell("learn", group, node)
            tell("voters", group, 1, list(voters))
            if self.leading.get(group) not in voters:
                self.leading[group] = next(node for node in voters if node in self._servers)
        for group, node in list(self.meta.state.garbage):
            tell("dropped", group, node)

    def _tell(self, verb: str, *arguments: Any) -> Result:
        self._now += 1
        change = ChangeCluster(META_GROUP, self._token(), verb, pack(list(arguments)))
        (result,) = self.meta.apply(self._now, [change])
        return result

    def digests(self, node: int, group: int, check: int) -> Digests | None:
        if self._checks.get(check) != group:
            return None
        slots = {slot: bytes([slot % 251]) * 16 for slot in self.map.slots_of(group)}
        slots.update({slot: value for (at, of, slot), value in self.corrupt.items() if (at, of) == (node, group)})
        return Digests(slots, b"r" * 16)


class _Frontend:
    """One node of a world."""

    def __init__(self, world: World, node: int) -> None:
        self._world = world
        self._node = node

    def submit(self, ops: Sequence[Command], timeout: float, reply: Any, caller: Caller = NODE) -> None:
        for index, op in enumerate(ops):
            result = self._world.execute(op)
            if self._world.answers_changes or not isinstance(op, ChangeCluster):
                reply(index, result)

    async def watch(self, ask: WatchAsk, timeout: float, caller: Caller) -> AsyncGenerator[Part | Result, None]:
        yield Result(int(Code.UNAVAILABLE))

    def cluster_map(self) -> ShardMap | None:
        return self._world.meta.map

    def leaders(self) -> dict[int, int]:
        return dict(self._world.leading)

    def status(self) -> NodeStatus:
        world = self._world
        replicas = []
        for group in world.map.groups_on(self._node):
            if (group.id, self._node) in world.missing:
                continue
            leads = world.leading.get(group.id) == self._node
            behind = {node: world.lag.get((group.id, node), 0) for node in group.replicas}
            held = 5000 - behind[self._node]
            role = Role.LEADER if leads else Role.FOLLOWER
            match = {node: 5000 - less for node, less in behind.items()} if leads else {}
            leader = 0 if self._node in world.not_ready else world.leading.get(group.id, 0)
            replicas.append(
                ReplicaStatus(group.id, role, leader, 3, held, held, held, 100, 7, group.voters, match, group.learners)
            )
        return NodeStatus(
            self._node,
            world.cluster_id,
            "0.1.0",
            world.map.epoch,
            self._node not in world.not_ready,
            61.5,
            tuple(replicas),
            tuple(
                PeerStatus(one.id, True, 0.001, world.silence.get((self._node, one.id), 0.0))
                for one in world.map.nodes
                if one.id != self._node
            ),
            world.told.get(self._node, ()),
        )

    def settings(self) -> ClusterSettings:
        return ClusterSettings(len(self._world.stores), 3, 0.5, 0.9, 0.1, 1 << 26)

    def waiting(self) -> Mapping[int, str]:
        return self._world.why_waiting

    def slot_stats(self) -> list[SlotStats]:
        world = self._world
        found = []
        for group, store in world.stores.items():
            if world.leading.get(group) == self._node:
                for number, slot in store._slots.items():
                    found.append(SlotStats(number, group, len(slot.records), slot.bytes, 2 * len(slot.records)))
        return found

    def digests(self, group: int, check: int) -> Digests | None:
        return self._world.digests(self._node, group, check)

    async def read_snapshot(self, group: int) -> AsyncIterator[bytes]:
        for chunk in self._world.stores[group].snapshot().chunks():
            yield chunk


class Admin:
    """Runs ``raftkv-admin`` in this process."""

    def __init__(self, endpoints: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self.out = ""
        self.err = ""
        monkeypatch.setenv("RAFTKV_ENDPOINTS", endpoints)

    def __call__(self, command: str, *more: str) -> int:
        """The exit code of ``command``, split at spaces; ``out`` and ``err`` are what it printed."""
        self._capsys.readouterr()
        code = run([*command.split(), *more])
        self.out, self.err = self._capsys.readouterr()
        assert "Traceback" not in self.err
        return code

    def json(self, command: str, *more: str, code: int = 0) -> Any:
        """What ``command`` prints as JSON."""
        assert self(f"--yes -o json {command}", *more) == code, self.err
        report = json.loads(self.out)
        assert report.pop("schema") == 1
        return report


@contextmanager
def world_of(nodes: int = 3, groups: int = 2, cluster_id: str = CLUSTER) -> Iterator[World]:
    with World(nodes, groups, cluster_id) as world:
        yield world
