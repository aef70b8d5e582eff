"""A whole cluster in one thread on virtual time: the real nodes and the real client on simulated ports."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import uuid
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self, cast

import msgpack

from faults.sim.clock import SimClock
from faults.sim.disk import PowerLoss, SimDisk
from faults.sim.loop import SimLoop, SimProcess, current_process
from faults.sim.network import Conditions, MemoryNetwork
from faults.sim.transport import SimChannel, SimServer
from faults.sim.worker import TimedWorker
from raftkv import AsyncClient
from raftkv.api.status import Role
from raftkv.client.transport import GrpcTransport
from raftkv.errors import RaftKVError
from raftkv.node.config import ClusterSection, NodeConfig, NodeSection, PeerSection, RaftSection
from raftkv.node.node import NodeRefused, RaftNode, Sizes
from raftkv.peer.links import Links
from raftkv.raft import RaftGroup
from raftkv.storage.snapshot_format import NAME
from shards.map import ShardMap

DATA: Final = "/data"
WAL_FOLDER: Final = f"{DATA}/wal"
SNAPSHOT_FOLDER: Final = f"{DATA}/snapshots"
_ROOMY: Final = 1 << 40
_PEER_PORT: Final = 7501
_FRAME_HEAD: Final = 8
_CLIENT_PORT: Final = 7401
_START_TIMEOUT: Final = 30.0
_HAND_OVER: Final = 2.0
_GRACE: Final = 3.0
_LOOK: Final = 0.05

State = Literal["running", "dead", "paused", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class SimSettings:
    """What a cluster is like. Sizes in bytes, times in seconds.

    ``sync``: usual time of a job of the disk, spread log-normally by ``sync_spread``. ``one_machine``: the addresses of
    all nodes have one host, so that one node leads all groups if it can.
    """

    segment_bytes: int = 32 * 1024
    snapshot_bytes: int = 8 * 1024
    chunk_bytes: int = 4 * 1024
    keep_entries: int = 20
    reads: Literal["lease", "quorum"] = "lease"
    election_min: float = 0.5
    election_max: float = 0.9
    heartbeat: float = 0.1
    sync: float = 0.0008
    sync_spread: float = 0.5
    conditions: Conditions = field(default_factory=Conditions)
    one_machine: bool = False


class Trace:
    """What happened, as lines ``<virtual time> <what>``. ``digest`` covers the lines and the marks between them."""

    def __init__(self, loop: SimLoop, *, everything: bool = False) -> None:
        self.lines: list[str] = []
        self.everything = everything
        """Keep the marks as lines too."""
        self._loop = loop
        self._hash = hashlib.sha256()

    def note(self, what: str) -> None:
        """Keep a line."""
        line = f"{self._loop.now:.6f} {what}"
        self._hash.update(line.encode())
        self.lines.append(line)

    def mark(self, what: str) -> None:
        """Something too frequent to be kept."""
        if self.everything:
            self.note(what)
        else:
            self._hash.update(f"{self._loop.now:.6f} {what}".encode())

    def digest(self) -> str:
        return self._hash.hexdigest()


class LogCapture(logging.Handler):
    """Notes what the product logs in a trace, with the process that said it. Use as a context manager."""

    def __init__(self, trace: Trace, level: int = logging.INFO) -> None:
        super().__init__(level)
        self._trace = trace
        self._logger = logging.getLogger("raftkv")
        self._before = self._logger.level

    def emit(self, record: logging.LogRecord) -> None:
        process = current_process()
        self._trace.note(f"{'-' if process is None else process.name} {record.levelname[0]} {record.getMessage()}")

    def __enter__(self) -> Self:
        self._before = self._logger.level
        self._logger.setLevel(self.level)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before)


class SimMemory:
    """The memory of a node's process: as much as the test says, 0 = unknown."""

    def __init__(self) -> None:
        self.taken = 0

    def total(self) -> int:
        return 0

    def used(self) -> int:
        return self.taken

    def release(self) -> None: ...


