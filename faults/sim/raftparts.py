"""What surrounds a replica in the Raft laboratory: virtual time, a clock, a WAL, snapshot files, a state machine."""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from raftkv.commands.base import Command
from raftkv.commands.records import Put
from raftkv.commands.results import Result
from raftkv.errors import Code, CorruptData, RaftKVError
from raftkv.raft.log import FIRST_INDEX
from raftkv.raft.ready import Entry

STEPS: Final = 10_000
"""Things that may happen at one moment before it is taken for an endless loop."""

Later = Callable[[float, Callable[[], None]], None]
"""Calls back in so many seconds, if the node still lives then."""


class LabError(Exception):
    """The laboratory was used wrongly, or a replica keeps itself busy without end."""


class VirtualTime:
    """Virtual time: things happen in order of their time, those of the same time in the order of their arrival."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (max(time, self.now), self._count, call))

    def run_until(self, time: float) -> None:
        busy = 0
        while self._due and self._due[0][0] <= time:
            due, _, call = heapq.heappop(self._due)
            busy = busy + 1 if due <= self.now else 0
            if busy > STEPS:
                raise LabError(f"{busy} things happened at {self.now} s: something keeps itself busy")
            self.now = max(self.now, due)
            call()
        self.now = max(self.now, time)


class _Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class LabClock:
    """A node's clock: runs ``rate`` times as fast as virtual time."""

    def __init__(self, world: VirtualTime, alive: Callable[[], bool], after: Callable[[], None], rate: float) -> None:
        self._world = world
        self._alive = alive
        self._after = after
        self._base = (world.now, 0.0)
        self._rate = rate

    def set_rate(self, rate: float) -> None:
        self._base = (self._world.now, self.now() - 1000.0)
        self._rate = rate

    def now(self) -> float:
        since, shown = self._base
        return 1000.0 + shown + (self._world.now - since) * self._rate

    def wall(self) -> float:
        return self.now()

    def call_later(self, delay: float, callback: Callable[[], None]) -> _Timer:
        timer = _Timer()

        def call() -> None:
            if not timer.cancelled and self._alive():
                callback()
                self._after()

        self._world.at(self._world.now + delay / self._rate, call)
        return timer


@dataclass(slots=True)
class LabRecovered:
    """What a node finds in its WAL."""

    term: int = 0
    vote: int = 0
    snapshot_index: int = FIRST_INDEX
    floor: tuple[int, int] = (0, 0)
    lost: tuple[int, int] = (0, 0)
    entries: list[Entry] = field(default_factory=list)


class LabDisk:
    """What survives a crash: WAL records up to ``durable``, and snapshot files after their commit."""

    def __init__(self) -> None:
        self.records: list[tuple[Any, ...]] = []
        self.files: dict[int, SnapshotFile] = {}

    def recover(self) -> LabRecovered:
        """Replay the records as raftkv.storage.wal does."""
        state = LabRecovered()
        for kind, *fields in self.records:
            if kind == "hard":
                state.term, state.vote = fields
            elif kind == "entry":
                index, term, command = fields
                if index > state.snapshot_index:
                    held = index - state.snapshot_index - 1
                    if held > len(state.entries):
                        raise LabError(f"entry {index} leaves a gap in the WAL")
                    del state.entries[held:]
                    state.entries.append((command, index, term))
            elif kind == "drop":
                state.entries, state.snapshot_index = [], FIRST_INDEX
                state.floor = max(state.floor, (fields[0], fields[1]), state.lost)
                state.lost = (0, 0)
            elif kind == "lost":
                state.lost = max(state.lost, (fields[0], fields[1]))
            elif kind == "truncate":
                del state.entries[max(0, fields[0] - state.snapshot_index - 1) :]
            elif kind == "snapshot" and fields[0] > state.snapshot_index:
                index, term = fields
                held = index - state.snapshot_index
                conflict = held <= len(state.entries) and state.entries[held - 1][2] != term
                state.entries = [] if conflict else state.entries[held:]
                state.snapshot_index = index
        return state


