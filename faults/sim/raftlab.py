"""A laboratory for the Raft adapter: the replicas of one group in one process, on virtual time.

Everything around :class:`raftkv.raft.RaftGroup` is simulated and deterministic: clocks (each with its own rate), links
(msgpack both ways, links numbered as the real ones), one WAL and one snapshot folder for each node, which lose on a
crash what was not synced. Two ways of use:

- by hand (``Lab(by_hand=True)``): messages wait in ``lab.wire`` until the test delivers, drops or repeats them, time
  stands still and nothing ticks unless told so;
- running: messages, syncs and ticks happen by themselves as virtual time passes (``lab.run``).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgpack

from faults.sim.persisted import Persisted
from faults.sim.raftparts import STEPS, LabClock, LabDisk, LabError, LabFiles, LabWal, Machine, VirtualTime
from raftkv.commands.records import Put
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.raft import RaftConfig, RaftGroup
from raftkv.raft.entries import pack_batch
from raftkv.raft.leadership import Leadership
from raftkv.raft.log import FIRST_INDEX
from raftkv.raft.messages import Type
from raftkv.raft.ready import Ready

GROUP: Final = 7
_TICK: Final = 0.02


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message on its way: packed, so that its shapes after arrival are those of the wire."""

    src: int
    dst: int
    packed: bytes

    @property
    def message(self) -> list[Any]:
        return list(msgpack.unpackb(self.packed))

    @property
    def type(self) -> Type:
        return Type(self.message[1])