class SimNode:
    """One machine: a disk, a clock and the process of a node, or none."""

    def __init__(self, cluster: SimCluster, number: int, rng: random.Random) -> None:
        self.id = number
        self.name = f"n{number}"
        self.state: State = "dead"
        self.node: RaftNode | None = None
        self.fatal: BaseException | None = None
        """Why it refused or failed."""
        self.disk = SimDisk(_ROOMY)
        self.process: SimProcess = SimProcess(cluster.loop, self.name)
        self.process.kill()
        self.clock = SimClock(cluster.loop, self.process, offset=rng.uniform(0, 1e5), wall=1.7e9 + rng.uniform(-5, 5))
        self.clock.watch = self._watch
        self.memory = SimMemory()
        self.slowness = 0.0
        """Seconds by which each job of the disk takes longer."""
        self.slowed = 0
        """Jobs of the disk that took longer for that."""
        self.starts = 0
        self.graveyard: list[object] = []
        """What belonged to former processes: kept until the run ends."""
        self._cluster = cluster
        self._rng = rng
        self._workers: list[TimedWorker] = []
        self._watched: tuple[RaftGroup, ...] = ()
        self._server: SimServer | None = None

    @property
    def up(self) -> bool:
        """Whether its process exists, paused or not."""
        return self.state in ("running", "paused")

    @property
    def log_waits(self) -> bool:
        """Whether something that was written to its log is not durable yet."""
        return bool(self._workers) and self._workers[0].waiting > 0

    @property
    def busy_in_background(self) -> bool:
        """Whether its second worker is in the middle of a job."""
        return bool(self._workers) and self._workers[1].waiting > 0

    def start(self, power_for: int | None = None) -> None:
        """A new process on the same disk. The state tells how it went, now or later.

        ``power_for``: its machine loses power after so many changes of the disk, if recovery makes as many.
        """
        assert not self.up, f"{self.name} runs already"
        cluster = self._cluster
        self.starts += 1
        self.fatal = None
        self.process = self.clock.process = SimProcess(cluster.loop, self.name)
        self._workers = [TimedWorker(cluster.loop, self.process, self._job_seconds) for _ in range(2)]
        self.state = "running"
        cluster.network.power_on(self.name)
        self.disk.failed_syncs.clear()
        if power_for is not None:
            self.disk.power_off_after(power_for)
        try:
            self.process.run(self._compose, self.process)
            self.disk.power_stays()
        except PowerLoss:
            self.kill(power_loss=True)
        except Exception as problem:  # noqa: BLE001 - the process ends with it, as the real one would
            self._end(problem, "refused" if isinstance(problem, RaftKVError) else "failed")

    def replicas(self) -> tuple[RaftGroup, ...]:
        """Those of its process, by group; the same tuple until one comes or goes. This and the links are all that is
        known of a node's inside."""
        return () if self.node is None else self.node._replicas.all()

    def replica(self, group: int) -> RaftGroup | None:
        return None if self.node is None else self.node._replicas.get(group)

    def leads(self) -> bool:
        """Whether it leads a group."""
        return any(group.leads() for group in self.replicas())

    def _job_seconds(self) -> float:
        self.slowed += self.slowness > 0.0
        settings = self._cluster.settings
        return settings.sync * self._rng.lognormvariate(0.0, settings.sync_spread) + self.slowness

    def _compose(self, process: SimProcess) -> None:
        cluster = self._cluster
        network = cluster.network.host(self.name)
        node = RaftNode(
            cluster.config(self.id),
            fs=self.disk.mount(),
            worker=self._workers[0],
            background=self._workers[1],
            network=network,
            secret=None,
            clock=self.clock,
            rng=random.Random(self._rng.getrandbits(64)),
            on_fatal=lambda problem: self._on_fatal(process, problem),
            sizes=cluster.sizes,
            memory=self.memory,
        )
        self.node = node
        self._watched = ()
        self._watch_applying()
        self._watch_sending(node._links)
        self._server = SimServer(node, f"{self.name}:{_CLIENT_PORT}", network, self.clock)
        process.spawn(self._serve(node, self._server))

    def _watch(self, callback: Callable[[], None]) -> None:
        """A timer of the process: a turn, a tick, or another one. The cluster's observers look at what it has done."""
        self._watch_applying()
        callback()
        for observer in self._cluster.on_turn:
            observer(self)

    def _watch_sending(self, links: Links) -> None:
        send = links.send

        def watched(peer: int, message: list[Any]) -> None:
            for observer in self._cluster.on_sent:
                observer(self, peer, message)
            send(peer, message)

        cast(Any, links).send = watched

    def _watch_applying(self) -> None:
        replicas = self.replicas()
        if replicas is not self._watched:
            for group in replicas:
                if group not in self._watched:
                    cast(Any, group.machine).apply = self._observed(group, group.machine.apply)
            self._watched = replicas

    def _observed(self, group: RaftGroup, apply: Callable[..., Any]) -> Callable[..., Any]:
        def observed(*entry: Any) -> Any:
            results = apply(*entry)
            for observer in self._cluster.on_applied:
                observer(self, group, group.applying)
            return results

        return observed

    async def _serve(self, node: RaftNode, server: SimServer) -> None:
        try:
            await node.start()
            await server.start()
        except Exception as problem:  # noqa: BLE001 - as in _compose
            self._end(problem, "failed")

    def _on_fatal(self, process: SimProcess, problem: BaseException) -> None:
        if self.fatal is None and process.alive:
            self.fatal = problem
            self._cluster.trace.note(f"{self.name} stops: {problem!r}")
            process.spawn(self._stop(problem))

    async def _stop(self, problem: BaseException) -> None:
        """As the real process does after a fatal problem: it ends in an orderly way, and the rest goes on meanwhile."""
        state: State = "refused" if isinstance(problem, NodeRefused) else "failed"
        try:
            if self._server is not None:
                await self._server.stop(0)
            if self.node is not None:
                await self.node.close()
        finally:
            self._end(problem, state)

    def _end(self, problem: BaseException, state: State) -> None:
        self.fatal = problem
        self._cluster.trace.note(f"{self.name} {state}: {problem!r}")
        self._bury(state)
        self.disk.kill()
        self._cluster.network.kill(self.name)

    async def leave(self) -> None:
        """As the real process does after SIGTERM; run it in the process."""
        node, server = self.node, self._server
        assert node is not None
        assert server is not None
        await node.hand_over(_HAND_OVER)
        await server.stop(_GRACE)
        await node.close()
        self._bury("dead")
        self.disk.kill()
        self._cluster.network.kill(self.name)

    def kill(self, *, power_loss: bool) -> None:
        """End the process at once; ``power_loss``: the machine with it."""
        assert self.up, f"{self.name} does not run"
        workers = self._workers
        self._bury("dead")
        for worker in workers:
            worker.interrupt(self.disk, self._rng)
        if power_loss:
            self.disk.crash(self._rng)
            self._cluster.network.lose_power(self.name)
        else:
            self.disk.kill()
            self._cluster.network.kill(self.name)

    def _bury(self, state: State) -> None:
        self.graveyard.append((self.node, self._server, self._workers))
        self.process.kill()
        self.node, self._server, self._workers = None, None, []
        self.state = state


