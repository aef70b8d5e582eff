"""Snapshots of one group: taken, sent, received, and the log aligned with them.

The library's own dump files are off. A snapshot is a file of chunks; a leader offers its latest one to a follower
whose next entry is no longer in the log, the follower pulls it piece by piece, verifies the whole file, and only then
does the state machine install it and the log start anew behind it. Consensus decides when one is fetched, and is told
when one was written or installed; the work in between is done here.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from raftkv import limits
from raftkv.clock import Clock
from raftkv.errors import CorruptData, RaftKVError, StorageError
from raftkv.log_limit import limited
from raftkv.raft.config import RaftConfig
from raftkv.raft.consensus import Consensus
from raftkv.raft.log import FIRST_INDEX
from raftkv.raft.messages import Type
from raftkv.raft.ports import LogWriter, Outbox, Restore, StateMachine
from raftkv.raft.ready import Entry, Offer

log = logging.getLogger(__name__)

_STALLED: Final = 1.0
"""Seconds without a chunk after which a repeated offer makes the follower pull again."""

_PATIENCE: Final = 2
"""While a follower installs the latest snapshot, the log may grow to this many times the size at which one is due."""

_REST: Final = 4
"""After each chunk of a snapshot, the pause for the rest of the event loop, as a multiple of the chunk's time."""

_SHORT_REST: Final = 1
"""The same while the WAL waits for snapshots: then all chunks that are written together are also built together. This
slows writers down before the full WAL would have to stop them."""

_LATE: Final = 1.25
"""A snapshot is late when the log is this many times the size at which one is due."""

_TURN: Final = 2
"""After a snapshot, the time that a group leaves to the node's other groups, as a multiple of the time that it took.
A group whose snapshots always came too late would keep its whole log."""

_LEAST_REST: Final = 0.001
"""Shortest such pause in seconds: the loop counts in milliseconds and would round half of one down to none."""

_PAUSE: Final = 2.0
"""Seconds until a snapshot that could not be written is tried again, its own or that of a leader."""

_GATHERED: Final = 8 * limits.SNAPSHOT_CHUNK_BYTES
"""Bytes of chunks that are written together: each write costs a switch between the loop and the writing thread."""

_FORGOTTEN: Final = 2000
"""Covered log entries that are freed in one turn of the loop: a fraction of a millisecond."""


def _full(chunks: Sequence[bytes]) -> bool:
    return sum(map(len, chunks)) >= _GATHERED