class LabWal:
    """The WAL of one start of a node. ``sync_delay`` None: syncs happen only by :meth:`sync`."""

    def __init__(self, disk: LabDisk, later: Later, sync_delay: float | None) -> None:
        self._disk = disk
        self._later = later
        self.sync_delay = sync_delay
        self.appended = self.durable = len(disk.records)
        self.listeners: list[Callable[[int], None]] = []
        self._writing = 0

    def _append(self, *record: Any) -> None:
        self._disk.records.append(record)
        self.appended += 1

    def hard_state(self, group: int, term: int, vote: int) -> None:
        self._append("hard", term, vote)

    def lost(self, group: int, term: int, index: int) -> None:
        self._append("lost", term, index)

    def entry(self, group: int, index: int, term: int, command: bytes) -> None:
        self._append("entry", index, term, command)

    def truncate(self, group: int, from_index: int) -> None:
        self._append("truncate", from_index)

    def snapshot(self, group: int, index: int, term: int) -> None:
        self._append("snapshot", index, term)

    def drop(self, group: int, last_term: int, last_index: int) -> None:
        self._append("drop", last_term, last_index)

    def flush(self) -> None:
        if self.sync_delay is None or self._writing or self.durable == self.appended:
            return
        self._writing = self.appended
        self._later(self.sync_delay, self._written)

    def _written(self) -> None:
        upto, self._writing = self._writing, 0
        self._announce(upto)
        self.flush()

    def sync(self) -> None:
        """Everything appended so far becomes durable now."""
        self._announce(self.appended)

    def _announce(self, upto: int) -> None:
        if upto > self.durable:
            self.durable = upto
            for listener in list(self.listeners):
                listener(upto)

    def crash(self, rng: random.Random, keep: int | None) -> None:
        """Keep what is durable and ``keep`` records of the write under way (None: ``rng`` decides)."""
        under_way = max(0, self._writing - self.durable)
        kept = self.durable + (rng.randint(0, under_way) if keep is None else keep)
        del self._disk.records[kept:]


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


def _unseal(raw: bytes, index: int, term: int) -> tuple[tuple[int, ...], list[bytes]]:
    if len(raw) < 5 or zlib.crc32(raw[4:]) != int.from_bytes(raw[:4], "big"):
        raise CorruptData(f"snapshot-{index}", 0, "the checksum is wrong")
    found, found_term, voters, chunks = msgpack.unpackb(raw[4:])
    if (found, found_term) != (index, term):
        raise CorruptData(f"snapshot-{index}", 0, f"it is of entry {found}, term {found_term}")
    return tuple(voters), list(chunks)


class LabFiles:
    """Snapshot files of one start of a node; every callback comes ``delay`` seconds later, if the node still lives."""

    def __init__(self, disk: LabDisk, later: Later, delay: float) -> None:
        self._disk = disk
        self._later = later
        self.delay = delay
        self.aborted = 0
        self.busy = False
        self.hurry = False
        self.space = 1 << 40

    def room(self) -> int:
        return self.space

    def latest(self, group: int) -> SnapshotFile | None:
        return max(self._disk.files.values(), key=lambda info: info.index, default=None)

    def open(self, info: SnapshotFile) -> Iterator[bytes]:
        yield from _unseal(self._disk.files[info.index].raw, info.index, info.term)[1]

    def damaged(self, info: SnapshotFile, chunk: int, problem: Exception) -> CorruptData:
        return CorruptData(info.path, chunk, str(problem))

    def missing(self, group: int, index: int) -> CorruptData:
        return CorruptData(f"snap-{group}-{index}", 0, "the snapshot is missing")

    def read_raw(self, info: SnapshotFile, offset: int, size: int) -> bytes:
        return info.raw[offset : offset + size]

    def writer(self, group: int, index: int, term: int, voters: Sequence[int]) -> _Writer:
        self.busy = True
        return _Writer(self, index, term, tuple(voters))

    def incoming(self, group: int, index: int, term: int, size: int) -> _Incoming:
        return _Incoming(self, index, term, size)

    def prune(self, group: int, keep_index: int) -> None:
        for index in [index for index in self._disk.files if index < keep_index]:
            del self._disk.files[index]

    def put(self, index: int, term: int, raw: bytes) -> SnapshotFile:
        voters, _ = _unseal(raw, index, term)
        info = self._disk.files[index] = SnapshotFile(index, term, voters, raw)
        return info


