"""The replicas on this node and the turn that drives them.

Everything that happens to a group (a message, a proposal, a sync) only marks it. At the end of the loop's turn each
marked group takes one step, then the links send what was queued and the WAL syncs what was appended: all groups share
both. While the disk and the other nodes are at work, what is committed is applied. A follower that has something to
acknowledge does that first, as its leader waits for it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raftkv.api.status import ReplicaStatus, Role
from raftkv.clock import Clock
from raftkv.node.outbox import DurableOutbox
from raftkv.peer.links import Links
from raftkv.raft import RaftConfig, RaftGroup
from raftkv.raft.log import FIRST_INDEX
from raftkv.storage.snapshots import SnapshotStore
from raftkv.storage.wal import GroupState, Wal
from raftkv.store.meta import MetaStore
from raftkv.store.records import Store
from shards.map import META_GROUP

_WAL_SHARE_HELD_UP: Final = 2
_HELD_UP: Final = 2.0
"""The WAL waits for snapshots once it holds this many times the size at which they are asked for: a node that catches
up gets entries faster than it can write snapshots. If none is in progress for so many seconds, it begins another
segment all the same: entries that no majority holds cannot be in a snapshot."""

_BULK_BELOW: Final = 7 / 8
"""Share of that size from which on groups led here take no more large writes, so that small ones go on."""

_WAL_BYTES_PER_SNAPSHOT: Final = 4
_WAL_BYTES_PER_STATE: Final = 2
"""The WAL may hold this many times ``snapshot_bytes``, or ``snapshot_share`` of this many times what the latest
snapshots take together, before the group that pins its oldest segment must take one: sooner on a small disk."""


@dataclass(slots=True)
class _Dropping:
    """A group that is being dropped. ``lsn``: the WAL record of it. ``founders``: not empty if it is to come back."""

    lsn: int
    removing: bool = False
    founders: tuple[int, ...] = ()


@dataclass(slots=True)
class Replica:
    """A group's Raft state and its state machine."""

    group: RaftGroup
    store: Store


