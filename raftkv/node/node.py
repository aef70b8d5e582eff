"""One node: the composition root of everything below it.

All of it runs in one thread on one event loop. The ports (file system, worker, network, clock, randomness) come from
the caller, so that a simulator runs the same node.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from raftkv import __version__, limits
from raftkv.clock import Clock, Timer
from raftkv.commands.base import Command
from raftkv.errors import CorruptData, RaftKVError
from raftkv.node import messages
from raftkv.node.asking import asker
from raftkv.node.client_ids import ClientIds
from raftkv.node.clocks import Clocks
from raftkv.node.config import NodeConfig
from raftkv.node.control import GroupOperations
from raftkv.node.figures import Figures, MeasuredWorker
from raftkv.node.housekeeping import Housekeeping
from raftkv.node.inspection import Inspection
from raftkv.node.leftovers import Leftovers
from raftkv.node.maps import Maps
from raftkv.node.membership import Membership
from raftkv.node.memory import Memory, ProcessMemory
from raftkv.node.mover import Mover
from raftkv.node.problems import Problems, Source, lost_entries
from raftkv.node.replicas import Replicas
from raftkv.node.requests import Reply
from raftkv.node.room import Full, Room
from raftkv.node.router import Router
from raftkv.node.space import Space
from raftkv.peer.frames import ProtocolViolation
from raftkv.peer.hello import Hello, Identity, Reason, Refused
from raftkv.peer.links import Links
from raftkv.peer.network import Network
from raftkv.raft import RaftConfig
from raftkv.rpc.frontend import (
    NODE,
    Caller,
    ClusterSettings,
    Digests,
    NodeFigures,
    NodeStatus,
    PeerStatus,
    SlotFigures,
)
from raftkv.storage.folder import MAP_AT, DataFolder
from raftkv.storage.fs import FileSystem, Worker
from raftkv.storage.snapshots import SnapshotStore
from raftkv.storage.wal import Wal
from raftkv.store.codec import unpack
from raftkv.store.meta_state import MetaState
from shards.map import META_GROUP, ShardMap
from shards.map import Node as MapNode
from shards.placement import meta_voters

log = logging.getLogger(__name__)

_TICK: Final = 0.02
"""Seconds between looks at election deadlines and heartbeats: a fifth of a heartbeat."""

_TICKS_PER_ROUND: Final = 5
"""Housekeeping runs every so many ticks."""

_ROUNDS_PER_LOOK: Final = 10
"""What is wrong with the node is looked at so rarely."""
_ROUNDS_PER_MAP: Final = 100
"""A map in which only owners have changed is saved so rarely: it is a hint, and saving it holds up all else."""

_LEADERLESS: Final = 3.0
_ELECTIONS: Final = 3
"""A group has had no leader for longer than an election after so many seconds, and so many times ``election_max``."""

_FATAL: Final = (Reason.REMOVED, Reason.REPLACED_FOLDER)
"""A node that others refuse for one of these never gets back into its cluster."""


class NodeRefused(RaftKVError):
    """The cluster does not take this node back: it was removed, or has lost the data folder with what it promised."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a deployment leaves alone and a test makes small.

    WAL segments and the parts in which snapshots are sent in bytes; entries kept in memory behind a snapshot.
    """

    segment_bytes: int = limits.WAL_SEGMENT_BYTES
    chunk_bytes: int = limits.SNAPSHOT_PART_BYTES
    keep_entries: int = RaftConfig().keep_entries


_USUAL: Final = Sizes()


class RaftNode:
    """A node with its replicas, links and router; serves the front end's port.

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
        self._started_at = clock.now()
        self.id = config.node.id
        self._folder = DataFolder.open(fs, config.node.data_dir, config.cluster.id, self.id, rng)
        try:
            self._compose(worker, background, network, rng)
        except BaseException:
            self._folder.close()
            raise

    def _compose(self, worker: Worker, background: Worker, network: Network, rng: random.Random) -> None:
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
            config.node.peer_listen,
            config.dial_addresses(),
            self._admit,
            self._on_message,
            self._on_link,
            self._on_refused,
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
        self._router = Router(
            self.id,
            data=self._replicas.data,
            groups=GroupOperations(self._replicas, self._clock),
            peers=self._links,
            clock=self._clock,
            ids=ClientIds(self._clocks.time, rng),
            quorum_reads=config.node.reads == "quorum",
            leaderless=max(_LEADERLESS, _ELECTIONS * config.raft.election_max),
        )
        self._room = Room(self.id, lambda: self._links.peers, self._links.send)
        self._space = Space(
            self._room,
            self._memory,
            self._replicas,
            self._wal,
            lambda: fs.free_space(config.node.data_dir),
            self._sizes.segment_bytes,
        )
        self._housekeeping = Housekeeping(
            self._replicas,
            cluster_id=config.cluster.id,
            slots=config.cluster.slots,
            groups=config.cluster.groups,
            copies=config.cluster.replicas,
            members=self._members,
            room=self._room,
            now=self._clock.now,
        )
        ask = asker(self._router.submit)
        self._mover = Mover(self._meta_state, ask, self._clock, rng)
        self._membership = Membership(self._meta_state, ask, self._clock, rng)
        self._inspection = Inspection(self._replicas, self._clock)
        self._leftovers = Leftovers(
            self.id,
            self._replicas,
            self._meta_state,
            ask,
            lambda node: self._links.send(node, ["left"]),
            self._keep_map,
            self._clock,
            rng,
        )
        self._figures = Figures(
            self._replicas, self._router, self._links, self._clocks, self._wal, measured, self._mover
        )
        self._maps = Maps(self._clock.now)
        self._problems = Problems(
            [
                self._space.problems,
                self._clocks.problems,
                lambda: lost_entries(self._replicas),
                self._maps.problems,
            ]
        )
        self._timer: Timer | None = None
        self._ticks = 0
        self._led: list[int] = []
        self._map_saved = True
        self._replicas.recover()
        self._use_saved_map()
        founders = meta_voters([node.id for node in config.nodes])
        if self._router.map is None and self.id in founders and not config.node.joined:
            self._replicas.ensure(META_GROUP, founders)
        self._look_at_meta()
        self._replicas.meta.on_change = self._on_meta_change

    # -- life

    async def start(self) -> None:
        """Talk to the other nodes. Raises CannotListen."""
        await self._links.start()
        self._tick()

    def reconfigure(self, config: NodeConfig) -> None:
        """Take over from ``config`` how reads are served, the limit of memory, and where nodes are reached."""
        self._memory.configure(config.node.memory)
        self._router.quorum_reads = config.node.reads == "quorum"
        self._config = self._config.model_copy(update={"dial": config.dial})
        known = self._config.nodes if self._router.map is None else self._router.map.nodes
        for node in known:
            if node.id in self._links.peers:
                self._links.set_dial(node.id, self._config.dial_address(node.id, node.peer_address))

    async def hand_over(self, patience: float) -> None:
        """Give the leaderships of this node away, within ``patience`` seconds.

        One that comes back stays: then the other nodes are stopping too.
        """
        until = self._clock.now() + patience
        terms: dict[int, int] = {}
        while True:
            leading = [
                group
                for group in self._replicas.all()
                if group.leads()
                and len(group.voters) > 1
                and terms.setdefault(group.group, group.status().term) == group.status().term
            ]
            if not leading or self._clock.now() >= until:
                return
            for group in leading:
                target = group.best_target()
                if target:
                    group.transfer(target)
            await asyncio.sleep(_TICK)

    async def close(self) -> None:
        """Stop everything and let go of the data folder."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for driver in (self._mover, self._membership, self._leftovers):
            driver.close()
        if not self._failed:
            self._try_to_save_map()
        await self._links.close()
        self._wal.close()
        self._folder.close()

    def _fatal(self, problem: BaseException) -> None:
        if not self._failed:
            self._failed = True
            self._on_fatal(problem)

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
                self._look_at_meta()
                self._clocks.look()
                self._replicas.doubt_leases(self._clocks.fast_peers())
                self._tell_what_is_led()
                if self._ticks % (_TICKS_PER_ROUND * _ROUNDS_PER_LOOK) == 0:
                    self._space.look_at_memory()
                self._router.no_space = self._space.look()
                self._housekeeping.run(self._router.map)
                self._mover.run()
                self._membership.run()
                self._leftovers.run()
                if self._ticks % (_TICKS_PER_ROUND * _ROUNDS_PER_LOOK) == 0:
                    self._wal.retry()
                    self._tell_all(["epoch", *self._maps.own])
                    self._problems.look()
                if self._ticks % (_TICKS_PER_ROUND * _ROUNDS_PER_MAP) == 0:
                    self._try_to_save_map()
        except Exception as error:
            self._fatal(error)
            raise

    # -- the shard map

    def _on_meta_change(self) -> None:
        # Not at once: the replica is in the middle of applying an entry.
        self._clock.call_later(0.0, self._look_at_meta)

    def _look_at_meta(self) -> None:
        """This node's replica of the meta group may have a newer map than the copy in use."""
        known = self._replicas.meta.map
        if known is not None:
            self._take_newer_map(known)

    def _take_map(self, data: bytes) -> None:
        """A copy from another node or from this node's own folder."""
        try:
            shard_map = ShardMap.from_wire(unpack(data))
        except ValueError as problem:  # MapError is one
            raise messages.Malformed(f"malformed shard map: {problem}") from None
        if shard_map.cluster_id != self._config.cluster.id:
            raise messages.Malformed(f"shard map of another cluster, {shard_map.cluster_id}")
        self._take_newer_map(shard_map)

    def _take_newer_map(self, shard_map: ShardMap) -> None:
        if self._router.map is None or shard_map.epoch > self._router.map.epoch:
            self._use_map(shard_map)

    def _keep_map(self, shard_map: ShardMap) -> None:
        """Use this map, if it is newer, and have it on disk now. Raises OSError."""
        self._take_newer_map(shard_map)
        self._save_map()

    def _use_saved_map(self) -> None:
        saved = self._folder.load_map()
        if saved is not None:
            try:
                self._take_map(saved)
            except messages.Malformed as problem:
                # Only a hint, perhaps of another version: the meta group or a peer tells the map anew.
                damage = CorruptData(self._folder.map_path, MAP_AT, str(problem))
                log.warning("the saved shard map is not used: %s", damage)

    def _use_map(self, shard_map: ShardMap) -> None:
        if self.id in shard_map.removed:
            self._fatal(NodeRefused(f"this node, {self.id}, has been removed from the cluster"))
            return
        before = self._router.map
        self._router.on_map(shard_map)
        self._map_saved = False
        if before is None or (before.nodes, before.groups) != (shard_map.nodes, shard_map.groups):
            self._try_to_save_map()
        self._meet(shard_map)
        for group in shard_map.groups_on(self.id):
            self._replicas.ensure(group.id, group.founders)
        for group in shard_map.groups:
            replica = self._replicas.get(group.id)
            if replica is not None:
                replica.set_learners(group.learners)
        self._maps.use(shard_map)
        self._tell_all(self._map_message() if self._meta_state() is not None else ["epoch", *self._maps.own])
        log.info("shard map of epoch %d in use", shard_map.epoch)

    def _meet(self, shard_map: ShardMap) -> None:
        """Have links to the nodes of the map and to no removed one."""
        for node in shard_map.nodes:
            if node.id != self.id and node.id not in self._links.peers:
                self._links.add_peer(node.id, self._config.dial_address(node.id, node.peer_address))
        for peer in self._links.peers:
            if peer in shard_map.removed:
                self._links.remove_peer(peer)

    def _save_map(self) -> None:
        """Keep the map for the next start. Raises OSError."""
        if not self._map_saved and self._router.map is not None:
            self._folder.save_map(msgpack.packb(self._router.map.to_wire()))
            self._map_saved = True

    def _try_to_save_map(self) -> None:
        try:
            self._save_map()
        except OSError as problem:
            log.warning("the shard map cannot be saved: %s", problem)

    def _map_message(self) -> list[Any]:
        assert self._router.map is not None
        return ["map", msgpack.packb(self._router.map.to_wire())]

    def _meta_state(self) -> MetaState | None:
        """The meta group's state while this node leads it and knows all of it."""
        meta, store = self._replicas.get(META_GROUP), self._replicas.meta
        return store.state if meta is not None and meta.ready() and store.map is not None else None

    def _members(self) -> list[MapNode] | None:
        """The configured nodes, once the data folder of each is known."""
        found = []
        for peer in self._config.nodes:
            incarnation = self._folder.incarnation if peer.id == self.id else self._folder.peers.get(peer.id)
            if incarnation is None:
                return None
            found.append(MapNode(peer.id, peer.address, peer.peer_address, incarnation))
        return found

    # -- other nodes

    def _admit(self, hello: Hello) -> None:
        known = self._folder.peers.get(hello.node)
        if self._router.map is not None:
            if hello.node in self._router.map.removed:
                text = f"node {hello.node} has been removed from the cluster; a new node needs a new id"
                raise Refused(Reason.REMOVED, text)
            entry = next((node for node in self._router.map.nodes if node.id == hello.node), None)
            if entry is None:
                raise Refused(Reason.NOT_A_MEMBER, f"node {hello.node} is not a member of the cluster")
            known = entry.incarnation
        elif hello.node not in {node.id for node in self._config.nodes}:
            raise Refused(Reason.NOT_A_MEMBER, f"node {hello.node} is not among the configured nodes")
        if known is None:
            try:
                self._folder.remember_peer(hello.node, hello.incarnation)
            except OSError as problem:
                text = f"node {self.id} cannot note which data folder node {hello.node} has: {problem}"
                raise Refused(Reason.CANNOT_REMEMBER, text) from None
        elif known != hello.incarnation:
            text = (
                f"replaced data folder: node {hello.node} was known by data folder {known} and came back with "
                f"{hello.incarnation}; what it had promised is lost with the old one, so it must be replaced by a node "
                "of a new id"
            )
            raise Refused(Reason.REPLACED_FOLDER, text)

    def _on_refused(self, node: int, refusal: Refused) -> None:
        if refusal.reason in _FATAL:
            self._fatal(NodeRefused(f"node {node} refuses this node: {refusal}"))

    def _on_link(self, node: int, _epoch: int, up: bool) -> None:
        if not up:
            self._router.on_link_down(node)
            self._maps.forget(node)
        elif self._router.map is not None:
            self._links.send(node, ["epoch", *self._maps.own])
            self._links.send(node, ["leads", self._led])
            self._room.greet(node)

    def _tell_all(self, message: list[Any]) -> None:
        for peer in self._links.peers:
            self._links.send(peer, message)

    def _tell_what_is_led(self) -> None:
        """Nodes that hold no replica of a group hear in this way who leads it."""
        led = [group.group for group in self._replicas.all() if group.leads()]
        if led != self._led:
            self._led = led
            self._tell_all(["leads", led])

    def _on_message(self, peer: int, message: list[Any]) -> None:
        try:
            if not message:
                raise messages.Malformed("empty message")
            kind = message[0]
            if type(kind) is int:
                if not self._replicas.receive(peer, message):
                    raise messages.Malformed("malformed Raft message")
            elif kind == "op":
                self._router.on_forwarded(peer, *messages.operations(message))
            elif kind == "re":
                self._router.on_answers(peer, messages.answers(message))
            elif kind == "epoch":
                its, own = messages.epoch(message), self._maps.own
                self._maps.hear(peer, its)
                if its[0] < own[0]:
                    self._links.send(peer, self._map_message())
                elif its[0] > own[0]:
                    self._links.send(peer, ["epoch", *own])
            elif kind == "leads":
                self._router.on_leads(peer, messages.groups(message))
            elif kind == "room":
                self._room.hear(peer, Full(*messages.room(message)))
            elif kind == "left" and len(message) == 1:
                self._leftovers.clear()
            elif kind == "map":
                self._take_map(messages.encoded_map(message))
            else:
                raise messages.Malformed(f"unknown message {kind!r:.40}")
        except messages.Malformed as problem:
            raise ProtocolViolation(str(problem)) from None

    # -- the front end's port

    def submit(self, ops: Sequence[Command], timeout: float, reply: Reply, caller: Caller = NODE) -> None:
        self._router.submit(ops, timeout, reply, caller)

    def cluster_map(self) -> ShardMap | None:
        return self._router.map

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

    def slot_figures(self) -> list[SlotFigures]:
        return self._inspection.slot_figures()

    def digests(self, group: int, check: int) -> Digests | None:
        return self._inspection.digests(group, check)

    def read_snapshot(self, group: int) -> AsyncIterator[bytes]:
        return self._inspection.read_snapshot(group)

    def add_problems(self, source: Source) -> None:
        """Tell what ``source`` finds wrong too."""
        self._problems.add(source)

    def alive(self) -> bool:
        return not self._failed

    def figures(self) -> NodeFigures:
        return self._figures.collect(self.status(), self._space.free, self._room.here.disk, self._memory)

    def ready(self) -> bool:
        """Whether every group of this node has a leader and its slots, as far as the node knows."""
        shard_map = self._router.map
        return shard_map is not None and self._replicas.ready({group.id for group in shard_map.groups_on(self.id)})

    def status(self) -> NodeStatus:
        shard_map = self._router.map
        return NodeStatus(
            node=self.id,
            cluster_id=self._config.cluster.id,
            version=__version__,
            map_epoch=0 if shard_map is None else shard_map.epoch,
            ready=self.ready(),
            uptime=self._clock.now() - self._started_at,
            replicas=self._replicas.statuses(),
            problems=self._problems.current,
            peers=tuple(PeerStatus(one.node, one.up, one.round_trip, one.silence) for one in self._links.states()),
        )