class LabReplica:
    """One node, over all its starts. ``group`` is None while it is dead."""

    def __init__(self, lab: Lab, node: int, founders: Sequence[int]) -> None:
        self.lab = lab
        self.node = node
        self.founders = tuple(founders)
        self.learners: tuple[int, ...] = ()
        self.disk = LabDisk()
        self.rate = 1.0
        self.sync_delay: float | None = lab.sync_delay
        self.group: RaftGroup | None = None
        self.machine = Machine()
        self.fatal: list[BaseException] = []
        self.starts = 0
        self._turn_due = False

    # -- life

    def start(self) -> None:
        lab, state = self.lab, self.disk.recover()
        self.starts += 1
        start = self.starts

        def alive() -> bool:
            return self.starts == start and self.group is not None

        def later(delay: float, call: Callable[[], None]) -> None:
            def guarded() -> None:
                if alive():
                    call()
                    self.wal.flush()

            lab.world.at(lab.world.now + delay, guarded)

        self.wal = LabWal(self.disk, later, self.sync_delay)
        self.clock = LabClock(lab.world, alive, self.wal.flush, self.rate)
        self.files = LabFiles(self.disk, later, lab.file_delay)
        self.machine = Machine()
        self._held: list[tuple[int, int, bytes]] = []
        self._later = later
        self._turn_due = False
        self.group = None
        self.group = RaftGroup(
            GROUP,
            self.node,
            self.founders,
            hard_state=(state.term, state.vote),
            floor=state.floor,
            lost=state.lost != (0, 0),
            compacted=state.snapshot_index,
            entries=state.entries,
            machine=self.machine,
            wal=self.wal,
            files=self.files,
            outbox=self,
            clock=self.clock,
            rng=random.Random(f"{lab.seed} {self.node} {start}"),
            config=lab.config,
            wake=self.wake,
            fatal=self.fatal.append,
        )
        self._assert_on_values(self.group)
        self.group.set_learners(self.learners)
        self.wal.listeners += [self._release, self.group.on_durable]
        lab.on_started(self)
        if not lab.by_hand:
            self._tick_for_ever()
        self.wake()

    def _assert_on_values(self, group: RaftGroup) -> None:
        """Persist before send, on all that its steps say."""
        log, step = group.log, group.consensus.step
        persisted = Persisted(self.node, log.term, log.vote, log.last_index)

        def watched(now: float) -> Ready:
            ready = step(now)
            persisted.take(ready)
            return ready

        cast(Any, group.consensus).step = watched

    def kill(self, *, keep: int | None = None) -> None:
        """Kill -9 or power loss: the WAL keeps what was durable and ``keep`` records (None: any) of a write begun."""
        if self.group is not None:
            self.wal.crash(self.lab.rng, keep)
            self.group = None
            self.lab.on_killed(self.node)

    def drop(self) -> None:
        """Host the group no more: nothing stays but what the WAL keeps. The next start begins with an empty log."""
        log = self.raft.log
        self.raft.close()
        self.wal.drop(GROUP, log.last_term, log.last_index)
        self.wal.sync()
        self.disk.files.clear()
        self.kill()

    @property
    def alive(self) -> bool:
        return self.group is not None

    @property
    def raft(self) -> RaftGroup:
        if self.group is None:
            raise LabError(f"node {self.node} is dead")
        return self.group

    @property
    def lead(self) -> Leadership:
        lead = self.raft.consensus.lead
        if lead is None:
            raise LabError(f"node {self.node} does not lead")
        return lead

    def _tick_for_ever(self) -> None:
        self.raft.tick()
        self.wal.flush()
        self._later(_TICK / self.rate, self._tick_for_ever)

    def wake(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            if self.group is None:  # asked for during its construction
                return
            self._later(0.0, self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        self.raft.step()

    # -- the outbox

    def send(self, node: int, message: list[Any]) -> None:
        self.lab.send(self.node, node, msgpack.packb(message))

    def send_when_durable(self, node: int, message: list[Any]) -> None:
        if self.wal.durable >= self.wal.appended:
            self.send(node, message)
        else:
            self._held.append((self.wal.appended, node, msgpack.packb(message)))

    def _release(self, durable: int) -> None:
        ready = [held for held in self._held if held[0] <= durable]
        self._held = [held for held in self._held if held[0] > durable]
        for _, node, packed in ready:
            self.lab.send(self.node, node, packed)

    def link_number(self, node: int) -> int:
        return self.lab.link_numbers[self.node, node]

    # -- what tests do to it

    def receive(self, peer: int, message: list[Any]) -> bool:
        """Hand over a message, packed and unpacked on its way."""
        well_formed = self.raft.receive(peer, list(msgpack.unpackb(msgpack.packb(message))))
        self.wake()
        return well_formed

    def put(self, value: bytes, key: bytes = b"k") -> LabAnswer:
        outcome = LabAnswer(value)
        self.raft.propose([Put(0, key, value)], len(value), outcome.sink)
        return outcome

    def read(self, *, quorum: bool, key: bytes = b"k") -> LabAnswer:
        """Read ``key``; ``outcome.seen`` is the value at the moment at which the read was served."""
        outcome = LabAnswer(b"")

        def done(code: Code) -> None:
            outcome.answers.append(Result(code))
            if code == Code.OK:
                outcome.seen = self.machine.values.get(key)

        self.raft.read(quorum, done)
        return outcome

    def change(self, *voters: int, heard: bool = True) -> LabAnswer:
        """Have the voters changed. ``heard``: as if a newcomer that counts as caught up had answered in this moment."""
        outcome = LabAnswer(b"")
        self.raft.change_members(voters, lambda result: outcome.sink([result]))
        asked = self.raft.membership._asked
        if asked is not None and heard:
            self.lead.followers[asked.newcomer].matched = asked.seq + 1
        self.raft.step()
        return outcome

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


def batch(*values: bytes, time: int = 1) -> bytes:
    """The command of an entry that writes ``values``."""
    return pack_batch(time, [Put(0, b"k", value) for value in values])


def append(
    term: int,
    previous: int,
    previous_term: int,
    entries: Sequence[tuple[int, bytes]] = (),
    *,
    commit: int = FIRST_INDEX,
    seq: int = 1,
    link_number: int = 1,
) -> list[Any]:
    """An append of a leader of ``term``; ``entries`` are (term, command)."""
    return [GROUP, Type.APPEND, term, seq, link_number, previous, previous_term, commit, list(entries)]


Fate = Callable[[Envelope], Sequence[float]]
"""Delays in seconds after which a message arrives, one for each copy; empty: it is lost."""


class Lab:
    """The replicas of one group, numbered from 1. ``founders``: its first voters (default: all)."""

    def __init__(
        self,
        nodes: int = 3,
        *,
        founders: Sequence[int] = (),
        seed: int = 0,
        config: RaftConfig | None = None,
        by_hand: bool = False,
        sync_delay: float | None = 0.0,
        file_delay: float = 0.0,
        fate: Fate | None = None,
        fifo: bool = True,
    ) -> None:
        self.seed = seed
        self.config = config or RaftConfig()
        self.by_hand = by_hand
        self.sync_delay = sync_delay
        self.file_delay = file_delay
        self.fifo = fifo
        self.rng = random.Random(f"lab {seed}")
        self.fate: Fate = fate or (lambda _: (self.rng.uniform(0.001, 0.003),))
        self.world = VirtualTime()
        self.wire: list[Envelope] = []
        self.link_numbers: defaultdict[tuple[int, int], int] = defaultdict(int)
        self.cuts: set[tuple[int, int]] = set()
        self.messages = 0
        self.bytes = 0
        self.leaders: dict[int, int] = {}
        self._arrival: dict[tuple[int, int], float] = {}
        self._generation: defaultdict[tuple[int, int], int] = defaultdict(int)
        numbers = range(1, nodes + 1)
        self.nodes = {node: LabReplica(self, node, founders or numbers) for node in numbers}
        for replica in self.nodes.values():
            replica.start()
        self.run(0.0)

    def __getitem__(self, node: int) -> LabReplica:
        return self.nodes[node]

    # -- links

    def on_started(self, replica: LabReplica) -> None:
        for node, other in self.nodes.items():
            if node != replica.node:
                self.link_numbers[replica.node, node] = 1
                if other.alive:
                    self.reconnect(node, replica.node)

    def on_killed(self, node: int) -> None:
        for other in self.nodes:
            self._generation[other, node] += 1

    def reconnect(self, src: int, dst: int) -> None:
        """Break the link and make it anew: what is on its way is lost."""
        self._generation[src, dst] += 1
        self.link_numbers[src, dst] += 1

    def cut(self, src: int, dst: int) -> None:
        """Lose everything from ``src`` to ``dst``, in this direction only."""
        self.cuts.add((src, dst))
        self._generation[src, dst] += 1

    def isolate(self, node: int) -> None:
        for other in self.nodes:
            if other != node:
                self.cut(node, other)
                self.cut(other, node)

    def heal(self) -> None:
        for src, dst in sorted(self.cuts):
            self.link_numbers[src, dst] += 1
        self.cuts.clear()

    def send(self, src: int, dst: int, packed: bytes) -> None:
        self.messages += 1
        self.bytes += len(packed)
        envelope = Envelope(src, dst, packed)
        if (src, dst) in self.cuts:
            return
        if self.by_hand:
            self.wire.append(envelope)
            return
        generation = self._generation[src, dst]
        for number, delay in enumerate(self.fate(envelope)):
            due = self.world.now + delay
            if self.fifo and not number:
                due = self._arrival[src, dst] = max(due, self._arrival.get((src, dst), 0.0))
            self.world.at(due, lambda: self._arrive(envelope, generation))

    def _arrive(self, envelope: Envelope, generation: int) -> None:
        link = envelope.src, envelope.dst
        if (self.fifo and self._generation[link] != generation) or link in self.cuts:
            return
        self._hand_over(envelope)

    def _hand_over(self, envelope: Envelope) -> None:
        replica = self.nodes[envelope.dst]
        if replica.alive:
            if not replica.raft.receive(envelope.src, envelope.message):
                raise LabError(f"{envelope.message} was taken for malformed")
            self._check(replica)
            replica.wake()

    def _check(self, replica: LabReplica) -> None:
        if replica.raft.leads():
            term = replica.raft.core.term()
            if self.leaders.setdefault(term, replica.node) != replica.node:
                raise LabError(f"nodes {self.leaders[term]} and {replica.node} both lead in term {term}")

    def set_learners(self, *nodes: int) -> None:
        """Tell every replica, also for its later starts."""
        for replica in self.nodes.values():
            replica.learners = nodes
            if replica.alive:
                replica.raft.set_learners(nodes)

    # -- time

    def run(self, seconds: float) -> None:
        self.world.run_until(self.world.now + seconds)

    def run_until(self, condition: Callable[[], Any], limit: float = 10.0, step: float = 0.01) -> None:
        """Let time pass until ``condition`` holds; LabError after ``limit`` seconds."""
        end = self.world.now + limit
        while not condition():
            if self.world.now >= end:
                raise LabError(f"nothing came of waiting {limit} s (seed {self.seed})")
            self.run(step)

    # -- by hand

    def find(self, src: int | None = None, dst: int | None = None, kind: Type | None = None) -> list[Envelope]:
        return [
            envelope
            for envelope in self.wire
            if src in (None, envelope.src) and dst in (None, envelope.dst) and kind in (None, envelope.type)
        ]

    def take(self, src: int | None = None, dst: int | None = None, kind: Type | None = None) -> list[Envelope]:
        """Remove and return the messages on the wire that match."""
        found = self.find(src, dst, kind)
        gone = {id(envelope) for envelope in found}
        self.wire = [envelope for envelope in self.wire if id(envelope) not in gone]
        return found

    def deliver(self, *envelopes: Envelope) -> None:
        """Deliver messages (again, if they were delivered before) and let the receivers finish their turns."""
        for envelope in envelopes:
            self._hand_over(envelope)
            self.run(0.0)

    def pump(self, src: int | None = None, dst: int | None = None, kind: Type | None = None) -> int:
        """Deliver what matches, in order, until nothing more is on the wire. Returns how many messages that were."""
        count = 0
        while found := self.find(src, dst, kind):
            self.wire.remove(found[0])
            self.deliver(found[0])
            count += 1
            if count > STEPS:
                raise LabError("messages without end")
        return count

    def tick(self, *nodes: int, after: float = 0.0) -> None:
        """Let ``after`` seconds pass, then tick ``nodes`` (default: all that live)."""
        self.run(after)
        for node in nodes or [node for node, replica in self.nodes.items() if replica.alive]:
            self.nodes[node].raft.tick()
            self.nodes[node].wal.flush()
            self.run(0.0)

    def elect(self, node: int) -> LabReplica:
        """By hand: let so much time pass that nobody holds on to a leader, then have ``node`` elected."""
        self.run(self.config.election_max + self.config.election_min)
        self.tick(node)
        self.pump()
        replica = self.nodes[node]
        if not replica.raft.leads():
            raise LabError(f"node {node} was not elected")
        return replica

    # -- running

    def leader(self) -> LabReplica | None:
        """The leader of the latest term among the living."""
        leading = [replica for replica in self.nodes.values() if replica.alive and replica.raft.leads()]
        return max(leading, key=lambda replica: replica.raft.core.term(), default=None)

    def wait_for_leader(self, limit: float = 10.0) -> LabReplica:
        """Run until there is a leader that has opened its term and all living voters and learners follow it."""

        def settled() -> bool:
            leader = self.leader()
            return leader is not None and all(
                replica.raft.leader() == leader.node
                and replica.raft.core.applied_index() >= leader.raft.core.no_op_index()
                for replica in self.nodes.values()
                if replica.alive and leader.raft.membership.knows(replica.node)
            )

        self.run_until(settled, limit)
        leader = self.leader()
        assert leader is not None
        return leader

    def commit(self, leader: LabReplica, value: bytes, key: bytes = b"k") -> LabAnswer:
        """Running: propose and wait for the answer."""
        outcome = leader.put(value, key)
        self.run_until(lambda: outcome.answers)
        return outcome