class Replicas:
    """All replicas of this node. ``fatal`` stops the node."""

    def __init__(
        self,
        node: int,
        *,
        wal: Wal,
        files: SnapshotStore,
        links: Links,
        clock: Clock,
        rng: random.Random,
        config: RaftConfig,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._node = node
        self._wal = wal
        self._files = files
        self._links = links
        self._clock = clock
        self._rng = rng
        self._config = config
        self._fatal = fatal
        self._outbox = DurableOutbox(wal, links)
        self._awake: dict[int, None] = {}
        self._unapplied: dict[RaftGroup, None] = {}
        """Those that have stepped and are to apply what that led to."""
        self._turn_due = False
        self._held_up_since: float | None = None
        self._groups: dict[int, RaftGroup] = {}
        self._all: tuple[RaftGroup, ...] = ()
        self._dropping: dict[int, _Dropping] = {}
        self.data: dict[int, Replica] = {}
        self.meta = MetaStore()
        self.on_turn: list[Callable[[], None]] = []
        """Called after the steps of a turn."""
        wal.on_durable.append(self._on_durable)

    def recover(self) -> None:
        """Start the groups that the WAL knows. Raises CorruptData."""
        recovered, self._wal.recovered = self._wal.recovered, {}
        for group, state in sorted(recovered.items()):
            if state.founders:
                self._start(group, state.founders, state)
            elif self._files.latest(group) is not None:
                # Dropped, and the node stopped before the files were gone.
                self._dropping[group] = _Dropping(self._wal.durable)
                self._remove_files(group)

    def ensure(self, group: int, founders: Sequence[int]) -> None:
        """Host ``group`` from now on, with an empty log if it is new here.

        ``founders``: the voters with which the group's log began. If this node is not among them its replica has no
        vote until the log gives it one. A group that is still being dropped comes back when that is done.
        """
        if group in self._dropping:
            self._dropping[group].founders = tuple(founders)
        elif group not in self._groups:
            state = self._wal.promised(group)
            self._wal.group(group, founders)
            # Every log starts behind entry 1, the empty state.
            self._wal.snapshot(group, FIRST_INDEX, 0)
            self._start(group, founders, state)

    def drop(self, group: int) -> None:
        """Stop hosting ``group``: answer what waits for it, and delete its log, state and snapshots.

        Its term, its vote and how far its log reached are kept for ever: this node may come back to the group. A node
        that still votes in the group must not drop it: nothing would be lost, but the group may stand still.
        """
        if group in self._dropping:
            self._dropping[group].founders = ()
        replica = self._groups.pop(group, None)
        if replica is None:
            return
        self._sort()
        self.data.pop(group, None)
        if group == META_GROUP:
            self.meta = MetaStore(self.meta.on_change)
        replica.close()
        self._wal.drop(group, replica.log.last_term, replica.log.last_index)
        # The files outlive the record: a log without its snapshot stops the next start.
        self._dropping[group] = _Dropping(self._wal.appended)
        self._schedule()

    def drops(self, group: int) -> bool:
        """Whether what is left of a dropped replica is still being removed."""
        return group in self._dropping

    def _remove_files(self, group: int) -> None:
        self._dropping[group].removing = True

        def removed(failure: BaseException | None) -> None:
            if failure is not None:
                self._fatal(failure)
                return
            founders = self._dropping.pop(group).founders
            if founders:
                self.ensure(group, founders)

        self._files.discard(group, removed)

    def _start(self, group: int, founders: Sequence[int], state: GroupState) -> None:
        store: Store | MetaStore = self.meta if group == META_GROUP else Store()
        replica = RaftGroup(
            group,
            self._node,
            founders,
            hard_state=(state.term, state.vote),
            floor=state.floor,
            lost=state.lost != (0, 0),
            compacted=state.snapshot_index,
            entries=state.entries,
            machine=store,
            wal=self._wal,
            files=self._files,
            outbox=self._outbox,
            clock=self._clock,
            rng=self._rng,
            config=self._config,
            wake=lambda: self._wake(group),
            fatal=self._fatal,
        )
        self._groups[group] = replica
        self._sort()
        if isinstance(store, Store):
            self.data[group] = Replica(replica, store)
        else:
            store.entry = lambda: replica.applying
        self._wake(group)

    def get(self, group: int) -> RaftGroup | None:
        return self._groups.get(group)

    def all(self) -> tuple[RaftGroup, ...]:
        """By group; the same tuple until a replica comes or goes."""
        return self._all

    def _sort(self) -> None:
        self._all = tuple(self._groups[group] for group in sorted(self._groups))

    def ready(self, groups: Collection[int]) -> bool:
        """Whether those of ``groups`` have a leader and their slots, as far as is known here."""
        return all(group.leader() for group in self.all() if group.group in groups) and all(
            replica.store.genesis for group, replica in self.data.items() if group in groups
        )

    def statuses(self) -> tuple[ReplicaStatus, ...]:
        """What each replica is at, by group."""
        return tuple(self._status(group) for group in self.all())

    def _status(self, group: RaftGroup) -> ReplicaStatus:
        state, data = group.status(), self.data.get(group.group)
        return ReplicaStatus(
            group=state.group,
            role=Role(state.role),
            leader=state.leader,
            term=state.term,
            last_index=state.last_index,
            commit_index=state.commit_index,
            applied_index=state.applied_index,
            snapshot_index=state.snapshot_index,
            records=0 if data is None else data.store.stats().records,
            voters=state.voters,
            match=state.match,
            learners=state.learners,
        )

    def doubt_leases(self, fast: Collection[int]) -> None:
        """Trust no lease beside voters whose clocks are too ``fast``."""
        for group in self._groups.values():
            group.doubt_lease(any(node in fast for node in group.voters))

    def distance(self) -> float:
        """Seconds to the followers of the groups led here and back, at least; of the farthest group, 0 = unknown."""
        return max((group.round_trip() for group in self._groups.values()), default=0.0)

    # -- events

    def receive(self, peer: int, message: list[Any]) -> bool:
        """A Raft message, its first item being the group. Returns False if it is malformed."""
        group = self._groups.get(message[0])
        return group is None or group.receive(peer, message)

    def tick(self) -> None:
        """Called every few milliseconds."""
        for group in list(self._groups.values()):
            group.tick()
        for group in list(self._unapplied):
            # A slow disk holds up what needs it, and nothing else.
            self._apply(group)
            self._schedule()
        # A message may wait for the WAL although its group had nothing to do.
        if self._wal.durable < self._wal.appended:
            self._schedule()

    def _on_durable(self, lsn: int) -> None:
        self._outbox.on_durable(lsn)
        for group in self._groups.values():
            group.on_durable(lsn)
        for number, dropping in list(self._dropping.items()):
            if dropping.lsn <= lsn and not dropping.removing:
                self._remove_files(number)
        self._links.flush()
        if self._unapplied:
            self._schedule()

    def _wake(self, group: int) -> None:
        self._awake[group] = None
        self._schedule()

    def _schedule(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._clock.call_later(0.0, self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        awake, self._awake = self._awake, {}
        try:
            for number in awake:
                group = self._groups.get(number)
                if group is not None:
                    group.step()
                    self._unapplied[group] = None
            self._links.flush()
            self._wal.flush()
            for group in list(self._unapplied):
                if not group.acknowledging:
                    self._apply(group)
            for called in self.on_turn:
                called()
            # What was answered to other nodes; and a group that has come or gone leaves records.
            self._links.flush()
            self._wal.flush()
        except Exception as error:
            self._fatal(error)
            raise

    def _apply(self, group: RaftGroup) -> None:
        del self._unapplied[group]
        group.apply()

    # -- space

    def shorten_logs(self) -> None:
        """Have snapshots taken, so that the logs in memory become as short as they can be."""
        for number, group in self._groups.items():
            if group.log.bytes > 2 * self._config.keep_bytes:
                group.snapshots.want()
                self._wake(number)

    def reclaim(self, room: int) -> None:
        """Remove WAL segments that snapshots cover; ask for the snapshot that holds up the oldest one.

        ``room``: bytes by which the WAL may grow at most. One more snapshot must always fit beside it, or none could
        make it shorter.
        """
        self._wal.collect()
        size, holder = self._wal.pinned_by()
        sizes = [group.snapshots.size for group in self._groups.values()]
        state = self._config.snapshot_share * sum(sizes)
        allowed = max(_WAL_BYTES_PER_SNAPSHOT * self._config.snapshot_bytes, _WAL_BYTES_PER_STATE * state)
        limit = min(_WAL_SHARE_HELD_UP * allowed, size + room - max(sizes, default=0))
        long = holder is not None and (size * _WAL_SHARE_HELD_UP > limit or self._wal.limited)
        self._files.hurry = long or any(group.snapshots.late for group in self._groups.values())
        if long and holder is not None:
            group = self._groups.get(holder)
            if group is not None:
                group.snapshots.want()
                self._wake(holder)
        self._hold_up(sys.maxsize if holder is None else int(limit))

    def _hold_up(self, limit: int) -> None:
        now = self._clock.now()
        full = self._wal.total_bytes > _BULK_BELOW * limit
        if not (full or self._wal.limited) or self._files.busy:
            self._held_up_since = None
        elif self._held_up_since is None:
            self._held_up_since = now
        elif now >= self._held_up_since + _HELD_UP:
            self._held_up_since = now
            limit, full = sys.maxsize, False
        self._wal.limit(limit)
        for group in self._groups.values():
            group.hold_bulk(full)
