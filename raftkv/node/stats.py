"""Stats of a node for monitoring. All are read when they are asked for; only times of disk writes are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from raftkv import __version__
from raftkv.api.status import NodeStatus, PeerStatus, Problem, ReplicaStatus
from raftkv.clock import Clock
from raftkv.frontend.counters import Durations
from raftkv.frontend.port import NodeStats, ReplicaStats
from raftkv.node.clocks import Clocks
from raftkv.node.drivers.mover import Mover
from raftkv.node.memory import Memory
from raftkv.node.replicas import Replicas
from raftkv.node.router import Router
from raftkv.peer.links import Links
from raftkv.storage.fs import Worker
from raftkv.storage.wal import Wal
from raftkv.store.records import Stats

T = TypeVar("T")

_WRITES: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_EMPTY: Final = Stats(records=0, bytes=0, sessions=0, slots=0)


class MeasuredWorker:
    """A worker whose jobs are timed, in its own thread: what the disk takes, not what waits for the loop."""

    def __init__(self, worker: Worker, clock: Clock) -> None:
        self._worker = worker
        self._clock = clock
        self._since: float | None = None
        self.durations = Durations(_WRITES)

    def submit(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """See :class:`raftkv.storage.fs.Worker`."""
        took = 0.0

        def timed() -> T:
            nonlocal took
            started = self._since = self._clock.now()
            try:
                return work()
            finally:
                took = self._clock.now() - started
                self._since = None

        def finished(result: T | None, failure: BaseException | None) -> None:
            self.durations.observe(took)
            done(result, failure)

        self._worker.submit(timed, finished)

    def busy_for(self) -> float:
        """Seconds since the job under way began, 0 if there is none."""
        since = self._since
        return 0.0 if since is None else self._clock.now() - since


class StatsCollector:
    """Reads the parts of one node; in the loop's thread, like all that concerns them."""

    def __init__(
        self,
        node: int,
        cluster_id: str,
        *,
        replicas: Replicas,
        router: Router,
        links: Links,
        clocks: Clocks,
        wal: Wal,
        writer: MeasuredWorker,
        mover: Mover,
        clock: Clock,
    ) -> None:
        self._node = node
        self._cluster_id = cluster_id
        self._replicas = replicas
        self._router = router
        self._links = links
        self._clocks = clocks
        self._wal = wal
        self._writer = writer
        self._mover = mover
        self._clock = clock
        self._started_at = clock.now()

    def status(self, problems: tuple[Problem, ...]) -> NodeStatus:
        """What the node says of itself, ``problems`` included."""
        return NodeStatus(
            node=self._node,
            cluster_id=self._cluster_id,
            version=__version__,
            map_epoch=0 if self._router.map is None else self._router.map.epoch,
            ready=self.ready(),
            uptime=self._clock.now() - self._started_at,
            replicas=self._replicas.statuses(),
            problems=problems,
            peers=tuple(PeerStatus(one.node, one.up, one.round_trip, one.silence) for one in self._links.states()),
        )

    def ready(self) -> bool:
        """Whether every group of the node has a leader and its slots, as far as the node knows."""
        return self._router.map is not None and self._replicas.ready(self._mine())

    def _mine(self) -> set[int]:
        """Groups that the node belongs to."""
        shard_map = self._router.map
        return set() if shard_map is None else {group.id for group in shard_map.groups_on(self._node)}

    def stats(self, status: NodeStatus, disk_free: int, disk_full: bool, memory: Memory) -> NodeStats:
        """The stats that belong to ``status``, which was taken in this turn of the loop."""
        mine = self._mine()
        outstanding, outstanding_bytes = self._router.outstanding
        return NodeStats(
            status=status,
            replicas=tuple(self._replica(replica, replica.group in mine) for replica in status.replicas),
            connections={peer: self._links.link_number(peer) for peer in self._links.peers},
            skews=self._clocks.skews(),
            disk_full=disk_full,
            disk_free=disk_free,
            memory=memory.used,
            memory_limit=memory.limit,
            memory_full=memory.full,
            wal_bytes=self._wal.total_bytes,
            wal_segments=self._wal.segments,
            wal_waiting=self._wal.appended - self._wal.durable,
            writes=self._writer.durations,
            writing=self._writer.busy_for(),
            outstanding=outstanding,
            outstanding_bytes=outstanding_bytes,
            moves_committed=self._mover.committed,
            moves_cancelled=self._mover.cancelled,
            freezes=self._mover.freezes,
        )

    def _replica(self, status: ReplicaStatus, member: bool) -> ReplicaStats:
        group, data = self._replicas.get(status.group), self._replicas.data.get(status.group)
        assert group is not None
        stats = _EMPTY if data is None else data.store.stats()
        return ReplicaStats(
            status=status,
            member=member,
            record_bytes=stats.bytes,
            sessions=stats.sessions,
            slots=stats.slots,
            data_loss=group.status().data_loss,
            elections_won=group.elections.won,
            snapshots_installed=group.snapshots.installed,
        )
