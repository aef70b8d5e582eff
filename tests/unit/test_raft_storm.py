"""Random faults over a group of replicas on virtual time: what Raft promises must hold in every run.

A failure names its seed; ``pytest tests/unit/test_raft_storm.py -k 'seed17'`` repeats it exactly.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from faults.sim.raftlab import Envelope, Lab, Outcome, Replica
from faults.sim.raftparts import LabError
from raftkv.errors import Code, RaftKVError
from raftkv.raft import RaftConfig, RaftGroup

_SECONDS = 8.0
_CLIENTS = 4
_SURELY_NOT = (Code.NOT_LEADER, Code.UNAVAILABLE)


@dataclass(slots=True)
class Call:
    """One operation of a client. ``end`` is None while nothing is known of its outcome."""

    outcome: Outcome
    write: bool
    node: int
    start: float
    end: float | None = None


class Storm:
    """One run. Safety is checked all along and at the end, liveness after the faults are over."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(f"storm {seed}")
        nodes = rng.choice((3, 3, 3, 5))
        self.lab = Lab(
            nodes,
            seed=seed,
            config=RaftConfig(snapshot_bytes=rng.choice((1500, 4000, 10**9)), keep_entries=rng.choice((0, 10, 60))),
            sync_delay=rng.choice((0.0005, 0.003, 0.02)),
            file_delay=rng.choice((0.0, 0.005)),
            fifo=rng.random() < 0.7,
            fate=self.fate,
        )
        self.loss = rng.choice((0.0, 0.01, 0.05))
        self.repeats = rng.choice((0.0, 0.02))
        for replica in self.lab.nodes.values():
            replica.clock.set_rate(rng.uniform(0.95, 1.05))
        self.calls: list[Call] = []
        self.open: list[Call | None] = [None] * _CLIENTS
        self.history: list[bytes] = []
        self.checked: dict[tuple[int, int], int] = {}
        self.written = 0

    def fate(self, envelope: Envelope) -> Sequence[float]:
        rng = self.lab.rng
        if not hasattr(self, "loss"):
            return (0.001,)
        delays = [] if rng.random() < self.loss else [rng.uniform(0.001, 0.003 if self.lab.fifo else 0.03)]
        if rng.random() < self.repeats:
            delays.append(rng.uniform(0.001, 2.0))
        return delays

    def run(self) -> None:
        end = self.lab.world.now + _SECONDS
        next_fault = 1.0
        while self.lab.world.now < end:
            self.lab.run(0.005)
            self.clients()
            self.check()
            if self.lab.world.now > next_fault:
                next_fault = self.lab.world.now + self.rng.expovariate(1 / 0.35)
                self.fault()
        self.heal()
        self.converge()

    # -- clients

    def clients(self) -> None:
        for client, call in enumerate(self.open):
            if call is not None:
                if call.outcome.answers:
                    call.end = self.lab.world.now
                elif self.lab.world.now < call.start + 1.0 and self.lab[call.node].alive:
                    continue
                self.open[client] = None
            if self.rng.random() < 0.5:
                continue
            leading = [replica for replica in self.lab.nodes.values() if replica.alive and replica.raft.leads()]
            if leading:
                self.open[client] = self.call(self.rng.choice(leading))

    def call(self, replica: Replica) -> Call:
        start = self.lab.world.now
        write = self.rng.random() < 0.5
        if write:
            self.written += 1
            outcome = replica.put(b"%d" % self.written + b"." * self.rng.randrange(100))
        else:
            outcome = replica.read(quorum=self.rng.random() < 0.4)
        call = Call(outcome, write, replica.node, start)
        self.calls.append(call)
        return call

    # -- faults

    def fault(self) -> None:
        lab, rng = self.lab, self.rng
        node = rng.randint(1, len(lab.nodes))
        other = rng.choice([peer for peer in lab.nodes if peer != node])
        kind = rng.choice(
            ("kill", "kill", "revive", "revive", "cut", "isolate", "heal", "heal", "break", "transfer", "all")
        )
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
                lab[node].raft.transfer(other)
        elif rng.random() < 0.3:
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
            assert not replica.fatal, replica.fatal
            assert replica.raft.status().amnesia == (), "no disk was ever lost"
            commands = replica.machine.applied
            key = (replica.node, replica.starts)
            for position in range(self.checked.get(key, 0), len(commands)):
                value = commands[position][2]
                if position == len(self.history):
                    self.history.append(value)
                assert self.history[position] == value, f"node {replica.node} applied another command at {position}"
            self.checked[key] = len(commands)
            if replica.raft.leads():
                term = replica.raft.core.term()
                assert self.lab.leaders.setdefault(term, replica.node) == replica.node, f"two leaders in term {term}"

    def converge(self) -> None:
        self.lab.run(2.0)  # until the last repeated message and the last transfer of the leadership are over
        leader = self.lab.wait_for_leader(5.0)
        assert self.lab.commit(leader, b"last").ok
        self.lab.run_until(lambda: all(r.commands() == leader.commands() for r in self.lab.nodes.values()), 10.0)
        self.check()
        assert len({replica.machine.digest() for replica in self.lab.nodes.values()}) == 1
        for call in self.calls:
            if call.outcome.answers and call.end is None:
                call.end = self.lab.world.now
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


@pytest.mark.parametrize("mend", ["append guard", "durability barrier"])
def test_storm_notices_a_mend_that_is_off(monkeypatch: pytest.MonkeyPatch, mend: str) -> None:
    """The storm is worth something only if it finds planted faults: within a few seeds it does."""
    if mend == "durability barrier":
        monkeypatch.setattr(Replica, "send_when_durable", Replica.send)
    else:

        def library_append(
            group: RaftGroup, peer: int, term: int, seq: int, epoch: int, at: int, at_term: int, commit: int, raw: Any
        ) -> None:
            if term >= group.core.term():
                entries = [(command, at + 1 + number, of) for number, (of, command) in enumerate(raw)]
                reply = group.core.receive_append(peer, term, at, at_term, entries, commit)
                group._acknowledge(peer, seq, epoch, matches=reply["success"], index=reply["next_node_idx"])

        monkeypatch.setattr(RaftGroup, "_on_append", library_append)
    with pytest.raises((AssertionError, LabError, RaftKVError)):  # noqa: PT012 - whichever seed it is
        for seed in range(12):
            Storm(seed).run()


@pytest.mark.parametrize("seed", range(30), ids=lambda seed: f"seed{seed}")
def test_no_fault_breaks_a_promise(seed: int) -> None:
    """Kills, power loss, cuts in one direction, loss, repeats, reordering, drifting clocks: acknowledged writes stay,
    reads are linearizable, replicas apply the same, and the group converges once the faults are over."""
    storm = Storm(seed)
    storm.run()
    assert storm.written > 10