class _Writer:
    def __init__(self, files: LabFiles, index: int, term: int, voters: tuple[int, ...]) -> None:
        self._files, self._index, self._term, self._voters = files, index, term, voters
        self._chunks: list[bytes] = []

    def add(self, chunks: Sequence[bytes], done: Callable[[BaseException | None], None]) -> None:
        self._chunks += chunks
        self._files._later(self._files.delay, lambda: done(None))

    def commit(self, done: Callable[[Any, BaseException | None], None]) -> None:
        def written() -> None:
            raw = _seal(self._index, self._term, self._voters, self._chunks)
            info = self._files.put(self._index, self._term, raw)
            self._files.busy = False
            self._files._later(self._files.delay, lambda: done(info, None))

        self._files._later(self._files.delay, written)

    def abort(self) -> None:
        self._files.aborted += 1
        self._files.busy = False


class _Incoming:
    def __init__(self, files: LabFiles, index: int, term: int, size: int) -> None:
        self._files, self._index, self._term = files, index, term
        self._raw = bytearray()

    def write(self, offset: int, data: bytes, done: Callable[[BaseException | None], None]) -> None:
        self._raw[offset : offset + len(data)] = data
        self._files._later(self._files.delay, lambda: done(None))

    def commit(self, done: Callable[[Any, BaseException | None], None]) -> None:
        def verified() -> None:
            try:
                _unseal(bytes(self._raw), self._index, self._term)
            except CorruptData as problem:
                done(None, problem)
                return
            info = self._files.put(self._index, self._term, bytes(self._raw))
            self._files._later(self._files.delay, lambda: done(info, None))

        self._files._later(self._files.delay, verified)

    def abort(self) -> None:
        self._files.aborted += 1


class Machine:
    """A state machine that keeps all it ever applied: ``applied`` is (time, key, value) of each PUT, in order."""

    def __init__(self, chunk_items: int = 50) -> None:
        self.time = 0
        self.applied: list[tuple[int, bytes, bytes]] = []
        self.values: dict[bytes, bytes] = {}
        self.poison: bytes | None = None
        self._chunk_items = chunk_items

    prepares = False

    def prepare(self, commands: Sequence[Command]) -> bool:
        return True

    def apply(self, now: int, commands: Sequence[Command]) -> list[Result]:
        if now < self.time:
            raise RaftKVError(f"group time goes back from {self.time} to {now}")
        self.time = now
        results = []
        for command in commands:
            assert isinstance(command, Put)
            key, value = command.key, command.value
            if value == self.poison:
                raise ValueError(f"cannot apply {value!r}")
            self.applied.append((now, key, value))
            self.values[key] = value
            results.append(Result(Code.OK, version=len(self.applied)))
        return results

    def snapshot(self) -> _MachineSnapshot:
        return _MachineSnapshot(self.time, list(self.applied), self._chunk_items)

    def begin_restore(self) -> _MachineRestore:
        return _MachineRestore(self)

    def digest(self) -> bytes:
        return zlib.crc32(msgpack.packb((self.time, self.applied))).to_bytes(16, "big")


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
        self._applied += [(time, key, value) for time, key, value in items]

    def finish(self) -> None:
        machine = self._machine
        machine.time, machine.applied = self._time, self._applied
        machine.values = {key: value for _, key, value in self._applied}
