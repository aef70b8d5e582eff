"""How many entries a leader has open: one where links are short, and so many that none waits where they are far."""

from collections import deque

import pytest

from faults.sim.raftlab import Lab
from faults.sim.raftreplica import LabAnswer, LabReplica
from raftkv import limits
from raftkv.errors import Code
from raftkv.raft.replication import Progress


def _settled(delay: float, sync_delay: float = 0.0) -> tuple[Lab, LabReplica]:
    """A group whose messages take ``delay`` seconds, some time after an election."""
    lab = Lab(fate=lambda _: (delay,), sync_delay=sync_delay)
    leader = lab.wait_for_leader()
    lab.run(2.5)
    assert leader.leads()
    return lab, leader


def _open_at_most(lab: Lab, leader: LabReplica, seconds: float) -> int:
    """How many entries are open at a time while a write comes every millisecond. All of them succeed, in order."""
    outcomes, most = [], 0
    before = leader.commands()
    for number in range(int(seconds * 1000)):
        outcomes.append(leader.put(b"%d" % number))
        lab.run(0.001)
        most = max(most, leader.raft.proposals.open_entries)
    lab.run(1.0)
    assert all(outcome.ok for outcome in outcomes)
    assert leader.commands() == [*before, *(b"%d" % number for number in range(len(outcomes)))]
    return most


@pytest.mark.parametrize("delay", [0.0001, 0.0005, 0.002])
def test_on_a_short_link_one_entry_is_open(delay: float) -> None:
    """A second one would gain nothing and cost as much as the first: what comes meanwhile gathers."""
    lab, leader = _settled(delay)
    assert _open_at_most(lab, leader, 0.3) <= 1


def test_a_slow_disk_opens_no_further_entries() -> None:
    """While disks are slow, answers are late, but those that need no disk tell how short the link is."""
    lab, leader = _settled(0.0005, sync_delay=0.02)
    assert _open_at_most(lab, leader, 1.5) == 1


@pytest.mark.parametrize("delay", [0.01, 0.05, 0.1])
def test_on_a_far_link_a_write_takes_a_round_trip(delay: float) -> None:
    """Writes come all the time, and each takes little more than there and back, instead of twice that."""
    lab, leader = _settled(delay)
    waiting = deque[tuple[float, LabAnswer]]()
    for number in range(400):
        waiting.append((lab.now, leader.put(b"%d" % number)))
        lab.run(0.001)
        while waiting and waiting[0][1].ok:
            assert lab.now - waiting.popleft()[0] < 1.2 * 2 * delay + 0.002
    assert len(waiting) <= 2400 * delay + 3, "the others are answered already"


def test_the_number_follows_the_majority_and_the_link() -> None:
    """A far follower counts only if a majority needs it: with one that is near, commits do not wait for it."""
    lab = Lab(fate=lambda envelope: (0.05 if 3 in (envelope.src, envelope.dst) else 0.0005,))
    lab.run_until(lambda: lab.leader() is not None and lab.leader() is not lab[3])
    leader = lab.leader()
    assert leader is not None
    lab.run(2.5)
    assert leader.lead.worthwhile_entries() == 1
    near = 3 - leader.node
    lab.cut(near, leader.node)
    lab.run(1.0)
    assert leader.leads()
    assert leader.lead.worthwhile_entries() in range(90, 120)
    lab.heal()
    lab.run(1.0)
    assert leader.lead.worthwhile_entries() == 1


def test_open_entries_are_bounded_in_number_and_bytes() -> None:
    """On the farthest link too: what comes beyond gathers."""
    lab, leader = _settled(0.15)
    lab.run(1.0)
    assert leader.lead.worthwhile_entries() == limits.MAX_OPEN_ENTRIES
    for _ in range(60):
        leader.put(b"v" * 100_000)
        lab.run(0.0005)
    proposals = leader.raft.proposals
    assert proposals.open_bytes < limits.MAX_OPEN_BYTES + limits.MAX_ENTRY_BYTES
    assert proposals.waiting
    assert proposals.open_entries < 60
    lab.run(2.0)
    assert (proposals.open_bytes, proposals.open_entries, proposals.waiting) == (0, 0, False)


def test_those_of_a_leader_that_is_deposed_are_unknown_or_refused() -> None:
    """Every open entry's writers learn that the outcome is unknown, none hears twice, and none takes effect twice."""
    lab, leader = _settled(0.05)
    outcomes = [leader.put(b"before")]
    lab.run(0.06)
    for number in range(100):
        outcomes.append(leader.put(b"%d" % number))
        lab.run(0.001)
        if number == 50:
            lab.isolate(leader.node)
    lab.run(1.0)
    assert not leader.leads()
    assert {outcome.code for outcome in outcomes} <= {Code.OK, Code.UNKNOWN, Code.UNAVAILABLE}
    assert sum(outcome.code == Code.UNKNOWN for outcome in outcomes) > 50
    assert leader.raft.proposals.open_bytes == 0
    lab.run_until(lambda: lab.leader() not in (None, leader))
    successor = lab.leader()
    assert successor is not None
    lab.heal()
    assert lab.commit(successor, b"after").ok
    lab.run(1.0)
    commands = successor.commands()
    assert len(set(commands)) == len(commands)
    acknowledged = [outcome.value for outcome in outcomes if outcome.code == Code.OK]
    assert commands[: len(acknowledged)] == acknowledged
    refused = {outcome.value for outcome in outcomes if outcome.code == Code.UNAVAILABLE}
    assert not refused & set(commands)
    assert leader.commands() == commands, "it has cut off what nobody else had"


def test_heartbeats_in_flight_hold_up_no_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a link longer than a heartbeat's interval one is always in flight, whatever the window (seed 18)."""
    monkeypatch.setattr(limits, "MAX_INFLIGHT_APPENDS", 1)
    lab, leader = _settled(0.1)
    assert lab.commit(leader, b"one").ok
    lab.run(1.0)
    assert all(replica.commands() == [b"one"] for replica in lab.nodes.values())


def test_round_trip_is_the_shortest_of_late() -> None:
    """It falls at once, and rises when for a while no answer was as quick."""
    progress = Progress(1, contact=0.0)
    assert progress.round_trip == float("inf")
    now = 0.0
    for seq, took in enumerate([0.5, 0.3, 0.4, 0.2], 1):
        progress.on_sent(seq, now, 0)
        now += took
        progress.on_ack(seq, now)
    assert progress.round_trip == pytest.approx(0.2)
    for seq in range(5, 12):
        progress.on_sent(seq, now, 0)
        now += 0.4
        progress.on_heard(seq, now)
    assert progress.round_trip == pytest.approx(0.4)