def _kinds_of_raft(address: str, data: bytes) -> list[int]:
    """The kinds of messages in a frame of Raft messages only. Neither links nor TCP ever send anything twice, and what
    nodes say to each other about single operations rests on that; Raft has to do without."""
    if not address.endswith(f":{_PEER_PORT}"):
        return []
    messages = [one for one in msgpack.unpackb(data[_FRAME_HEAD:]) if not isinstance(one, int)]
    return sorted({one[1] for one in messages}) if all(isinstance(one[0], int) for one in messages) else []


class SimCluster:
    """Nodes n1, n2, ... on one network; clients come with :meth:`client`."""

    def __init__(
        self,
        loop: SimLoop,
        rng: random.Random,
        *,
        nodes: int,
        groups: int,
        replicas: int = 3,
        slots: int = 256,
        settings: SimSettings | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.loop = loop
        self.settings = settings or SimSettings()
        self.trace = trace or Trace(loop)
        self.on_turn: list[Callable[[SimNode], None]] = []
        """Called with the node after every turn and tick of it."""
        self.on_applied: list[Callable[[SimNode, RaftGroup, int], None]] = []
        """Called after a replica has applied an entry of commands, with its index."""
        self.on_sent: list[Callable[[SimNode, int, list[Any]], None]] = []
        """Called when a node sends a message to a peer, with the peer and the message."""
        self.clients: dict[str, AsyncClient] = {}
        self.processes: dict[str, SimProcess] = {}
        """Those of the clients."""
        self.clocks: dict[str, SimClock] = {}
        """Those of the clients."""
        self.sizes = Sizes(self.settings.segment_bytes, self.settings.chunk_bytes, self.settings.keep_entries)
        self._rng = rng
        self.network = MemoryNetwork(random.Random(rng.getrandbits(64)), replace(self.settings.conditions))
        self.network.trace = self.trace.mark
        self.network.repeatable = _kinds_of_raft
        # Not read, so not checked: the bounds of the configuration are for people, and a simulation wants less.
        self._cluster = ClusterSection(
            id=str(uuid.UUID(int=rng.getrandbits(128))), slots=slots, groups=groups, replicas=replicas
        )
        listening = {one: f"n{one}:{_CLIENT_PORT}" for one in range(1, nodes + 1)}
        told = {one: f"machine:{_CLIENT_PORT + one}" for one in listening} if self.settings.one_machine else listening
        self.network.names = {told[one]: address for one, address in listening.items()}
        self._peers = tuple(
            PeerSection(id=one, address=told[one], peer_address=f"n{one}:{_PEER_PORT}") for one in range(1, nodes + 1)
        )
        self.dial: dict[int, dict[int, str]] = {}
        """Of each node: where it dials others, if not where they are."""
        self.nodes = {one: SimNode(self, one, random.Random(rng.getrandbits(64))) for one in range(1, nodes + 1)}

    def config(self, node: int) -> NodeConfig:
        """What a node is told."""
        settings, peer = self.settings, self._peers[node - 1]
        return NodeConfig(
            cluster=self._cluster,
            node=NodeSection(
                id=node,
                data_dir=DATA,
                address=peer.address,
                listen=peer.address,
                peer_address=peer.peer_address,
                peer_listen=peer.peer_address,
                reads=settings.reads,
            ),
            raft=RaftSection(
                election_min=settings.election_min,
                election_max=settings.election_max,
                heartbeat=settings.heartbeat,
                snapshot_bytes=settings.snapshot_bytes,
                snapshot_share=0.0,
            ),
            dial=self.dial.get(node, {}),
            nodes=self._peers,
        )

    async def start(self) -> None:
        """Start all nodes and wait until each group, the meta group included, has a leader and its slots."""
        for node in self.nodes.values():
            node.start()
        await self.ready(_START_TIMEOUT)

    async def ready(self, timeout: float) -> None:
        """Wait until every running node is ready. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while not self._ready():  # noqa: ASYNC110 - what it waits for is no single event
                await asyncio.sleep(_LOOK)
        self.trace.note(f"ready, led by {self.leaders()}")

    def _ready(self) -> bool:
        running = [one.node for one in self.nodes.values() if one.node is not None]
        return bool(running) and all(node.ready() for node in running)

    # -- faults

    def kill(self, node: int, *, power_loss: bool) -> None:
        """End a node's process. What it had written stays; with ``power_loss`` only what it had synced surely does."""
        self.trace.note(f"n{node} {'loses power' if power_loss else 'is killed'}")
        self.nodes[node].kill(power_loss=power_loss)

    def stop(self, node: int) -> asyncio.Task[None]:
        """Have a running node hand its leaderships over and end, which takes a few seconds."""
        one = self.nodes[node]
        assert one.state == "running", f"n{node} is {one.state}"
        self.trace.note(f"n{node} is asked to stop")
        return one.process.spawn(one.leave())

    def restart(self, node: int, power_for: int | None = None) -> None:
        """Start a dead, refused or failed node again; ``power_for``: see :meth:`SimNode.start`."""
        self.trace.note(f"n{node} starts" + ("" if power_for is None else f", with power for {power_for} changes"))
        self.nodes[node].start(power_for)

    def pause(self, node: int) -> None:
        """Stop a node as SIGSTOP does: time goes on, the kernel takes bytes for it, nothing of it runs."""
        one = self.nodes[node]
        assert one.state == "running", f"n{node} is {one.state}"
        self.trace.note(f"n{node} is paused")
        one.process.pause()
        one.state = "paused"

    def resume(self, node: int) -> None:
        """Let a paused node go on."""
        one = self.nodes[node]
        assert one.state == "paused", f"n{node} is {one.state}"
        self.trace.note(f"n{node} goes on")
        one.state = "running"
        one.process.resume()

    def wipe(self, node: int) -> None:
        """Give a node that does not run an empty disk."""
        one = self.nodes[node]
        assert not one.up, f"n{node} is {one.state}"
        self.trace.note(f"n{node} loses its disk")
        one.graveyard.append(one.disk)
        one.disk = SimDisk(_ROOMY)

    def set_rate(self, node: int, rate: float) -> None:
        """Seconds that a node's clock shows per true second."""
        self.trace.note(f"n{node} has a clock of rate {rate:.4f}")
        self.nodes[node].clock.set_rate(rate)

    def slow_sync(self, node: int, seconds: float) -> None:
        """From now on each job of a node's disk takes so much longer; 0 ends it."""
        self.trace.note(f"n{node} has a disk slower by {seconds:.3f} s")
        self.nodes[node].slowness = seconds

    def fail_sync(self, node: int, failing: bool = True, path: str = "", *, once: bool = False) -> None:
        """From now on syncs of paths with ``path`` in them fail on a node's disk, or the next one, or none any more."""
        how = f"fail in {path or 'all places'}{' once' if once else ''}" if failing else "work"
        self.trace.note(f"n{node} has a disk whose syncs {how}")
        if failing:
            self.nodes[node].disk.fail_syncs(path, once=once)
        else:
            self.nodes[node].disk.before_sync = None

    def fill_disk(self, node: int, full: bool, left: int = 0) -> None:
        """Leave ``left`` bytes free on a node's disk, or make room again."""
        self.trace.note(f"n{node} has a {'full' if full else 'roomy'} disk")
        disk = self.nodes[node].disk
        disk.capacity = disk.used() + left if full else _ROOMY

    def flip_bit(self, node: int, groups: Container[int]) -> bool:
        """Flip one bit in a file of :meth:`closed_files` of a node that does not run; False if there is none."""
        segments, snapshots = self.closed_files(node, groups)
        chosen = (snapshots or segments) if self._rng.random() < 0.3 else (segments or snapshots)
        if not chosen:
            return False
        path = chosen[self._rng.randrange(len(chosen))]
        disk = self.nodes[node].disk
        written = len(disk.files()[path].rstrip(b"\0"))
        offset, bit = self._rng.randrange(written), self._rng.randrange(8)
        self.trace.note(f"n{node} has a flipped bit in {path} at {offset}")
        disk.flip(path, offset, 1 << bit)
        return True

    def closed_files(self, node: int, groups: Container[int]) -> tuple[list[str], list[str]]:
        """Paths of the WAL's closed segments, and of the latest snapshot of each of the node's ``groups``."""
        files = self.nodes[node].disk.files()
        segments = sorted(path for path in files if path.startswith(f"{WAL_FOLDER}/") and path.endswith(".log"))[:-1]
        latest: dict[int, tuple[int, str]] = {}
        for path in files:
            if name := NAME.fullmatch(path.rpartition("/")[2]):
                group, index = int(name[1]), int(name[2])
                latest[group] = max(latest.get(group, (0, "")), (index, path))
        snapshots = [path for group, (_, path) in sorted(latest.items()) if group in groups]
        return [path for path in segments if files[path].rstrip(b"\0")], snapshots

    # -- clients and views

    def client(self, name: str, *, timeout: float = 5.0, rate: float = 1.0) -> AsyncClient:
        """The real client at a host of its own, with a process and a clock of its own.

        Start what uses it with ``processes[name].spawn``, so that all of it belongs to that process.
        """
        process = SimProcess(self.loop, name)
        clock = SimClock(self.loop, process, rate=rate, offset=self._rng.uniform(0, 1e5))
        rng = random.Random(self._rng.getrandbits(64))
        host = self.network.host(name)
        transport = GrpcTransport(lambda address: cast(Any, SimChannel(host, address)))
        addresses = [peer.address for peer in self._peers]
        client = process.run(lambda: AsyncClient(addresses, timeout=timeout, transport=transport, clock=clock, rng=rng))
        self.clients[name], self.processes[name], self.clocks[name] = client, process, clock
        return client

    def map(self) -> ShardMap | None:
        """As some running node knows it."""
        maps = [node.node.cluster_map() for node in self.nodes.values() if node.node is not None]
        return next((one for one in maps if one is not None), None)

    def leaders(self) -> dict[int, int]:
        """Group -> node that leads it in the highest term, as far as running nodes think so."""
        found: dict[int, tuple[int, int]] = {}
        for one in self.nodes.values():
            if one.node is not None:
                for group in one.node._replicas.all():
                    if group.core.role() == Role.LEADER:
                        found[group.group] = max(found.get(group.group, (0, 0)), (group.core.term(), one.id))
        return {group: node for group, (_, node) in sorted(found.items())}
