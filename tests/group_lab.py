"""The Raft laboratory with real :class:`RaftGroup`: for tests of what executes a step's result, and of snapshot files.

A group's WAL is its replica's two lists of records. Its snapshot files are kept in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgpack

from faults.sim.raftlab import Lab
from faults.sim.raftreplica import GROUP, LabReplica, LabSnapshot, Machine, Recovered
from raftkv.commands.base import Command
from raftkv.commands.results import Result
from raftkv.errors import CorruptData
from raftkv.raft import RaftGroup
from raftkv.raft.proposals import Done, Proposal
from raftkv.raft.reads import ReadDone
from raftkv.raft.ready import Appended, Barred, Covered, HardState, Ready, Truncated
from raftkv.raft.snapshots import GroupSnapshots

Later = Callable[[float, Callable[[], None]], None]
"""Calls back in so many seconds, if the node still lives then."""


class GroupMachine(Machine):
    """With snapshots. ``poison``: a value that it cannot apply. ``chunk_items``: values in a chunk of a snapshot."""

    prepares = False
    poison: bytes | None = None
    chunk_items = 50

    def prepare(self, commands: Sequence[Command]) -> bool:
        return True

    def apply(self, now: int, commands: Sequence[Command]) -> list[Result]:
        if self.poison in [getattr(command, "value", b"") for command in commands]:
            raise ValueError(f"cannot apply {self.poison!r}")
        return super().apply(now, commands)

    def snapshot(self) -> _MachineSnapshot:
        return _MachineSnapshot(self.time, list(self.applied), self.chunk_items)

    def begin_restore(self) -> _MachineRestore:
        return _MachineRestore(self)


class _MachineSnapshot:
    def __init__(self, time: int, applied: list[tuple[int, bytes, bytes]], chunk_items: int) -> None:
        self._time, self._applied, self._chunk_items = time, applied, chunk_items

    def chunks(self) -> Iterator[bytes]:
        for start in range(0, len(self._applied) or 1, self._chunk_items):
            yield msgpack.packb((self._time, self._applied[start : start + self._chunk_items]))

    def close(self) -> None:
        pass


class _MachineRestore:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._time = 0
        self._applied: list[tuple[int, bytes, bytes]] = []

    def feed(self, chunk: bytes) -> None:
        self._time, items = msgpack.unpackb(chunk)
        self._applied += map(tuple, items)

    def finish(self) -> None:
        Machine.__init__(self._machine, self._time, self._applied)


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    index: int
    term: int
    voters: tuple[int, ...]
    raw: bytes

    @property
    def size(self) -> int:
        return len(self.raw)

    @property
    def path(self) -> str:
        return f"snapshot-{self.index}"


def _seal(index: int, term: int, voters: Sequence[int], chunks: Sequence[bytes]) -> bytes:
    body = msgpack.packb((index, term, list(voters), list(chunks)))
    return zlib.crc32(body).to_bytes(4, "big") + bytes(body)


def as_file(snapshot: LabSnapshot) -> SnapshotFile:
    """The file of a snapshot that is a value."""
    machine = snapshot.machine()
    raw = _seal(snapshot.index, snapshot.term, snapshot.voters, [msgpack.packb((machine.time, machine.applied))])
    return SnapshotFile(snapshot.index, snapshot.term, snapshot.voters, raw)


def _unseal(raw: bytes, index: int, term: int) -> tuple[tuple[int, ...], list[bytes]]:
    if len(raw) < 5 or zlib.crc32(raw[4:]) != int.from_bytes(raw[:4], "big"):
        raise CorruptData(f"snapshot-{index}", 0, "the checksum is wrong")
    found, found_term, voters, chunks = msgpack.unpackb(raw[4:])
    if (found, found_term) != (index, term):
        raise CorruptData(f"snapshot-{index}", 0, f"it is of entry {found}, term {found_term}")
    return tuple(voters), list(chunks)


class LabFiles:
    """Snapshot files of one start of a node; every callback comes ``delay`` seconds later, if the node still lives."""

    def __init__(self, held: dict[int, SnapshotFile], later: Later, delay: float) -> None:
        self.held = held
        self.later = later
        self.delay = delay
        self.aborted = 0
        self.busy = False
        self.hurry = False
        self.space = 1 << 40

    def room(self) -> int:
        return self.space

    def latest(self, group: int) -> SnapshotFile | None:
        return max(self.held.values(), key=lambda info: info.index, default=None)

    def open(self, info: SnapshotFile) -> Iterator[bytes]:
        yield from _unseal(self.held[info.index].raw, info.index, info.term)[1]

    def damaged(self, info: SnapshotFile, chunk: int, problem: Exception) -> CorruptData:
        return CorruptData(info.path, chunk, str(problem))

    def missing(self, group: int, index: int) -> CorruptData:
        return CorruptData(f"snap-{group}-{index}", 0, "the snapshot is missing")

    def read_raw(self, info: SnapshotFile, offset: int, size: int) -> bytes:
        return info.raw[offset : offset + size]

    def writer(self, group: int, index: int, term: int, voters: Sequence[int]) -> Writer:
        self.busy = True
        return Writer(self, index, term, tuple(voters))

    def incoming(self, group: int, index: int, term: int, size: int) -> _Incoming:
        return _Incoming(self, index, term)

    def prune(self, group: int, keep_index: int) -> None:
        for index in [index for index in self.held if index < keep_index]:
            del self.held[index]

    def put(self, index: int, term: int, raw: bytes) -> SnapshotFile:
        voters, _ = _unseal(raw, index, term)
        info = self.held[index] = SnapshotFile(index, term, voters, raw)
        return info


class Writer:
    def __init__(self, files: LabFiles, index: int, term: int, voters: tuple[int, ...]) -> None:
        self._files, self._index, self._term, self._voters = files, index, term, voters
        self._chunks: list[bytes] = []

    def add(self, chunks: Sequence[bytes], done: Callable[[BaseException | None], None]) -> None:
        self._chunks += chunks
        self._files.later(self._files.delay, lambda: done(None))

    def commit(self, done: Callable[[Any, BaseException | None], None]) -> None:
        def written() -> None:
            raw = _seal(self._index, self._term, self._voters, self._chunks)
            info = self._files.put(self._index, self._term, raw)
            self._files.busy = False
            self._files.later(self._files.delay, lambda: done(info, None))

        self._files.later(self._files.delay, written)

    def abort(self) -> None:
        self._files.aborted += 1
        self._files.busy = False


class _Incoming:
    def __init__(self, files: LabFiles, index: int, term: int) -> None:
        self._files, self._index, self._term = files, index, term
        self._raw = bytearray()

    def write(self, offset: int, data: bytes, done: Callable[[BaseException | None], None]) -> None:
        self._raw[offset : offset + len(data)] = data
        self._files.later(self._files.delay, lambda: done(None))

    def commit(self, done: Callable[[Any, BaseException | None], None]) -> None:
        def verified() -> None:
            try:
                info = self._files.put(self._index, self._term, bytes(self._raw))
            except CorruptData as problem:
                done(None, problem)
                return
            self._files.later(self._files.delay, lambda: done(info, None))

        self._files.later(self._files.delay, verified)

    def abort(self) -> None:
        self._files.aborted += 1


class LabWal:
    """A group's records are those of its replica."""

    def __init__(self, replica: LabReplica) -> None:
        self._replica = replica

    @property
    def appended(self) -> int:
        return self._replica.recorded

    @property
    def durable(self) -> int:
        return len(self._replica.durable)

    def hard_state(self, group: int, term: int, vote: int) -> None:
        self._replica.unsynced.append(HardState(term, vote))

    def entry(self, group: int, index: int, term: int, command: bytes) -> None:
        self._replica.unsynced.append(Appended(index, term, command))

    def truncate(self, group: int, from_index: int) -> None:
        self._replica.unsynced.append(Truncated(from_index))

    def snapshot(self, group: int, index: int, term: int) -> None:
        self._replica.unsynced.append(Covered(index, term))

    def lost(self, group: int, term: int, index: int) -> None:
        self._replica.unsynced.append(Barred(index, term))


