"""A node in memory behind a real gRPC server: the front end that tests of rpc/ and client/ script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import raftkv
from raftkv.api.status import ClusterSettings, Digests, NodeStatus, PeerStatus, Problem, ReplicaStatus, Role, SlotStats
from raftkv.client.aio import AsyncClient
from raftkv.clock import SystemClock
from raftkv.commands.base import Command, KeyWrite
from raftkv.commands.bounds import ANY_VERSION
from raftkv.commands.group import Genesis
from raftkv.commands.ranges import Scan
from raftkv.commands.records import Cas, Delete, Get, Put
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.frontend.counters import Durations
from raftkv.frontend.grpc.server import GrpcServer
from raftkv.frontend.port import NODE, Caller, NodeStats, ReplicaStats
from raftkv.frontend.resources import Resources
from raftkv.store.records import Store
from raftkv.store.watching import Part, WatchAsk
from shards.map import Group, Node, ShardMap
from shards.slots import slot_of
from tests.waiting import PATIENCE

SLOTS = 256
CLUSTER = "4d4f7c52-9a3e-4a8e-8c0f-0a3a1b2c3d4e"
Reply = Callable[[int, Result], None]
Script = Callable[[Any], Result | None]


def failed(code: Code, detail: str = "", hint: int = 0, version: int = 0, retry_ms: int = -1) -> Result:
    return Result(int(code), version, hint=hint, detail=detail, retry_ms=retry_ms)


@dataclass
class Shared:
    """The state that all fake nodes of one fake cluster share; dedupes by (client, sequence) as the store does."""

    records: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    done: dict[tuple[bytes, int], Result] = field(default_factory=dict)
    applied: list[Any] = field(default_factory=list)
    version: int = 0

    def execute(self, op: Command) -> Result:
        if isinstance(op, Scan):
            return self._scan(op)
        if isinstance(op, Get):
            value, version = self.records.get(op.key, (None, 0))
            return Result(0, version, value)
        assert isinstance(op, KeyWrite)
        name = (op.client, op.seq)
        if op.client and name in self.done:
            return self.done[name]
        result = self._write(op)
        if op.client:
            self.done[name] = result
        return result

    def _write(self, op: KeyWrite) -> Result:
        self.applied.append(op)
        value, version = self.records.get(op.key, (None, 0))
        assert isinstance(op, Put | Delete | Cas)
        failing = op.expected != value if isinstance(op, Cas) else op.expect not in (ANY_VERSION, version)
        if failing:
            return failed(Code.CONDITION_FAILED, version=version)
        if isinstance(op, Delete):
            self.records.pop(op.key, None)
            return Result(0, version)
        self.version += 1
        assert isinstance(op, Put | Cas)
        self.records[op.key] = (op.value, self.version)
        return Result(0, self.version)

    def _scan(self, op: Scan) -> Result:
        """As a store does."""
        store = Store()
        store.apply(1, [Genesis(tuple(range(SLOTS)))])
        store.apply(1, [Put(slot_of(key, SLOTS), key, value) for key, (value, _) in self.records.items()])
        return store.scan(op)


class FakeFrontend:
    """Executes at once, unless ``script`` answers for it or says None: no answer until ``release``."""

    def __init__(self, node: int = 1, shared: Shared | None = None, shard_map: ShardMap | None = None) -> None:
        self.node = node
        self.shared = shared or Shared()
        self.map = shard_map
        self.leading: dict[int, int] = {}
        self.ready = True
        self.cluster_id = CLUSTER
        self.script: Script | None = None
        self.batches: list[tuple[list[Command], float]] = []
        self.held: list[tuple[Command, int, Reply]] = []
        self.callers: list[Caller] = []

    @property
    def ops(self) -> list[Any]:
        return [op for batch, _ in self.batches for op in batch]

    def submit(self, ops: Sequence[Command], timeout: float, reply: Reply, caller: Caller = NODE) -> None:
        self.batches.append((list(ops), timeout))
        self.callers.append(caller)
        for index, op in enumerate(ops):
            result = self.script(op) if self.script is not None else self.shared.execute(op)
            if result is None:
                self.held.append((op, index, reply))
            else:
                reply(index, result)

    async def watch(self, ask: WatchAsk, timeout: float, caller: Caller) -> AsyncGenerator[Part | Result, None]:
        yield failed(Code.UNAVAILABLE)

    def release(self) -> None:
        """Execute what was held back and answer it."""
        held, self.held = self.held, []
        for op, index, reply in held:
            reply(index, self.shared.execute(op))

    def cluster_map(self) -> ShardMap | None:
        return self.map

    def leaders(self) -> dict[int, int]:
        return self.leading

    def status(self) -> NodeStatus:
        replica = ReplicaStatus(1, Role.LEADER, self.node, 3, 10, 9, 8, 5, 7, (1, 2, 3), {2: 10, 3: 9})
        epoch = 0 if self.map is None else self.map.epoch
        return NodeStatus(self.node, self.cluster_id, "0.1.0", epoch, self.ready, 1.5, (replica,))

    def settings(self) -> ClusterSettings:
        return ClusterSettings(1, 3, 0.5, 0.9, 0.1, 1 << 26)

    def waiting(self) -> dict[int, str]:
        return {}

    def slot_stats(self) -> list[SlotStats]:
        return [SlotStats(7, 1, 3, 100, 12)]

    def digests(self, group: int, check: int) -> Digests | None:
        return Digests({7: b"d" * 16}, b"r" * 16) if check == 1 else None

    async def read_snapshot(self, group: int) -> AsyncIterator[bytes]:
        for chunk in (b"one", b"two"):
            yield chunk


def one_group_map(addresses: Sequence[str], epoch: int = 1, cluster: str = CLUSTER) -> ShardMap:
    """All slots in group 1, which has a replica on every node; node i has the i-th address."""
    nodes = tuple(Node(index + 1, address, address, "") for index, address in enumerate(addresses))
    voters = tuple(node.id for node in nodes)
    return ShardMap(cluster, epoch, SLOTS, nodes, (Group(0, voters), Group(1, voters)), (1,) * SLOTS)


class FakeCluster:
    """Nodes 1 to ``count`` on free loopback ports; node 1 leads. Use as an asynchronous context manager."""

    def __init__(self, count: int = 1, shared: Shared | None = None) -> None:
        self.shared = shared or Shared()
        self.frontends = [FakeFrontend(index + 1, self.shared) for index in range(count)]
        self.servers = [GrpcServer(frontend, "127.0.0.1:0", Resources(SystemClock())) for frontend in self.frontends]
        self.addresses: list[str] = []

    @property
    def endpoints(self) -> str:
        return ",".join(self.addresses)

    async def __aenter__(self) -> Self:
        for server in self.servers:
            await server.start()
            self.addresses.append(f"127.0.0.1:{server.port}")
        self.set_map(one_group_map(self.addresses))
        self.lead(1)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(server.stop(0.1) for server in self.servers))

    def set_map(self, shard_map: ShardMap) -> None:
        for frontend in self.frontends:
            frontend.map = shard_map

    def lead(self, node: int) -> None:
        for frontend in self.frontends:
            frontend.leading = {0: node, 1: node}

    async def stop(self, node: int) -> None:
        """Stop one node; its port stays free for :meth:`start`."""
        await self.servers[node - 1].stop(0)

    async def start(self, node: int) -> None:
        """Start one node again at its old address."""
        server = GrpcServer(self.frontends[node - 1], self.addresses[node - 1], Resources(SystemClock()))
        await server.start()
        self.servers[node - 1] = server


@asynccontextmanager
async def started(
    count: int = 1, timeout: float = PATIENCE, seeds: int | None = None
) -> AsyncIterator[tuple[FakeCluster, AsyncClient]]:
    async with FakeCluster(count) as cluster, AsyncClient(cluster.addresses[:seeds], timeout=timeout) as kv:
        yield cluster, kv


def calls(kv: AsyncClient) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        "get": lambda: kv.get("k"),
        "put": lambda: kv.put("k", b"v"),
        "delete": lambda: kv.delete("k"),
        "cas": lambda: kv.cas("k", None, b"v"),
        "scan": kv.count,
        "create": lambda: kv.create("k", b"v"),
        "update": lambda: kv.update("k", b"v", version=1),
        "compare and delete": lambda: kv.delete("k", if_value=b"v"),
        "incr": lambda: kv.incr("k"),
        "append": lambda: kv.append("k", b"v"),
        "touch": lambda: kv.touch("k", 1.0),
        "persist": lambda: kv.persist("k"),
        "get and delete": lambda: kv.get_and_delete("k"),
        "get many": lambda: kv.get_many(["k", "l"]),
        "put many": lambda: kv.put_many({"k": b"v", "l": b"w"}),
        "delete many": lambda: kv.delete_many(["k", "l"]),
        "txn": lambda: kv.txn().check("k", absent=True).put("k", b"v").commit(),
    }


def monitored_replica(group: int, role: Role, leader: int, *, member: bool = True, **values: Any) -> ReplicaStats:
    indexes = {"last_index": 120, "commit_index": 118, "applied_index": 117, "snapshot_index": 100, **values}
    status = ReplicaStatus(group=group, role=role, leader=leader, term=7, records=3, voters=(1, 2, 3), **indexes)
    return ReplicaStats(status, member, 44, 5, 512, (), 2, 1)


class MonitoredFake:
    """A node that tells its monitoring what the test wants."""

    def __init__(self) -> None:
        self.ready = True
        self.living = True
        self.disk_full = False
        self.broken = False
        self.takes: Callable[[], None] = lambda: None
        self.replicas = [
            monitored_replica(0, Role.FOLLOWER, 2),
            monitored_replica(1, Role.LEADER, 1, match={1: 120, 2: 120, 3: 90}),
            monitored_replica(2, Role.CANDIDATE, 0, member=False),
        ]
        self.writes = Durations((0.001, 0.01))

    def alive(self) -> bool:
        return self.living

    def stats(self) -> NodeStats:
        self.takes()
        if self.broken:
            raise ZeroDivisionError("a mistake")
        replicas = tuple(self.replicas)
        status = NodeStatus(
            1,
            CLUSTER,
            raftkv.__version__,
            9,
            self.ready,
            12.5,
            tuple(one.status for one in replicas),
            (PeerStatus(2, True, 0.001, 0.1), PeerStatus(3, False, None, None)),
            (Problem("lost_entries", "it was told so", group=1, node=3),),
        )
        return NodeStats(
            status=status,
            replicas=replicas,
            connections={2: 1, 3: 4},
            skews={2: -0.5},
            disk_full=self.disk_full,
            disk_free=10**9,
            memory=10**8,
            memory_limit=10**10,
            memory_full=False,
            wal_bytes=2**24,
            wal_segments=1,
            wal_waiting=6,
            writes=self.writes,
            writing=0.25,
            outstanding=8,
            outstanding_bytes=800,
            moves_committed=3,
            moves_cancelled=1,
            freezes=Durations((0.1,)),
        )
