"""Linearizable reads: by lease and by a round of appends, never from a leader that was replaced."""

from typing import Any

import pytest

from faults.sim.raftlab import Lab, append, batch
from faults.sim.raftreplica import LabReplica
from raftkv.errors import Code
from raftkv.raft import RaftConfig
from raftkv.raft.leadership import Leadership
from raftkv.raft.messages import Type

MUTANT = pytest.mark.parametrize("mutant", [False, True], ids=["fixed", "mutant"])


def _settled(**options: Any) -> tuple[Lab, LabReplica]:
    """A running group in which ``b"old"`` was written."""
    lab = Lab(**options)
    leader = lab.wait_for_leader()
    assert lab.commit(leader, b"old").ok
    lab.run(0.3)
    return lab, leader


def test_lease_read_is_served_at_once() -> None:
    """A leader in contact with a majority answers within the same turn, without a message."""
    lab, leader = _settled()
    lab.run_until(leader.lease_holds, step=0.001)
    before = leader.lead.seq
    read = leader.read(quorum=False)
    leader.step()
    assert (read.code, read.seen) == (Code.OK, b"old")
    assert leader.lead.seq == before


def test_quorum_read_waits_for_a_round_after_it() -> None:
    """A quorum read is served after a majority has acknowledged an append that was sent after the read arrived."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    leader.put(b"a")
    lab.run(0.0)
    early = lab.take(1)
    read = leader.read(quorum=True)
    lab.run(0.0)
    later = lab.take(1)
    lab.deliver(*early)
    lab.pump()
    assert read.answers == [], "appends from before the read prove nothing"
    lab.deliver(*(envelope for envelope in later if envelope.dst == 2))
    lab.pump(2, 1)
    assert (read.code, read.seen) == (Code.OK, b"a")


def test_reads_of_a_turn_share_a_round() -> None:
    """A hundred waiting reads cost one round, and those that come while it is under way one more."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    first = [leader.read(quorum=True) for _ in range(100)]
    lab.run(0.0)
    assert len(lab.find(1)) == 1
    second = [leader.read(quorum=True) for _ in range(100)]
    lab.run(0.0)
    assert len(lab.find(1)) == 1
    lab.pump()
    assert all(read.ok for read in first + second)
    assert lab.messages < 60


def test_read_waits_for_the_entry_that_opens_the_term() -> None:
    """A new leader does not know what is committed before an entry of its own term is."""
    lab = Lab(by_hand=True)
    first = lab.elect(1)
    lab.pump()
    outcome = first.put(b"a")
    lab.run(0.0)
    lab.pump(1, 2)
    lab.take(1, 3)
    lab.pump(2, 1)
    assert outcome.ok
    first.kill()
    lab.take()
    lab.run(2.0)
    lab.tick(2)
    for kind in (Type.PREVOTE, Type.PREVOTE_REPLY, Type.VOTE, Type.VOTE_REPLY):
        lab.pump(kind=kind)
    leader = lab[2]
    assert leader.leads()
    assert leader.commands() == [], "it holds the write and does not know that it is committed"
    reads = [leader.read(quorum=quorum) for quorum in (False, True)]
    lab.run(0.0)
    assert [read.answers for read in reads] == [[], []]
    lab.pump()
    assert [read.seen for read in reads] == [b"a", b"a"]


def test_followers_refuse_reads_with_a_hint() -> None:
    """A replica that does not lead refuses at once."""
    lab, leader = _settled()
    for replica in lab.nodes.values():
        if replica is not leader:
            assert replica.read(quorum=False).code == Code.NOT_LEADER
    for replica in lab.nodes.values():
        if replica is not leader:
            replica.kill()
    lab.run(2.0)
    assert leader.read(quorum=False).code == Code.UNAVAILABLE


def test_waiting_reads_are_refused_on_step_down() -> None:
    """A read that waits for a majority is answered when the leader gives up."""
    lab, leader = _settled()
    lab.isolate(leader.node)
    lab.run(0.46)
    reads = [leader.read(quorum=False), leader.read(quorum=True)]
    lab.run(1.0)
    assert [read.code for read in reads] == [Code.NOT_LEADER] * 2


def _deposed_and_read(seed: int, rates: tuple[float, float]) -> list[bytes]:
    """Cut the leader off, have a successor commit ``b"new"``, and read from both all the while.

    Returns what the old leader served after the new value was acknowledged.
    """
    lab, leader = _settled(seed=seed)
    leader.set_rate(rates[0])
    for replica in lab.nodes.values():
        if replica is not leader:
            replica.set_rate(rates[1])
    lab.run(0.3)
    lab.isolate(leader.node)
    stale: list[bytes] = []
    written = None
    for _ in range(800):
        lab.run(0.002)
        successor = lab.leader()
        if written is None and successor not in (None, leader) and successor is not None:
            written = successor.put(b"new")
        if leader.leads():
            acknowledged = written is not None and written.ok
            read = leader.read(quorum=False)
            lab.run(0.0)
            if acknowledged and read.ok:
                stale.append(read.seen or b"")
    assert written is not None
    assert written.ok
    return stale


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.95, 1.05)])
def test_deposed_leader_serves_no_stale_lease_read(seed: int, rates: tuple[float, float]) -> None:
    """The lease ends before a successor can commit, also with clocks as far apart as is allowed for."""
    assert _deposed_and_read(seed, rates) == []