class _Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class LabClock:
    def __init__(self, now: Callable[[], float], later: Later) -> None:
        self.now = self.wall = now
        self._later = later

    def call_later(self, delay: float, callback: Callable[[], None]) -> _Timer:
        timer = _Timer()
        self._later(delay, lambda: None if timer.cancelled else callback())
        return timer


class GroupReplica(LabReplica):
    """A replica that a :class:`RaftGroup` hosts."""

    group: RaftGroup
    machine: GroupMachine

    def __init__(self, lab: Lab, node: int, founders: Sequence[int]) -> None:
        super().__init__(lab, node, founders)
        self.disk: dict[int, SnapshotFile] = {}
        self.fatal: list[BaseException] = []

    def _open(self, found: Recovered) -> None:
        self.machine = GroupMachine()
        self.files = LabFiles(self.disk, self.later, self.lab.file_delay)
        self.group = RaftGroup(
            GROUP,
            self.node,
            self.founders,
            hard_state=(found.term, found.vote),
            floor=found.floor,
            lost=found.lost != (0, 0),
            compacted=found.covered,
            entries=found.entries,
            machine=self.machine,
            wal=LabWal(self),
            files=self.files,
            outbox=self,
            clock=LabClock(self.now, lambda delay, call: self.later(delay / self.rate, call)),
            rng=self.random(),
            config=self.lab.config,
            wake=self.wake,
            fatal=self.fatal.append,
        )
        self._consensus = self.group.consensus
        step = self._consensus.step

        def watched(now: float) -> Ready:
            ready = step(now)
            self._persisted.take(ready)
            return ready

        cast(Any, self._consensus).step = watched

    def send_when_durable(self, node: int, message: list[Any]) -> None:
        self.hold(node, message)

    def drop(self) -> None:
        super().drop()
        self.disk.clear()

    def close(self) -> None:
        self.group.close()

    def step(self) -> None:
        self.group.step()
        self._begin_sync()

    def tick(self) -> None:
        self.group.tick()

    def take(self, peer: int, message: list[Any]) -> bool:
        well_formed = self.group.receive(peer, message)
        self.wake()
        return well_formed

    def propose(self, ops: Sequence[Command], size: int, done: Done) -> Proposal:
        return self.group.propose(ops, size, done)

    def _read(self, quorum: bool, done: ReadDone) -> None:
        self.group.read(quorum, done)

    def _on_synced(self) -> None:
        self.group.on_durable(len(self.durable))

    @property
    def snapshots(self) -> GroupSnapshots:
        return self.group.snapshots

    def take_snapshot(self) -> None:
        self.snapshots.want()
        self.wake()


class GroupLab(Lab):
    """Every replica is hosted by a :class:`RaftGroup`."""

    def __init__(self, nodes: int = 3, **options: Any) -> None:
        super().__init__(nodes, replica=GroupReplica, **options)

    def __getitem__(self, node: int) -> GroupReplica:
        return cast(GroupReplica, self.nodes[node])

    def elect(self, node: int) -> GroupReplica:
        super().elect(node)
        return self[node]

    def wait_for_leader(self, limit: float = 10.0) -> GroupReplica:
        return self[super().wait_for_leader(limit).node]