class DurableSnapshot(Protocol):
    """A verified, durable snapshot file."""

    @property
    def index(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def voters(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int: ...
    @property
    def path(self) -> str: ...


class SnapshotSink(Protocol):
    def add(self, chunks: Sequence[bytes], done: Callable[[BaseException | None], None]) -> None: ...

    def commit(self, done: Callable[[Any, BaseException | None], None]) -> None: ...

    def abort(self) -> None: ...


class Incoming(Protocol):
    def write(self, offset: int, data: bytes, done: Callable[[BaseException | None], None]) -> None: ...

    def commit(self, done: Callable[[Any, BaseException | None], None]) -> None: ...

    def abort(self) -> None: ...


class SnapshotFiles(Protocol):
    """The node's snapshot files; callbacks come from the loop."""

    @property
    def busy(self) -> bool: ...

    @property
    def hurry(self) -> bool:
        """Whether the node needs snapshots soon."""

    def room(self) -> int: ...

    def latest(self, group: int) -> Any: ...

    def open(self, info: Any) -> Iterator[bytes]: ...

    def damaged(self, info: Any, chunk: int, problem: Exception) -> CorruptData: ...

    def missing(self, group: int, index: int) -> CorruptData: ...

    def read_raw(self, info: Any, offset: int, size: int) -> bytes: ...

    def writer(self, group: int, index: int, term: int, voters: Sequence[int]) -> SnapshotSink: ...

    def incoming(self, group: int, index: int, term: int, size: int) -> Incoming: ...

    def prune(self, group: int, keep_index: int) -> None: ...


def align(
    group: int,
    info: DurableSnapshot | None,
    compacted: int,
    entries: Sequence[Entry],
    wal: LogWriter,
    machine: StateMachine,
    files: SnapshotFiles,
) -> tuple[tuple[int, int], list[Entry]]:
    """At start: load the snapshot into the state machine and fit the WAL's entries to it.

    A crash may have come between the snapshot's rename and its mention in the WAL. The acknowledged tail behind the
    snapshot is kept; entries are dropped only where they contradict it. Returns the log's base (index, term) and
    entries.

    ``compacted``: the index up to which the WAL says that a snapshot covers the log.

    Raises CorruptData if the snapshot is missing or there is a hole between it and the entries.
    """
    if compacted > (FIRST_INDEX if info is None else info.index):
        raise files.missing(group, compacted)
    if info is None:
        base = (FIRST_INDEX, 0)
    else:
        base = (info.index, info.term)
        _restore(info, machine, files)
        at_base = next((entry for entry in entries if entry[1] == info.index), None)
        if at_base is not None and at_base[2] != info.term:
            wal.truncate(group, entries[0][1])
            entries = []
        wal.snapshot(group, info.index, info.term)
    kept = [entry for entry in entries if entry[1] > base[0]]
    if kept and kept[0][1] != base[0] + 1:
        where = "the start of the log" if info is None else info.path
        raise CorruptData(
            where, 0, f"group {group} has no entries between {base[0]} and {kept[0][1]}; replace this node"
        )
    return base, kept


def _restore(info: DurableSnapshot, machine: StateMachine, files: SnapshotFiles) -> None:
    restore = machine.begin_restore()
    last = 0
    for last, chunk in enumerate(files.open(info)):
        try:
            restore.feed(chunk)
        except StorageError as problem:
            raise files.damaged(info, last, problem) from None
    try:
        restore.finish()
    except StorageError as problem:
        raise files.damaged(info, last, problem) from None


class _Receiving:
    """A snapshot on its way in."""

    def __init__(self, offer: Offer, incoming: Incoming, now: float) -> None:
        self.offer = offer
        self.incoming = incoming
        self.offset = 0
        self.busy = False
        self.moved_at = now


class GroupSnapshots:
    """The snapshots of one replica. ``info``: the latest at its start. ``wake`` asks for a step."""

    def __init__(
        self,
        replica: Consensus,
        machine: StateMachine,
        files: SnapshotFiles,
        outbox: Outbox,
        clock: Clock,
        config: RaftConfig,
        wake: Callable[[], None],
        info: DurableSnapshot | None,
    ) -> None:
        self._replica = replica
        self._group = replica.group
        self._machine = machine
        self._files = files
        self._outbox = outbox
        self._clock = clock
        self._config = config
        self._wake = wake
        self._info = info
        if info is not None:
            replica.log.snapshot = (info.index, info.term, info.size)
        self._taking = False
        self._closed = False
        self._wanted = False
        self._pulling: set[int] = set()
        self._receiving: _Receiving | None = None
        self._resumes = float("-inf")
        self._next_turn = float("-inf")
        self.bytes_since = 0
        self.lacks = 0
        """Bytes of the snapshot for which the disk has no room; 0 = none."""
        self.installed = 0
        """Snapshots taken over from a leader since the replica was started."""

    @property
    def index(self) -> int:
        return 0 if self._info is None else self._info.index

    @property
    def size(self) -> int:
        """Bytes of the latest one."""
        return 0 if self._info is None else self._info.size

    @property
    def late(self) -> bool:
        """Whether the log, which is in memory too, has grown well beyond what makes a snapshot due."""
        return self.bytes_since > _LATE * self._enough()

    def close(self) -> None:
        """Abandon all transfers and snapshots in progress; nothing more is recorded."""
        self._closed = True
        self._drop_receiving()

    # -- taking

    def want(self) -> None:
        """Take one soon, however short the log is: it holds up the removal of old WAL segments."""
        # One that is under way may be enough; whoever wants one asks again.
        self._wanted = not self._taking

    def maybe_take(self) -> None:
        """Take a snapshot if enough was applied since the last one, and no other group of the node is at it."""
        due = self._wanted or self.bytes_since > self._enough()
        if self._taking or self._closed or not due or self._files.busy or self._in_use():
            return
        index = self._replica.core.applied_index()
        if index <= max(self.index, FIRST_INDEX):
            self._wanted = False
            return
        if self._clock.now() < self._next_turn or not self._may_write(self.size):
            return
        self._wanted = False
        term = self._replica.log.term_at(index)
        assert term is not None
        self._taking = True
        self.bytes_since = 0
        began = self._clock.now()
        snapshot = self._machine.snapshot()
        chunks = snapshot.chunks()
        gathered: list[bytes] = []
        writer = self._files.writer(self._group, index, term, self._replica.log.configurations.at(index))

        def finish(problem: BaseException | None) -> None:
            self._taking = False
            snapshot.close()
            if problem is not None:
                log.error("group %d: snapshot at %d failed: %s", self._group, index, problem)
                writer.abort()
                self._wanted = self._failed(problem, self.size)

        def proceed(problem: BaseException | None) -> None:
            if self._closed:
                snapshot.close()
                writer.abort()
                return
            if problem is not None:
                finish(problem)
                return
            turn = self._clock.now()
            more = self._gather(chunks, gathered)
            took = self._clock.now() - turn
            # In virtual time, work takes no time.
            pause = max(_LEAST_REST, (_SHORT_REST if self._files.hurry else _REST) * took) if took else 0.0
            if more and not _full(gathered):
                rest(pause, None)
                return
            written = tuple(gathered)
            gathered.clear()
            if more:
                writer.add(written, lambda problem: rest(pause, problem))
            else:
                snapshot.close()
                # If these cannot be written, the snapshot cannot be committed.
                writer.add(written, lambda _: None)
                writer.commit(committed)

        def rest(pause: float, problem: BaseException | None) -> None:
            self._clock.call_later(pause, lambda: proceed(problem))

        def committed(info: Any, problem: BaseException | None) -> None:
            finish(problem)
            if problem is None and index > self.index and not self._closed:
                took = self._clock.now() - began
                self._next_turn = self._clock.now() + _TURN * took
                log.info("group %d: snapshot of entry %d took %.3f s", self._group, index, took)
                self._replica.snapshot_written(info.index, info.term, info.size)
                self._adopt(info)
                self._forget(self._replica.log.tail(index, self._config.keep_entries, self._config.keep_bytes))

        proceed(None)

    def _gather(self, chunks: Iterator[bytes], gathered: list[bytes]) -> bool:
        """Build the next chunk, or all that are written together if there is need to hurry. False at their end."""
        for chunk in chunks:
            gathered.append(chunk)
            if not self._files.hurry or _full(gathered):
                return True
        return False

    def _may_write(self, size: int) -> bool:
        """Whether a snapshot of about ``size`` bytes may be begun. One that fits nowhere is not even tried: it would
        take the room that the log needs."""
        if self._clock.now() < self._resumes:
            return False
        self.lacks = 0
        try:
            room = self._files.room()
        except OSError:
            return True  # an error shows when it is written
        if room < size:
            source = limited(f"group {self._group}")
            log.warning(
                "group %d: no room for a snapshot of %d bytes, %d are free", self._group, size, room, extra=source
            )
            self._lack(size)
        return room >= size

    def _failed(self, problem: BaseException, size: int) -> bool:
        """Whether a snapshot of about ``size`` bytes could not be written for want of room."""
        full = isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT)
        if full:
            self._lack(size)
        return full

    def _lack(self, size: int) -> None:
        self.lacks = size
        self._resumes = self._clock.now() + _PAUSE

    def _enough(self) -> float:
        """Bytes of log after which a snapshot is due: the more the larger the state is, else each command would cost
        more of it."""
        return max(self._config.snapshot_bytes, self._config.snapshot_share * self.size)

    def _forget(self, until: int) -> None:
        """Let go of the log before entry ``until``, a part in each turn: it may be long."""
        log = self._replica.log
        if self._closed or log.base_index >= until:
            return
        log.compact(min(until, log.base_index + _FORGOTTEN))
        self._clock.call_later(0.0, lambda: self._forget(until))

    def _in_use(self) -> bool:
        """Whether a follower is about to continue from the latest snapshot: with a newer one it would start anew, and
        again, if the state is large and many write. A log that grows too long does not wait for it."""
        lead, now = self._replica.lead, self._clock.now()
        return (
            lead is not None
            and self.bytes_since < _PATIENCE * self._enough()
            and any(lead.approaches(peer, self.index, now) for peer in self._pulling)
        )

    def _adopt(self, info: DurableSnapshot) -> None:
        """``info`` is durable: it may replace the older one and the entries it covers."""
        self._info = info
        self._pulling.clear()
        self._files.prune(self._group, info.index)
        self._wake()

    # -- sending

    def receive(self, peer: int, message: list[Any]) -> None:
        """A request for a part of a snapshot, or such a part."""
        if message[1] == Type.SNAPSHOT_PULL:
            self._on_pull(peer, *message[3:])
        else:
            self._on_chunk(peer, *message[3:])

    def _on_pull(self, peer: int, index: int, offset: int) -> None:
        info, replica = self._info, self._replica
        if replica.lead is None or info is None or info.index != index or offset >= info.size:
            return
        self._pulling.add(peer)
        try:
            data = self._files.read_raw(info, offset, self._config.chunk_bytes)
        except (RaftKVError, OSError) as problem:
            # The follower asks again, or gets a newer snapshot.
            source = limited(f"group {self._group}")
            log.warning("group %d: snapshot cannot be sent to node %d: %s", self._group, peer, problem, extra=source)
            return
        self._outbox.send(peer, [self._group, Type.SNAPSHOT_CHUNK, replica.core.term(), index, offset, data])

    # -- receiving

    def fetch(self, offer: Offer) -> None:
        """Get a leader's snapshot, unless that is under way. Asked for again and again until it is taken over."""
        now = self._clock.now()
        receiving = self._receiving
        if receiving is None or receiving.offer != offer:
            self._drop_receiving()
            if not self._may_write(offer.size):
                return
            incoming = self._files.incoming(self._group, offer.index, offer.term, offer.size)
            self._receiving = _Receiving(offer, incoming, now)
            self._pull()
        elif not receiving.busy and now > receiving.moved_at + _STALLED:
            receiving.moved_at = now
            self._pull()

    def _pull(self) -> None:
        receiving = self._receiving
        if receiving is None:
            return
        offer = receiving.offer
        if self._replica.holds(offer.index, offer.term):
            self._drop_receiving()  # the log has caught up meanwhile
            return
        term = self._replica.core.term()
        self._outbox.send(offer.peer, [self._group, Type.SNAPSHOT_PULL, term, offer.index, receiving.offset])

    def _on_chunk(self, peer: int, index: int, offset: int, data: bytes) -> None:
        receiving = self._receiving
        if (
            receiving is None
            or receiving.busy
            or (receiving.offer.peer, receiving.offer.index, receiving.offset) != (peer, index, offset)
            or not data
        ):
            return
        receiving.busy = True

        def written(problem: BaseException | None) -> None:
            if self._receiving is not receiving:
                return
            if problem is not None:
                self._give_up(problem)
                return
            receiving.offset += len(data)
            receiving.moved_at = self._clock.now()
            if receiving.offset >= receiving.offer.size:
                receiving.incoming.commit(verified)
            else:
                receiving.busy = False
                self._pull()

        def verified(info: Any, problem: BaseException | None) -> None:
            if self._receiving is not receiving:
                return
            if problem is not None:
                self._give_up(problem)
                return
            self._load(receiving.offer, info)

        receiving.incoming.write(offset, data, written)

    def _load(self, offer: Offer, info: DurableSnapshot) -> None:
        """Rebuild the state from the verified file, a chunk a turn, then switch to it at once."""
        receiving = self._receiving
        restore: Restore = self._machine.begin_restore()
        chunks = self._files.open(info)

        def proceed() -> None:
            if self._receiving is not receiving:
                return
            try:
                chunk = next(chunks, None)
                if chunk is not None:
                    restore.feed(chunk)
            except (RaftKVError, OSError, ValueError) as problem:
                self._give_up(problem)
                return
            if chunk is not None:
                self._clock.call_later(0.0, proceed)
                return
            if self._replica.holds(info.index, info.term):
                self._replica.snapshot_kept(offer.peer, info.index)
                self._wake()
            else:
                try:
                    restore.finish()
                except (RaftKVError, OSError, ValueError) as problem:
                    self._give_up(problem)
                    return
                self._install(offer, info)
            self._receiving = None

        proceed()

    def _install(self, offer: Offer, info: DurableSnapshot) -> None:
        """The state machine has just taken over ``info``."""
        self._replica.snapshot_installed(offer, self._machine.time, info.voters)
        self._adopt(info)
        self.bytes_since = 0
        self.installed += 1
        log.info("group %d: installed the snapshot of entry %d from node %d", self._group, info.index, offer.peer)

    def _give_up(self, problem: BaseException) -> None:
        source = limited(f"group {self._group}")
        log.error("group %d: incoming snapshot dropped: %s", self._group, problem, extra=source)
        if self._receiving is not None:
            self._failed(problem, self._receiving.offer.size)
        self._drop_receiving()

    def _drop_receiving(self) -> None:
        if self._receiving is not None:
            self._receiving.incoming.abort()
            self._receiving = None
