"""Random faults over a group of replicas on virtual time: what Raft promises must hold in every run.

:class:`MemberStorm` has the group's members change all the while.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from faults.sim.raftlab import Envelope, Lab
from faults.sim.raftreplica import LabAnswer, LabReplica, recover
from raftkv.errors import Code
from raftkv.raft import RaftConfig
from raftkv.raft.configurations import CONFIG, pack_voters, unpack_voters

_SECONDS: Final = 11.0
_CLIENTS: Final = 4
_FAULTS: Final = (
    *("kill", "kill", "revive", "revive", "revive", "cut", "isolate", "heal", "heal", "heal"),
    *("break", "transfer", "all", "disk"),
)
_SYNC_DELAYS: Final = (0.0005, 0.003, 0.02, 0.2)
_SURELY_NOT: Final = (Code.NOT_LEADER, Code.UNAVAILABLE)


@dataclass(slots=True)
class LabCall:
    """One operation of a client. ``end`` is None while nothing is known of its outcome."""

    outcome: LabAnswer
    write: bool
    node: int
    start: float
    end: float | None = None


class RaftStorm:
    """One run. Safety is checked all along and at the end, liveness after the faults are over."""

    sizes: tuple[int, ...] = (3, 3, 3, 5)
    founders: tuple[int, ...] = ()

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(f"storm {seed}")
        nodes = rng.choice(self.sizes)
        self.lab = Lab(
            nodes,
            founders=self.founders,
            seed=seed,
            config=RaftConfig(snapshot_bytes=rng.choice((1500, 4000, 10**9)), keep_entries=rng.choice((0, 10, 60))),
            sync_delay=rng.choice(_SYNC_DELAYS),
            file_delay=rng.choice((0.0, 0.005)),
            fifo=rng.random() < 0.7,
            fate=self.fate,
        )
        self.far = random.Random(f"far {seed}").choice((0.0, 0.0, 0.02, 0.1))
        """Seconds that every message takes at least."""
        self.loss = rng.choice((0.0, 0.01, 0.05))
        self.repeats = rng.choice((0.0, 0.02))
        for replica in self.lab.nodes.values():
            replica.set_rate(rng.uniform(0.95, 1.05))
        self.calls: list[LabCall] = []
        self.open: list[LabCall | None] = [None] * _CLIENTS
        self.history: list[bytes] = []
        self.checked: dict[tuple[int, int], int] = {}
        self.written = 0
        self.drops = 0
        """Replicas that were dropped: a leader that missed their removal may miss what they held."""

    def fate(self, envelope: Envelope) -> Sequence[float]:
        rng = self.lab.rng
        if not hasattr(self, "loss"):
            return (0.001,)
        delays = [] if rng.random() < self.loss else [rng.uniform(0.001, 0.003 if self.lab.fifo else 0.03)]
        if rng.random() < self.repeats:
            delays.append(rng.uniform(0.001, 2.0))
        return [self.far + delay for delay in delays]

    def run(self) -> None:
        end = self.lab.now + _SECONDS
        next_fault = 1.0
        while self.lab.now < end:
            self.lab.run(0.005)
            self.clients()
            self.check()
            if self.lab.now > next_fault:
                next_fault = self.lab.now + self.rng.expovariate(1 / 0.35)
                self.fault()
        self.heal()
        self.converge()

    # -- clients

    def clients(self) -> None:
        for client, call in enumerate(self.open):
            if call is not None:
                if call.outcome.answers:
                    call.end = self.lab.now
                elif self.lab.now < call.start + 1.0 and self.lab[call.node].alive:
                    continue
                self.open[client] = None
            if self.rng.random() < 0.5:
                continue
            leading = [replica for replica in self.lab.nodes.values() if replica.alive and replica.leads()]
            if leading:
                self.open[client] = self.call(self.rng.choice(leading))

    def call(self, replica: LabReplica) -> LabCall:
        start = self.lab.now
        write = self.rng.random() < 0.5
        if write:
            self.written += 1
            outcome = replica.put(b"%d" % self.written + b"." * self.rng.randrange(100))
        else:
            outcome = replica.read(quorum=self.rng.random() < 0.4)
        call = LabCall(outcome, write, replica.node, start)
        self.calls.append(call)
        return call

    # -- faults

    def fault(self) -> None:
        lab, rng = self.lab, self.rng
        leader = lab.leader()
        # Whoever leads has most to lose.
        node = leader.node if leader is not None and rng.random() < 0.5 else rng.randint(1, len(lab.nodes))
        other = rng.choice([peer for peer in lab.nodes if peer != node])
        kind = rng.choice(_FAULTS)
        if kind == "kill":
            lab[node].kill()
        elif kind == "revive":
            self.revive()
        elif kind == "cut":
            lab.cut(node, other)
        elif kind == "isolate":
            lab.isolate(node)
        elif kind == "heal":
            lab.heal()
        elif kind == "break":
            lab.reconnect(node, other)
        elif kind == "transfer":
            if lab[node].alive:
                lab[node].transfer(other)
        elif kind == "disk":
            lab[node].sync_delay = rng.choice(_SYNC_DELAYS)
        else:
            for replica in lab.nodes.values():
                replica.kill()
            self.revive()

    def revive(self) -> None:
        for replica in self.lab.nodes.values():
            if not replica.alive:
                replica.start()

    def heal(self) -> None:
        self.loss = self.repeats = 0.0
        self.lab.fifo = True
        self.lab.heal()
        self.revive()

    # -- what must hold

    def check(self) -> None:
        """Each replica has applied a prefix of one and the same history; a term has one leader."""
        for replica in self.lab.nodes.values():
            if not replica.alive:
                continue
            assert replica.status().data_loss == () or self.drops, "no disk was ever lost"
            commands = replica.machine.applied
            key = (replica.node, replica.starts)
            for position in range(self.checked.get(key, 0), len(commands)):
                value = commands[position][2]
                if position == len(self.history):
                    self.history.append(value)
                assert self.history[position] == value, f"node {replica.node} applied another command at {position}"
            self.checked[key] = len(commands)
            if replica.leads():
                term = replica.raft.core.term()
                assert self.lab.leaders.setdefault(term, replica.node) == replica.node, f"two leaders in term {term}"

    def converge(self) -> None:
        self.lab.run(2.0)  # until the last repeated message and the last transfer of the leadership are over
        leader = self.lab.wait_for_leader(5.0)
        assert self.lab.commit(leader, b"last").ok
        self.lab.run_until(lambda: all(r.commands() == leader.commands() for r in self.lab.nodes.values()), 10.0)
        self.check()
        states = [(replica.machine.time, replica.machine.applied) for replica in self.lab.nodes.values()]
        assert all(state == states[0] for state in states)
        for call in self.calls:
            if call.outcome.answers and call.end is None:
                call.end = self.lab.now
        self.linearizable(leader.commands())

    def linearizable(self, history: list[bytes]) -> None:
        """Every write has its place in the history, so the real-time order of all calls can be compared with it."""
        place = {value: number for number, value in enumerate(history, 1)}
        assert len(place) == len(history), "a write took effect twice"
        started = {call.outcome.value: call.start for call in self.calls if call.write}
        done: list[tuple[float, float, int]] = []
        for call in self.calls:
            code = call.outcome.code
            if call.write and code in _SURELY_NOT:
                assert call.outcome.value not in place, f"{call} was refused and yet took effect"
            if code != Code.OK:
                continue
            assert call.end is not None
            if call.write:
                assert call.outcome.value in place, f"acknowledged write lost: {call}"
                done.append((call.start, call.end, place[call.outcome.value]))
            else:
                seen = place[call.outcome.seen] if call.outcome.seen is not None else 0
                if call.outcome.seen is not None:
                    assert started[call.outcome.seen] <= call.end, f"read from the future: {call}"
                done.append((call.start, call.end, seen))
        floor = 0
        ended = sorted(done, key=lambda item: item[1])
        position = 0
        for start, _, at in sorted(done):
            while position < len(ended) and ended[position][1] < start:
                floor = max(floor, ended[position][2])
                position += 1
            assert at >= floor, f"a call that started at {start} saw {at}, another had seen {floor} before"


class MemberStorm(RaftStorm):
    """Three founders among more nodes; voters and learners come and go, and replicas are dropped and come back."""

    sizes = (5, 6, 7)
    founders = (1, 2, 3)

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.changes: list[tuple[tuple[int, ...], LabAnswer]] = []
        self.committed: dict[int, tuple[int, ...]] = {}
        """Index -> the voters that a committed entry names there."""
        self.changed = 0
        self.away: dict[int, float] = {}
        """Nodes that have dropped their replica, and until when."""
        self.lab.set_learners(*self.lab.nodes)

    def fault(self) -> None:
        kind = self.rng.choice(("fault", "fault", "change", "change", "change", "learners", "drop"))
        if kind == "fault":
            super().fault()
        elif kind == "learners":
            present = [node for node in self.lab.nodes if node not in self.away]
            self.lab.set_learners(*(node for node in present if self.rng.random() < 0.8))
        elif kind == "change":
            self.change()
        else:
            self.drop()

    def change(self) -> None:
        """Ask whoever leads for a change of one server; now and then it is cut off with that in its log."""
        leading = [replica for replica in self.lab.nodes.values() if replica.alive and replica.leads()]
        if leading:
            leader = self.rng.choice(leading)
            node = self.rng.choice(list(self.lab.nodes))
            wanted = tuple(sorted(set(leader.voters) ^ {node}))
            self.changes.append((wanted, leader.change(*wanted)))
            if self.rng.random() < 0.25:
                self.lab.isolate(leader.node)

    def drop(self) -> None:
        """A node outside the group lets go of its replica: it is not a learner either, and no change brings it in."""
        voting = set(self.committed[max(self.committed)] if self.committed else self.founders)
        for replica in self.lab.nodes.values():
            for command, _, _ in recover([*replica.durable, *replica.unsynced]).entries:
                voting |= set(unpack_voters(command)) if command.startswith(CONFIG) else set()
        idle = [node for node, replica in self.lab.nodes.items() if replica.alive and node not in voting]
        if idle:
            node = self.rng.choice(idle)
            # Links keep order, so no answer of the replica of before comes after one of its next.
            self.away[node] = self.lab.now + 2.1
            self.lab.set_learners(*(other for other in self.lab.nodes if other not in self.away))
            self.lab[node].drop()
            self.drops += 1

    def revive(self) -> None:
        for node, replica in self.lab.nodes.items():
            if not replica.alive and self.lab.now >= self.away.get(node, 0.0):
                self.away.pop(node, None)
                replica.start()

    def check(self) -> None:
        super().check()
        for replica in self.lab.nodes.values():
            if replica.alive:
                self.check_members(replica)

    def check_members(self, replica: LabReplica) -> None:
        group = replica.raft
        configurations, commit = group.log.configurations, group.core.commit_index()
        assert replica.voters == configurations.voters
        for index, voters in configurations._changes:
            named = [command for command, _, _ in group.log.between(index, index + 1)]
            assert named == [pack_voters(voters)], f"voters {voters} of entry {index}, which holds {named}"
            if index <= commit:
                known = self.committed.setdefault(index, voters)
                assert known == voters, f"the change of entry {index} made {known} and {voters} the voters"
        latest = max(self.committed, default=0)
        if group.log.base_index > latest:
            # Committed, and gone into a snapshot, before any look at it.
            self.committed[group.log.base_index] = configurations.at(group.log.base_index)
        elif commit >= latest > 0:
            assert configurations.at(commit) == self.committed[latest], "voters of a committed entry"
        if replica.leads():
            assert replica.node in replica.voters, "a leader without a vote"
        pending = [index for index, _ in configurations._changes if index > commit]
        if group.ready():
            assert len(pending) <= 1, f"changes {pending} at a time"

    def converge(self) -> None:
        self.away.clear()
        self.lab.set_learners(*self.lab.nodes)
        self.revive()
        super().converge()
        chain = [self.founders, *(voters for _, voters in sorted(self.committed.items()))]
        steps = [(one, other) for one, other in itertools.pairwise(chain) if one != other]
        for one, other in steps:
            assert len(set(one) ^ set(other)) == 1, f"voters {one} and {other} follow each other"
        self.changed = len(steps)
        voters = {replica.voters for replica in self.lab.nodes.values()}
        assert voters == {chain[-1]}, f"{voters} instead of {chain[-1]}"
        for wanted, outcome in self.changes:
            if outcome.ok:
                assert wanted in chain, f"voters {wanted} were acknowledged and never came"
