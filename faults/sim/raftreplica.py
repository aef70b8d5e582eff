"""A replica in the Raft laboratory: what its consensus returns is executed on plain values.

Its disk are two lists of records, those on stable storage and those behind them, and its latest snapshot. A sync moves
records from one list to the other; a crash drops the second one, or the end of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgpack
from msgspec import Struct
from msgspec.structs import astuple

from faults.sim.persisted import LabError, Persisted
from raftkv.commands.base import Command
from raftkv.commands.records import Put
from raftkv.commands.results import Result
from raftkv.errors import Code, RaftKVError
from raftkv.raft.consensus import Consensus
from raftkv.raft.entries import encoded, is_batch, unpack_batch
from raftkv.raft.leadership import Leadership
from raftkv.raft.log import FIRST_INDEX
from raftkv.raft.membership import MembersView
from raftkv.raft.messages import OF_SNAPSHOTS, Type, check
from raftkv.raft.proposals import Done, Proposal
from raftkv.raft.reads import ReadDone
from raftkv.raft.ready import Appended, Barred, Committed, Covered, Entry, HardState, Offer, Ready, Record, Truncated
from raftkv.raft.status import GroupStatus, status_of

if TYPE_CHECKING:
    from faults.sim.raftlab import Lab

GROUP: Final = 7
_TICK: Final = 0.02


class Dropped(Struct, frozen=True, gc=False):
    """The replica was dropped; the last entry of its log was this one."""

    term: int
    index: int


@dataclass(slots=True)
class Recovered:
    """What records add up to. ``covered``: the index up to which they say that a snapshot covers the log."""

    term: int = 0
    vote: int = 0
    covered: int = FIRST_INDEX
    floor: tuple[int, int] = (0, 0)
    lost: tuple[int, int] = (0, 0)
    entries: list[Entry] = field(default_factory=list)


def recover(records: Iterable[Record | Dropped]) -> Recovered:
    """As raftkv.storage.wal does it."""
    found = Recovered()
    for record in records:
        if isinstance(record, HardState):
            found.term, found.vote = record.term, record.vote
        elif isinstance(record, Appended):
            if record.index > found.covered:
                held = record.index - found.covered - 1
                if held > len(found.entries):
                    raise LabError(f"entry {record.index} leaves a gap in the log")
                found.entries[held:] = [(record.command, record.index, record.term)]
        elif isinstance(record, Truncated):
            del found.entries[max(0, record.first - found.covered - 1) :]
        elif isinstance(record, Covered):
            if record.index > found.covered:
                held = record.index - found.covered
                conflict = held <= len(found.entries) and found.entries[held - 1][2] != record.term
                found.entries = [] if conflict else found.entries[held:]
                found.covered = record.index
        elif isinstance(record, Barred):
            found.lost = max(found.lost, (record.term, record.index))
        else:
            found.entries, found.covered = [], FIRST_INDEX
            found.floor, found.lost = max(found.floor, (record.term, record.index), found.lost), (0, 0)
    return found


class Machine:
    """A state machine that keeps all it ever applied: ``applied`` is (time, key, value) of each PUT, in order."""

    def __init__(self, time: int = 0, applied: Iterable[tuple[int, bytes, bytes]] = ()) -> None:
        self.time = time
        self.applied = list(applied)
        self.values = {key: value for _, key, value in self.applied}

    def apply(self, now: int, commands: Sequence[Command], _entry: memoryview | None = None) -> list[Result]:
        if now < self.time:
            raise RaftKVError(f"group time goes back from {self.time} to {now}")
        self.time = now
        results = []
        for command in commands:
            assert isinstance(command, Put)
            self.applied.append((now, command.key, command.value))
            self.values[command.key] = command.value
            results.append(Result(Code.OK, version=len(self.applied)))
        return results


@dataclass(frozen=True, slots=True)
class LabSnapshot:
    """The state as of one entry; ``raw`` is (voters, time, what was applied), packed."""

    index: int
    term: int
    raw: bytes

    @property
    def voters(self) -> tuple[int, ...]:
        return tuple(msgpack.unpackb(self.raw)[0])

    def machine(self) -> Machine:
        _, time, applied = msgpack.unpackb(self.raw)
        return Machine(time, map(tuple, applied))


def fit(found: Recovered, snapshot: LabSnapshot | None) -> tuple[list[Entry], list[Record | Dropped]]:
    """As raftkv.raft.snapshots.align does it: the entries behind the snapshot, and records that make it so for good."""
    if found.covered > (FIRST_INDEX if snapshot is None else snapshot.index):
        raise LabError(f"the snapshot of entry {found.covered} is missing")
    if snapshot is None:
        return found.entries, []
    entries, covered = found.entries, Covered(snapshot.index, snapshot.term)
    if any(index == snapshot.index and term != snapshot.term for _, index, term in entries):
        return [], [Truncated(entries[0][1]), covered]
    return [entry for entry in entries if entry[1] > snapshot.index], [covered]


class LabReplica:
    """One node, over all its starts. ``rate``: its clock runs so many times as fast as that of the laboratory."""

    def __init__(self, lab: Lab, node: int, founders: Sequence[int]) -> None:
        self.lab = lab
        self.node = node
        self.founders = tuple(founders)
        self.learners: tuple[int, ...] = ()
        self.durable: list[Record | Dropped] = []
        self.unsynced: list[Record | Dropped] = []
        self.snapshot: LabSnapshot | None = None
        self.machine = Machine()
        self.starts = 0
        self.rate = 1.0
        self._consensus: Consensus | None = None

    # -- life

    def start(self) -> None:
        """Come up with what is durable."""
        self.starts += 1
        self._shown = self.lab.now, 1000.0
        self.sync_delay = self.lab.sync_delay
        self._syncing = self._recorded = self._bytes_since = 0
        self._held: list[tuple[int, int, list[Any]]] = []
        self._fetching: Offer | None = None
        self._turn_due = self._taking = False
        self._open(recover(self.durable))
        log = self.raft.log
        self._persisted = Persisted(self.node, log.term, log.vote, log.last_index)
        self.set_learners(self.learners)
        self.lab.on_started(self)
        if not self.lab.by_hand:
            self._tick_for_ever()
        self.wake()

    def _open(self, found: Recovered) -> None:
        snapshot = self.snapshot
        entries, records = fit(found, snapshot)
        self.unsynced += records
        self.machine = Machine() if snapshot is None else snapshot.machine()
        self._consensus = Consensus(
            GROUP,
            self.node,
            self.now(),
            hard_state=(found.term, found.vote),
            base=(FIRST_INDEX, 0) if snapshot is None else (snapshot.index, snapshot.term),
            base_voters=self.founders if snapshot is None else snapshot.voters,
            entries=entries,
            floor=found.floor,
            lost=found.lost != (0, 0),
            rng=self.random(),
            config=self.lab.config,
            link_number=self.link_number,
            time=self.machine.time,
        )
        if snapshot is not None:
            self.raft.log.snapshot = snapshot.index, snapshot.term, len(snapshot.raw)

    def random(self) -> random.Random:
        return random.Random(f"{self.lab.seed} {self.node} {self.starts}")

    def kill(self) -> None:
        """Kill -9 or power loss: what was durable stays, and some of the records of a sync that was begun."""
        if self.alive:
            begun = max(0, self._syncing - len(self.durable))
            self.durable += self.unsynced[: self.lab.rng.randint(0, begun)]
            self.unsynced = []
            self._consensus = None
            self.lab.on_killed(self.node)

    def drop(self) -> None:
        """Host the group no more: nothing stays but what was promised. The next start begins with an empty log."""
        log = self.raft.log
        self.close()
        self.durable += [*self.unsynced, Dropped(log.last_term, log.last_index)]
        self.unsynced, self.snapshot = [], None
        self.kill()

    def close(self) -> None:
        self.raft.close()
        self.step()

    @property
    def alive(self) -> bool:
        return self._consensus is not None

    @property
    def raft(self) -> Consensus:
        if self._consensus is None:
            raise LabError(f"node {self.node} is dead")
        return self._consensus

    # -- time

    def now(self) -> float:
        """What its clock shows."""
        since, shown = self._shown
        return shown + (self.lab.now - since) * self.rate

    def set_rate(self, rate: float) -> None:
        self._shown = self.lab.now, self.now()
        self.rate = rate

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """In ``delay`` seconds of the laboratory, if it still lives then."""
        start = self.starts

        def if_alive() -> None:
            if self.alive and self.starts == start:
                call()

        self.lab.at(self.lab.now + delay, if_alive)

    def tick(self) -> None:
        if self.raft.tick(self.now()):
            self.wake()

    def _tick_for_ever(self) -> None:
        self.tick()
        self.later(_TICK / self.rate, self._tick_for_ever)

    def wake(self) -> None:
        """Take a step once all that happens in this moment has happened."""
        if not self._turn_due:
            self._turn_due = True
            self.later(0.0, self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        self.step()

    # -- what a step returns

    def step(self) -> None:
        ready = self.raft.step(self.now())
        self._persisted.take(ready)
        self._execute(ready)
        config, log = self.lab.config, self.raft.log
        size = 0 if log.snapshot is None else log.snapshot[2]
        if self._bytes_since > max(config.snapshot_bytes, config.snapshot_share * size):
            self.take_snapshot()

    def _execute(self, ready: Ready) -> None:
        self.unsynced += ready.records
        self._recorded += len(ready.records)
        for node, message in ready.messages:
            self.send(node, message)
        for node, message in ready.after:
            self.hold(node, message)
        self._apply(ready.committed)
        for done in ready.reads:
            done(Code.OK)
        for to, what in ready.answers:
            to(what)
        if ready.fetch is not None:
            self._fetching = ready.fetch
            self.send(ready.fetch.peer, [GROUP, Type.SNAPSHOT_PULL, self.raft.core.term(), ready.fetch.index, 0])
        if ready.more:
            self.wake()
        self._begin_sync()

    def send(self, node: int, message: list[Any]) -> None:
        self.lab.send(self.node, node, message)

    def hold(self, node: int, message: list[Any]) -> None:
        """Send it once all records so far are on stable storage."""
        if self.unsynced:
            self._held.append((self.recorded, node, message))
        else:
            self.send(node, message)

    def link_number(self, node: int) -> int:
        return self.lab.link_numbers[self.node, node]

    def _apply(self, committed: Sequence[Committed]) -> None:
        for entry in committed:
            self._bytes_since += len(entry.command)
            if entry.opened is not None:
                answers = self.machine.apply(entry.opened.time, entry.opened.ops, encoded(entry.command))
                entry.opened.answer(answers)
            elif is_batch(entry.command):
                self.machine.apply(*unpack_batch(entry.command), encoded(entry.command))
        if committed and self.raft.applied(committed[-1].index, self.machine.time, self.now()):
            self.wake()

    # -- the disk

    @property
    def recorded(self) -> int:
        """Records so far, on stable storage or not."""
        return len(self.durable) + len(self.unsynced)

    def _begin_sync(self) -> None:
        if self.sync_delay is not None and self.unsynced and not self._syncing:
            self._syncing = self.recorded
            self.later(self.sync_delay, self._end_sync)

    def _end_sync(self) -> None:
        until, self._syncing = self._syncing, 0
        self._synced(until)
        self._begin_sync()

    def sync(self) -> None:
        """Everything so far is on stable storage now."""
        self._synced(self.recorded)

    def _synced(self, until: int) -> None:
        count = max(0, until - len(self.durable))
        self.durable += self.unsynced[:count]
        del self.unsynced[:count]
        held, self._held = self._held, []
        for at, node, message in held:
            if at <= len(self.durable):
                self.send(node, message)
            else:
                self._held.append((at, node, message))
        self._on_synced()

    def _on_synced(self) -> None:
        # Records with which the log was fitted to the snapshot at the start are not those of the consensus.
        if self.raft.synced(max(0, self._recorded - len(self.unsynced))):
            self.wake()

    # -- snapshots

    def take_snapshot(self) -> None:
        """Of all that is applied. It is durable some time before the consensus hears of it."""
        index, log = self.raft.core.applied_index(), self.raft.log
        term = log.term_at(index)
        if self._taking or index <= self._covered() or term is None:
            return
        self._taking, self._bytes_since = True, 0
        raw = msgpack.packb((log.configurations.at(index), self.machine.time, self.machine.applied))
        snapshot = LabSnapshot(index, term, raw)
        self._store(snapshot, lambda: self._taken(snapshot))

    def _covered(self) -> int:
        known = self.raft.log.snapshot
        return FIRST_INDEX if known is None else known[0]

    def _store(self, snapshot: LabSnapshot, done: Callable[[], None]) -> None:
        def stored() -> None:
            if self.snapshot is None or snapshot.index > self.snapshot.index:
                self.snapshot = snapshot
            self.later(self.lab.file_delay, done)

        self.later(self.lab.file_delay, stored)

    def _taken(self, snapshot: LabSnapshot) -> None:
        self._taking = False
        if snapshot.index > self._covered():
            config, log = self.lab.config, self.raft.log
            self.raft.snapshot_written(snapshot.index, snapshot.term, len(snapshot.raw))
            log.compact(log.tail(snapshot.index, config.keep_entries, config.keep_bytes))
            self.wake()

    def _on_pull(self, peer: int, index: int) -> None:
        snapshot = self.snapshot
        if self.leads() and snapshot is not None and snapshot.index == index:
            self.send(peer, [GROUP, Type.SNAPSHOT_CHUNK, self.raft.core.term(), index, 0, snapshot.raw])

    def _on_chunk(self, peer: int, index: int, data: bytes) -> None:
        offer, self._fetching = self._fetching, None
        if offer is not None and (offer.peer, offer.index) == (peer, index):
            snapshot = LabSnapshot(index, offer.term, data)
            self._store(snapshot, lambda: self._install(offer, snapshot))

    def _install(self, offer: Offer, snapshot: LabSnapshot) -> None:
        if self.raft.holds(offer.index, offer.term):
            self.raft.snapshot_kept(offer.peer, offer.index)
        else:
            self.machine = snapshot.machine()
            self.raft.snapshot_installed(offer, self.machine.time, snapshot.voters)
            self._bytes_since = 0
        self.wake()

    # -- what is asked of it

    def receive(self, peer: int, message: list[Any]) -> bool:
        """Take a message, packed and unpacked on its way. False if it is malformed."""
        return self.take(peer, list(msgpack.unpackb(msgpack.packb(message))))

    def take(self, peer: int, message: list[Any]) -> bool:
        if not check(message):
            return False
        if message[1] not in OF_SNAPSHOTS:
            if not self.raft.receive(peer, message, self.now()):
                self._rest()
                return True
        elif message[1] == Type.SNAPSHOT_CHUNK:
            self._on_chunk(peer, message[3], message[5])
        elif self.raft.membership.knows(peer):
            self._on_pull(peer, message[3])
        self.wake()
        return True

    def _rest(self) -> None:
        """The consensus says that a step would lead to nothing: see whether it does."""
        lead = self.raft.lead
        if not self._turn_due and (lead is None or not lead.heartbeat_due()):
            ready = self.raft.step(self.now())
            if any(astuple(ready)):
                raise LabError(f"node {self.node} had something to do and did not say so: {ready}")

    def propose(self, ops: Sequence[Command], size: int, done: Done) -> Proposal:
        proposal = Proposal(ops, size, done)
        refusal = self.raft.propose(proposal)
        if refusal is not None:
            proposal.refuse(refusal)
        self.wake()
        return proposal

    def put(self, value: bytes, key: bytes = b"k") -> LabAnswer:
        outcome = LabAnswer(value)
        self.propose([Put(0, key, value)], len(value), outcome.sink)
        return outcome

    def read(self, *, quorum: bool, key: bytes = b"k") -> LabAnswer:
        """Read ``key``; ``outcome.seen`` is the value at the moment at which the read was served."""
        outcome = LabAnswer(b"")

        def done(code: Code) -> None:
            outcome.answers.append(Result(code))
            if code == Code.OK:
                outcome.seen = self.machine.values.get(key)

        self._read(quorum, done)
        return outcome

    def _read(self, quorum: bool, done: ReadDone) -> None:
        refusal = self.raft.read(quorum, done)
        if refusal is not None:
            done(Code(refusal.code))
        self.wake()

    def change(self, *voters: int, heard: bool = True) -> LabAnswer:
        """Have the voters changed. ``heard``: as if a newcomer that counts as caught up had answered in this moment."""
        outcome = LabAnswer(b"")
        self.raft.change_members(voters, lambda result: outcome.sink([result]), self.now())
        asked = self.raft.membership._asked
        if asked is not None and heard:
            self.lead.followers[asked.newcomer].matched = asked.seq + 1
        self.step()
        return outcome

    def set_learners(self, nodes: Sequence[int]) -> None:
        if self.raft.set_learners(nodes, self.now()):
            self.wake()

    def transfer(self, target: int) -> bool:
        started = self.raft.transfer(target, self.now())
        self.wake()
        return started

    # -- views

    @property
    def lead(self) -> Leadership:
        lead = self.raft.lead
        if lead is None:
            raise LabError(f"node {self.node} does not lead")
        return lead

    @property
    def voters(self) -> tuple[int, ...]:
        return self.raft.core.voters()

    def leads(self) -> bool:
        return self.raft.lead is not None

    def status(self) -> GroupStatus:
        return status_of(self.raft, 0 if self.raft.log.snapshot is None else self.raft.log.snapshot[0])

    def members(self) -> MembersView:
        return self.raft.membership.view(self.raft.lead, self.now())

    def lease_holds(self) -> bool:
        return self.raft.lease_holds(self.now())

    def commands(self) -> list[bytes]:
        return [value for _, _, value in self.machine.applied]


@dataclass(slots=True)
class LabAnswer:
    """The answer to one proposal or read; an answer that comes twice is an error."""

    value: bytes
    answers: list[Result] = field(default_factory=list)
    seen: bytes | None = None

    def sink(self, results: list[Result]) -> None:
        if self.answers:
            raise LabError(f"{self.value!r} was answered twice: {self.answers[0]} and {results}")
        (result,) = results
        self.answers.append(result)

    @property
    def code(self) -> Code | None:
        return Code(self.answers[0].code) if self.answers else None

    @property
    def ok(self) -> bool:
        return self.code == Code.OK
