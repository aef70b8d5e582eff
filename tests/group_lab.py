"""The Raft laboratory with real :class:`RaftGroup`: for tests of what executes a step's result, and of snapshot files.

A group's WAL is its replica's two lists of records. Its snapshot files are real, on a simulated disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import msgpack

from faults.sim.disk import SimDisk
from faults.sim.raftlab import Lab
from faults.sim.raftreplica import GROUP, LabReplica, LabSnapshot, Machine, Recovered
from raftkv.commands.base import Command
from raftkv.commands.results import Result
from raftkv.raft import RaftGroup
from raftkv.raft.proposals import Done, Proposal
from raftkv.raft.reads import ReadDone
from raftkv.raft.ready import Appended, Barred, Covered, HardState, Ready, Truncated
from raftkv.raft.snapshots import GroupSnapshots
from raftkv.storage.snapshots import SnapshotStore

T = TypeVar("T")
Later = Callable[[float, Callable[[], None]], None]
"""Calls back in so many seconds, if the node still lives then."""


class GroupMachine(Machine):
    """With snapshots. ``poison``: a value that it cannot apply. ``chunk_items``: values in a chunk of a snapshot."""

    prepares = False
    poison: bytes | None = None
    chunk_items = 50

    def prepare(self, commands: Sequence[Command]) -> bool:
        return True

    def apply(self, now: int, commands: Sequence[Command], _entry: memoryview | None = None) -> list[Result]:
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


def write_file(snapshot: LabSnapshot, store: SnapshotStore) -> None:
    """Have a file of a snapshot that is a value."""
    machine = snapshot.machine()
    writer = store.writer(GROUP, snapshot.index, snapshot.term, snapshot.voters)
    writer.add([msgpack.packb((machine.time, machine.applied))], lambda _: None)
    writer.commit(lambda *_: None)


class LabWorker:
    """Each job is done ``delay`` seconds after it was submitted, and its end noticed after as many again."""

    def __init__(self, later: Later, delay: float) -> None:
        self._later = later
        self.delay = delay

    def submit(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        def run() -> None:
            result, failure = None, None
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 (it is handed to done)
                failure = error
            self._later(self.delay, lambda: done(result, failure))

        self._later(self.delay, run)


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
        self.disk = SimDisk()
        self.fatal: list[BaseException] = []

    def _open(self, found: Recovered) -> None:
        self.machine = GroupMachine()
        self.disk.kill()
        self.worker = LabWorker(self.later, self.lab.file_delay)
        self.files = SnapshotStore(self.disk.mount(), self.worker, "snapshots")
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
        self.disk = SimDisk()

    def close(self) -> None:
        self.group.close()

    def step(self) -> None:
        self.group.step()
        self.group.apply()
        self._begin_sync()

    def tick(self) -> None:
        self.group.tick()

    def take(self, peer: int, message: list[Any]) -> bool:
        return self.group.receive(peer, message)

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