@pytest.mark.parametrize("seed", range(5))
def test_drift_beyond_the_allowance_would_break_the_lease(seed: int) -> None:
    """The allowance is what protects: a leader's clock that runs much too slow serves an old value."""
    assert b"old" in _deposed_and_read(seed, (0.2, 1.0))


def test_lease_counts_from_sending_not_from_the_answer() -> None:
    """An acknowledgement that comes late extends the lease only from the moment at which its append was sent."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    lab.tick(1, after=0.3)
    lab.run(0.3)
    lab.deliver(*lab.take(1))
    lab.deliver(*lab.take(kind=Type.ACK))
    assert leader.lease_holds()
    lab.run(0.16)
    assert not leader.lease_holds()


def test_lease_needs_a_majority() -> None:
    """One follower of four in contact is not enough."""
    lab = Lab(5, by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    lab.run(0.44)
    lab.tick(1)
    lab.pump(1, 2)
    lab.pump(2, 1)
    lab.run(0.1)
    assert not leader.lease_holds()


@MUTANT
def test_transfer_gives_up_the_lease(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A successor by transfer is elected within the followers' calm, so the old leader serves no more lease reads."""
    if mutant:
        monkeypatch.setattr(
            Leadership, "_lease_off", property(lambda lead: False, lambda lead, off: None), raising=False
        )
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    lab.tick(1, after=0.1)
    lab.pump()
    assert leader.transfer(2)
    lab.run(0.0)
    lab.deliver(*lab.take(1, 2, Type.TIMEOUT_NOW))
    lab.take(2, 1)
    lab.pump(2, 3)
    lab.pump(3, 2)
    assert lab[2].leads()
    outcome = lab[2].put(b"new")
    for _ in range(3):
        lab.pump(2, 3)
        lab.pump(3, 2)
    assert outcome.ok
    read = leader.read(quorum=False)
    lab.run(0.0)
    assert leader.leads()
    assert read.ok is mutant, "served without the new value" if mutant else "must wait"


def test_lease_stays_off_after_a_failed_transfer() -> None:
    """The target may campaign later, so the leader goes on with quorum reads for the rest of its term."""
    lab, leader = _settled()
    target = next(node for node in lab.nodes if node != leader.node)
    lab.run(0.1)
    leader.transfer(target)
    lab.cut(leader.node, target)
    lab.run(0.0)
    lab.run(1.5)
    if leader.leads():
        assert not leader.lease_holds()
        read = leader.read(quorum=False)
        lab.run(0.0)
        assert read.answers == []
        lab.run(0.02)
        assert read.ok


def test_read_sees_what_was_acknowledged_before_it() -> None:
    """A read that follows an acknowledged write sees it, in both modes, at every leader in turn."""
    lab, leader = _settled()
    for number in range(6):
        value = b"%d" % number
        assert lab.commit(leader, value).ok
        for quorum in (False, True):
            read = leader.read(quorum=quorum)
            lab.run(0.05)
            assert read.seen == value
        leader.transfer(next(node for node in lab.nodes if node != leader.node))
        lab.run(0.1)
        leader = lab.wait_for_leader()


def test_stale_reads_wait_until_a_leader_of_its_own_term_was_caught_up_with() -> None:
    """A restarted replica has caught up only once it holds what a leader knows to be committed in its own term.

    A new leader's commit index may be that of an old snapshot: it proves nothing (found by reading).
    """
    lab = Lab(by_hand=True)
    node = lab[2]
    node.receive(1, append(1, 1, 0, [(1, batch(b"a")), (1, batch(b"b"))], commit=1))
    lab.run(0.0)
    assert not node.raft.caught_up
    node.receive(3, append(2, 3, 1, [(2, b"\x01")], commit=1, seq=2))
    lab.run(0.0)
    assert not node.raft.caught_up
    node.receive(3, append(2, 4, 2, commit=4, seq=3))
    lab.run(0.0)
    assert node.raft.caught_up
    assert node.commands() == [b"a", b"b"]


def test_slow_reader_of_rounds_gets_heartbeats_only() -> None:
    """Rounds for reads do not pile up before a follower that answers nothing (found by reading)."""
    lab = Lab(config=RaftConfig(open_entries=8))
    leader = lab.wait_for_leader()
    silent = next(node for node in lab.nodes if node != leader.node)
    lab.cut(silent, leader.node)
    for _ in range(1000):
        leader.read(quorum=True)
        lab.run(0.002)
        if not leader.leads():
            break
    assert leader.leads()
    assert len(leader.lead.followers[silent].sent) < 64 + 2.0 / lab.config.heartbeat + 2
