"""One node: the composition root of everything below it.

All of it runs in one thread on one event loop. The ports (file system, worker, network, clock, randomness) come from
the caller, so that a simulator runs the same node.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from raftkv import limits
from raftkv.api.status import ClusterSettings, Digests, NodeStatus, SlotStats
from raftkv.clock import Clock, Timer
from raftkv.commands.base import Command, Sender
from raftkv.commands.results import Result
from raftkv.errors import RaftKVError
from raftkv.frontend.port import NODE, Caller, NodeStats
from raftkv.log_limit import limited
from raftkv.node.client_ids import ClientIds
from raftkv.node.clocks import Clocks
from raftkv.node.config import NodeConfig, PeerSection
from raftkv.node.control import GroupOperations
from raftkv.node.drivers.addresses import Addresses
from raftkv.node.drivers.copier import Copier
from raftkv.node.drivers.internal_client import asker
from raftkv.node.drivers.maintenance import Maintenance, hand_over
from raftkv.node.drivers.membership import MembershipDriver
from raftkv.node.drivers.mover import Mover
from raftkv.node.drivers.replica_gc import ReplicaGC
from raftkv.node.inspection import Inspection
from raftkv.node.map_copy import MapCopy
from raftkv.node.maps import Maps
from raftkv.node.memory import Memory, ProcessMemory
from raftkv.node.neighbours import Neighbours
from raftkv.node.problems import Problems, Source, lost_entries
from raftkv.node.replicas import Replicas
from raftkv.node.requests import Reply, without
from raftkv.node.room import Room
from raftkv.node.router import Router
from raftkv.node.space import Space
from raftkv.node.stats import MeasuredWorker, StatsCollector
from raftkv.node.users import UserCopy
from raftkv.node.watches import Watches
from raftkv.peer.handshake import Secret
from raftkv.peer.hello import Identity
from raftkv.peer.links import Links
from raftkv.peer.network import Network
from raftkv.raft import RaftConfig
from raftkv.storage.folder import DataFolder
from raftkv.storage.fs import FileSystem, Worker
from raftkv.storage.snapshots import SnapshotStore
from raftkv.storage.wal import Wal
from raftkv.store.watching import Part, WatchAsk
from shards.map import META_GROUP, Node, ShardMap
from shards.placement import meta_voters

log = logging.getLogger(__name__)

_TICK: Final = 0.02
"""Seconds between looks at election deadlines and heartbeats: a fifth of a heartbeat."""

_TICKS_PER_ROUND: Final = 5
"""Maintenance runs every so many ticks."""

_ROUNDS_PER_LOOK: Final = 10
"""Problems of the node are looked for every so many ticks."""
_ROUNDS_PER_MAP: Final = 100
"""A map in which only owners have changed is saved this rarely: it is only a hint, and saving it blocks the loop."""

_LEADERLESS: Final = 3.0
_ELECTIONS: Final = 3
"""A group has had no leader for longer than an election after so many seconds, and so many times ``election_max``."""


class NodeRefused(RaftKVError):
    """The cluster does not take this node back: it was removed, or has lost the data folder with what it promised."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes that deployments keep at their defaults and tests make small.

    WAL segments and the parts in which snapshots are sent in bytes; entries kept in memory behind a snapshot.
    """

    segment_bytes: int = limits.WAL_SEGMENT_BYTES
    chunk_bytes: int = limits.SNAPSHOT_PART_BYTES
    keep_entries: int = RaftConfig().keep_entries


_USUAL: Final = Sizes()


class RaftNode:
    """A node with its replicas, links and router; serves the front end's port.

    ``secret``: what its peers know too; None where ``network`` proves who is at the other end of a connection.
    ``on_fatal`` is called once when the node must stop at once. The constructor raises DataFolderInUse, CorruptData or
    StorageError.
    """

    def __init__(
        self,
        config: NodeConfig,
        *,
        fs: FileSystem,
        worker: Worker,
        background: Worker,
        network: Network,
        secret: Secret | None,
        clock: Clock,
        rng: random.Random,
        on_fatal: Callable[[BaseException], None],
        sizes: Sizes = _USUAL,
        memory: ProcessMemory,
    ) -> None:
        self._config = config
        self._sizes = sizes
        self._clock = clock
        self._fs = fs
        self._on_fatal = on_fatal
        self._memory = Memory(memory, clock, config.node.memory)
        self._failed = False
        self.id = config.node.id
        self._folder = DataFolder.open(fs, config.node.data_dir, config.cluster.id, self.id, rng)
        try:
            self._compose(worker, background, network, secret, rng)
        except BaseException:
            self._folder.close()
            raise

    def _compose(
        self, worker: Worker, background: Worker, network: Network, secret: Secret | None, rng: random.Random
    ) -> None:
        config, fs, folder = self._config, self._fs, self._folder
        measured = MeasuredWorker(worker, self._clock)
        self._wal = Wal.open(
            fs,
            measured,
            folder.wal_path,
            self._fatal,
            background=background,
            identity=folder.incarnation.encode(),
            segment_bytes=self._sizes.segment_bytes,
            must_exist=folder.started,
        )
        folder.mark_started()
        files = SnapshotStore(fs, background, folder.snapshot_path)
        identity = Identity(config.cluster.id, self.id, folder.incarnation, f"{rng.getrandbits(64):016x}")
        self._links = Links(
            network,
            self._clock,
            identity,
            secret,
            config.node.peer_listen,
            config.dial_addresses(),
            lambda hello: self._neighbours.admit(hello),
            lambda peer, message: self._neighbours.on_message(peer, message),
            lambda node, link_number, up: self._neighbours.on_link(node, link_number, up),
            lambda node, refusal: self._neighbours.on_refused(node, refusal),
            rng,
            self._fatal,
        )
        raft = RaftConfig(
            election_min=config.raft.election_min,
            election_max=config.raft.election_max,
            heartbeat=config.raft.heartbeat,
            snapshot_bytes=config.raft.snapshot_bytes,
            snapshot_share=config.raft.snapshot_share,
            keep_entries=self._sizes.keep_entries,
            chunk_bytes=self._sizes.chunk_bytes,
        )
        self._replicas = Replicas(
            self.id,
            wal=self._wal,
            files=files,
            links=self._links,
            clock=self._clock,
            rng=rng,
            config=raft,
            fatal=self._fatal,
        )
        self._clocks = Clocks(self._links, self._clock, raft.lease_share)
        ask = asker(self.submit)
        self._copier = Copier(self._replicas, ask, self._clock)
        self.users = UserCopy(
            self.submit, self._clock, config.security.auth_grace, folder.knows_users, self._remember_users
        )
        self._router = Router(
            self.id,
            data=self._replicas.data,
            groups=GroupOperations(self._replicas, self._clock, self._copier.run),
            peers=self._links,
            clock=self._clock,
            ids=ClientIds(self._clocks.time, rng),
            users=self.users,
            quorum_reads=config.node.reads == "quorum",
            leaderless=max(_LEADERLESS, _ELECTIONS * config.raft.election_max),
        )
        self._replicas.on_turn.append(self._router.look_for_leaders)
        self._watches = Watches(self._replicas.data, self.submit, self._refusal, self._router.leader_of, self._clock)
        self._replicas.on_turn.append(self._watches.on_turn)
        self._room = Room(self.id, lambda: self._links.peers, self._links.send)
        maps = Maps(self._clock.now)
        self._map_copy = MapCopy(
            self.id,
            config.cluster.id,
            folder=folder,
            replicas=self._replicas,
            router=self._router,
            links=self._links,
            maps=maps,
            ask=ask,
            clock=self._clock,
            dial=self._dial_address,
            removed=lambda: self._refused(f"this node, {self.id}, has been removed from the cluster"),
            fatal=self._fatal,
        )
        self._addresses = Addresses(
            self.id,
            (config.node.address, config.node.peer_address),
            peers=self._links,
            current=lambda: self._map_copy.current,
            dial=self._dial_address,
            leading=self._map_copy.meta_state,
            ask=ask,
            now=self._clock.now,
            rng=rng,
        )
        self._neighbours = Neighbours(
            config,
            folder=folder,
            links=self._links,
            replicas=self._replicas,
            router=self._router,
            room=self._room,
            maps=maps,
            map_copy=self._map_copy,
            addresses=self._addresses,
            clear=lambda: self._replica_gc.clear(),
            refused=self._refused,
        )
        self._space = Space(
            self._room,
            self._memory,
            self._replicas,
            self._wal,
            lambda: fs.free_space(config.node.data_dir),
            self._sizes.segment_bytes,
        )
        self._maintenance = Maintenance(
            self._replicas,
            cluster_id=config.cluster.id,
            slots=config.cluster.slots,
            groups=config.cluster.groups,
            copies=config.cluster.replicas,
            members=self._neighbours.members,
            room=self._room,
            now=self._clock.now,
        )
        self._mover = Mover(self._map_copy.meta_state, ask, self._clock, rng)
        self._membership = MembershipDriver(self._map_copy.meta_state, ask, self._clock, rng)
        self._inspection = Inspection(self._replicas, self._clock)
        self._replica_gc = ReplicaGC(
            self.id,
            self._replicas,
            self._map_copy.meta_state,
            ask,
            lambda node: self._links.send(node, ["left"]),
            self._map_copy.keep,
            self._clock,
            rng,
        )
        self._stats = StatsCollector(
            self.id,
            config.cluster.id,
            replicas=self._replicas,
            router=self._router,
            links=self._links,
            clocks=self._clocks,
            wal=self._wal,
            writer=measured,
            mover=self._mover,
            clock=self._clock,
        )
        self._problems = Problems(
            [
                self._space.problems,
                self._clocks.problems,
                lambda: lost_entries(self._replicas),
                maps.problems,
            ]
        )
        self._timer: Timer | None = None
        self._ticks = 0
        self._distance = 0.0
        self._replicas.recover()
        self._map_copy.load()
        founders = meta_voters([node.id for node in config.nodes])
        if self._router.map is None and self.id in founders and not config.node.joined:
            self._replicas.ensure(META_GROUP, founders)
        self._map_copy.look_at_meta()
        # Not at once: the replica is in the middle of applying an entry.
        self._replicas.meta.on_change = lambda: self._later(self._map_copy.look_at_meta)

    # -- life

    async def start(self) -> None:
        """Talk to the other nodes. Raises CannotListen."""
        await self._links.start()
        self._tick()

    def reconfigure(self, config: NodeConfig) -> None:
        """Take over from ``config`` how reads are served, the limit of memory, and where nodes are reached."""
        self._memory.configure(config.node.memory)
        self._router.execution.quorum_reads = config.node.reads == "quorum"
        self._config = replace(self._config, dial=config.dial)
        known = self._config.nodes if self._router.map is None else self._router.map.nodes
        for node in known:
            if node.id in self._links.peers:
                self._links.set_dial(node.id, self._dial_address(node))

    def _dial_address(self, node: PeerSection | Node) -> str:
        return self._config.dial_address(node.id, node.peer_address)

    async def hand_over(self, patience: float) -> None:
        """Give the leaderships of this node away, within ``patience`` seconds.

        One that comes back stays: then the other nodes are stopping too.
        """
        await hand_over(self._replicas, self._clock, patience)

    async def close(self) -> None:
        """Stop everything and let go of the data folder."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.users.close()
        drivers = (self._mover, self._copier, self._membership, self._replica_gc, self._map_copy, self._addresses)
        for driver in drivers:
            driver.close()
        if not self._failed:
            self._map_copy.try_to_save()
        await self._links.close()
        self._wal.close()
        self._folder.close()

    def _remember_users(self) -> bool:
        try:
            self._folder.mark_users()
        except OSError as problem:
            log.warning("that the cluster has users cannot be noted yet: %s", problem, extra=limited("users"))
            return False
        return True

    def _fatal(self, problem: BaseException) -> None:
        if not self._failed:
            self._failed = True
            self._on_fatal(problem)

    def _refused(self, why: str) -> None:
        self._fatal(NodeRefused(why))

    def _later(self, call: Callable[[], None]) -> None:
        self._clock.call_later(0.0, call)

    def _tick(self) -> None:
        if self._failed:
            return
        self._timer = self._clock.call_later(_TICK, self._tick)
        try:
            self._replicas.tick()
            self._router.sweep()
            self._inspection.run()
            self._ticks += 1
            if self._ticks % _TICKS_PER_ROUND == 0:
                self._map_copy.look_at_meta()
                self._map_copy.run()
                self._clocks.look()
                self._replicas.doubt_leases(self._clocks.fast_peers())
                self._neighbours.tell_leads()
                self._distance = self._replicas.distance()
                if self._ticks % (_TICKS_PER_ROUND * _ROUNDS_PER_LOOK) == 0:
                    self._space.look_at_memory()
                self._router.no_space = self._space.look()
                self._maintenance.run(self._map_copy.confirmed)
                self._mover.run()
                self._membership.run()
                self._replica_gc.run()
                if self._ticks % (_TICKS_PER_ROUND * _ROUNDS_PER_LOOK) == 0:
                    self._wal.retry()
                    self._neighbours.tell_epoch()
                    self._addresses.run()
                    self._problems.look()
                if self._ticks % (_TICKS_PER_ROUND * _ROUNDS_PER_MAP) == 0:
                    self._map_copy.try_to_save()
        except Exception as error:
            self._fatal(error)
            raise

    # -- the front end's port

    def submit(self, ops: Sequence[Command], timeout: float, reply: Reply, caller: Caller = NODE) -> None:
        if self.users.on and caller.origin.sender is not Sender.NODE and (refused := self.users.refusals(caller, ops)):
            ops, reply = without(ops, refused, reply)
        self._router.submit(ops, timeout, reply, caller)

    def _refusal(self, caller: Caller, op: Command) -> Result | None:
        return self.users.refusals(caller, (op,)).get(0) if self.users.on else None

    def watch(self, ask: WatchAsk, timeout: float, caller: Caller) -> AsyncGenerator[Part | Result, None]:
        return self._watches.watch(ask, self._router.map, timeout, caller)

    def cluster_map(self) -> ShardMap | None:
        # Clients keep the latest map that they were told.
        return self._map_copy.confirmed or self._map_copy.current

    @property
    def distance(self) -> float:
        return self._distance

    def leaders(self) -> dict[int, int]:
        shard_map = self._router.map
        groups = [] if shard_map is None else [group.id for group in shard_map.groups]
        found = {}
        for group in groups:
            replica = self._replicas.get(group)
            leader = self._router.leader_of(group) if replica is None else replica.leader()
            if leader:
                found[group] = leader
        return found

    def settings(self) -> ClusterSettings:
        cluster, raft = self._config.cluster, self._config.raft
        times = (raft.election_min, raft.election_max, raft.heartbeat)
        return ClusterSettings(cluster.groups, cluster.replicas, *times, raft.snapshot_bytes)

    def waiting(self) -> Mapping[int, str]:
        return self._membership.waiting

    def slot_stats(self) -> list[SlotStats]:
        return self._inspection.slot_stats()

    def digests(self, group: int, check: int) -> Digests | None:
        return self._inspection.digests(group, check)

    def read_snapshot(self, group: int) -> AsyncIterator[bytes]:
        return self._inspection.read_snapshot(group)

    def add_problems(self, source: Source) -> None:
        """Tell what ``source`` finds wrong too."""
        self._problems.add(source)

    def alive(self) -> bool:
        return not self._failed

    def stats(self) -> NodeStats:
        return self._stats.stats(self.status(), self._space.free, self._room.here.disk, self._memory)

    def ready(self) -> bool:
        """Whether every group of this node has a leader and its slots, as far as the node knows."""
        return self._stats.ready()

    def status(self) -> NodeStatus:
        return self._stats.status(self._problems.current)
