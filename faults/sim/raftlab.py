"""A laboratory for consensus: the replicas of one group in one process, on values and on virtual time.

Replicas (:mod:`faults.sim.raftreplica`) execute what their consensus returns; links (packed messages, numbered as the
real ones) and clocks (each with its own rate) are simulated and deterministic. Two ways of use:

- by hand (``Lab(by_hand=True)``): messages wait in ``lab.wire`` until the test delivers, drops or repeats them, time
  stands still and nothing ticks unless told so;
- running: messages, syncs and ticks happen by themselves as time passes (``lab.run``).
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from faults.sim.persisted import LabError
from faults.sim.raftreplica import GROUP, LabAnswer, LabReplica
from raftkv.commands.records import Put
from raftkv.raft import RaftConfig
from raftkv.raft.entries import pack_batch
from raftkv.raft.log import FIRST_INDEX
from raftkv.raft.messages import Type

_STEPS: Final = 10_000
"""Things that may happen at one moment before it is taken for an endless loop."""


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


class VirtualTime:
    """Things happen in order of their time, those of the same time in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (max(time, self.now), self._count, call))

    def run(self, seconds: float) -> None:
        end, busy = self.now + seconds, 0
        while self._due and self._due[0][0] <= end:
            due, _, call = heapq.heappop(self._due)
            busy = busy + 1 if due <= self.now else 0
            if busy > _STEPS:
                raise LabError(f"{busy} things happened at {self.now} s: something keeps itself busy")
            self.now = max(self.now, due)
            call()
        self.now = max(self.now, end)


class Lab(VirtualTime):
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
        replica: type[LabReplica] = LabReplica,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.config = config or RaftConfig()
        self.by_hand = by_hand
        self.sync_delay = sync_delay
        self.file_delay = file_delay
        self.fifo = fifo
        self.rng = random.Random(f"lab {seed}")
        self.fate: Fate = fate or (lambda _: (self.rng.uniform(0.001, 0.003),))
        self.wire: list[Envelope] = []
        self.link_numbers: defaultdict[tuple[int, int], int] = defaultdict(int)
        self.cuts: set[tuple[int, int]] = set()
        self.messages = 0
        self.bytes = 0
        self.leaders: dict[int, int] = {}
        self._arrival: dict[tuple[int, int], float] = {}
        self._generation: defaultdict[tuple[int, int], int] = defaultdict(int)
        numbers = range(1, nodes + 1)
        self.nodes = {node: replica(self, node, founders or numbers) for node in numbers}
        for one in self.nodes.values():
            one.start()
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

    def send(self, src: int, dst: int, message: list[Any]) -> None:
        packed = msgpack.packb(message)
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
            due = self.now + delay
            if self.fifo and not number:
                due = self._arrival[src, dst] = max(due, self._arrival.get((src, dst), 0.0))
            self.at(due, lambda: self._arrive(envelope, generation))

    def _arrive(self, envelope: Envelope, generation: int) -> None:
        link = envelope.src, envelope.dst
        if (self.fifo and self._generation[link] != generation) or link in self.cuts:
            return
        self._hand_over(envelope)

    def _hand_over(self, envelope: Envelope) -> None:
        replica = self.nodes[envelope.dst]
        if replica.alive:
            if not replica.take(envelope.src, envelope.message):
                raise LabError(f"{envelope.message} was taken for malformed")
            self._check(replica)

    def _check(self, replica: LabReplica) -> None:
        if replica.leads():
            term = replica.raft.core.term()
            if self.leaders.setdefault(term, replica.node) != replica.node:
                raise LabError(f"nodes {self.leaders[term]} and {replica.node} both lead in term {term}")

    def set_learners(self, *nodes: int) -> None:
        """Tell every replica, also for its later starts."""
        for replica in self.nodes.values():
            replica.learners = nodes
            if replica.alive:
                replica.set_learners(nodes)

    # -- time

    def run_until(self, condition: Callable[[], Any], limit: float = 10.0, step: float = 0.01) -> None:
        """Let time pass until ``condition`` holds; LabError after ``limit`` seconds."""
        end = self.now + limit
        while not condition():
            if self.now >= end:
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
            if count > _STEPS:
                raise LabError("messages without end")
        return count

    def tick(self, *nodes: int, after: float = 0.0) -> None:
        """Let ``after`` seconds pass, then tick ``nodes`` (default: all that live)."""
        self.run(after)
        for node in nodes or [node for node, replica in self.nodes.items() if replica.alive]:
            self.nodes[node].tick()
            self.run(0.0)

    def elect(self, node: int) -> LabReplica:
        """By hand: let so much time pass that nobody holds on to a leader, then have ``node`` elected."""
        self.run(self.config.election_max + self.config.election_min)
        self.tick(node)
        self.pump()
        replica = self.nodes[node]
        if not replica.leads():
            raise LabError(f"node {node} was not elected")
        return replica

    # -- running

    def leader(self) -> LabReplica | None:
        """The leader of the latest term among the living."""
        leading = [replica for replica in self.nodes.values() if replica.alive and replica.leads()]
        return max(leading, key=lambda replica: replica.raft.core.term(), default=None)

    def wait_for_leader(self, limit: float = 10.0) -> LabReplica:
        """Run until there is a leader that has opened its term and all living voters and learners follow it."""

        def settled() -> bool:
            leader = self.leader()
            return leader is not None and all(
                replica.raft.core.leader() == leader.node
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
