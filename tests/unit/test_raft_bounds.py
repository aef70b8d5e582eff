"""Replication costs what it must: counted in messages, bytes and steps, never in seconds (H13)."""

from typing import Any

import pytest

from faults.sim.raftlab import Envelope, Lab, append, batch
from faults.sim.raftreplica import GROUP, LabReplica
from raftkv import limits
from raftkv.raft import RaftConfig
from raftkv.raft.log import GroupLog
from raftkv.raft.messages import Type
from raftkv.raft.ready import Entry, Outputs

PIPELINED = RaftConfig(open_entries=10_000)


class CountingList(list[Entry]):
    """A list that counts the items which its slices copy."""

    copied = 0

    def __getitem__(self, item: Any) -> Any:
        result = super().__getitem__(item)
        if isinstance(item, slice):
            self.copied += len(result)
        return result


def _count_copies(log: GroupLog) -> CountingList:
    counting = log.entries = CountingList(log.entries)
    return counting


def _behind(lab: Lab, entries: list[tuple[int, bytes]]) -> LabReplica:
    """By hand: nodes 1 and 2 hold ``entries``, node 3 nothing; node 1 is elected without node 3 noticing."""
    for node, peer in ((1, 2), (2, 1)):
        start = 1
        for first in range(0, len(entries), 10_000):
            part = entries[first : first + 10_000]
            lab[node].receive(peer, append(1, start, 0 if start == 1 else 1, part))
            start += len(part)
    lab.isolate(3)
    lab.run(2.0)
    lab.take()
    lab.tick(1)
    lab.pump()
    assert lab[1].leads()
    return lab[1]


def test_h13a_catching_up_copies_and_sends_each_entry_once() -> None:
    """A follower 60,000 entries behind costs a leader copies and bytes in proportion, not their square."""
    lab = Lab(by_hand=True)
    entries = [(1, batch(b"v" * 200))] * 60_000
    leader = _behind(lab, entries)
    payload = sum(len(command) for _, command in entries)
    copies = _count_copies(leader.raft.log)
    mine = _count_copies(lab[3].raft.log)
    lab.bytes = 0
    lab.heal()
    lab.tick(1, after=0.2)
    lab.pump()
    assert lab[3].raft.core.applied_index() == leader.raft.core.commit_index() == 60_002
    # The leader's first guess sends nothing; each part leaves once behind the refusal.
    assert copies.copied < 1.2 * len(entries)
    assert mine.copied < 2.2 * len(entries)
    assert payload < lab.bytes < 1.2 * payload


def test_h13b_what_is_in_flight_is_bounded_in_bytes() -> None:
    """A follower that answers nothing is sent no more than the window, however much there is to send."""
    lab = Lab(by_hand=True)
    value = b"v" * 500_000
    leader = _behind(lab, [(1, batch(value))] * 60)
    lab.heal()
    lab.tick(1, after=0.2)
    lab.deliver(*lab.take(1, 3))
    lab.deliver(*lab.take(3, 1))
    sent = sum(len(envelope.packed) for envelope in lab.find(1, 3))
    assert sent <= limits.MAX_INFLIGHT_APPEND_BYTES + limits.MAX_ENTRY_BYTES
    assert max(len(envelope.packed) for envelope in lab.find(1, 3)) < limits.MAX_FRAME_BYTES
    silent = lab.take(1, 3)
    for _ in range(20):
        lab.tick(1, after=0.1)
        lab.pump(1, 2)
        lab.pump(2, 1)
    assert sum(len(envelope.packed) for envelope in lab.find(1, 3)) < 2000, "heartbeats only"
    lab.deliver(*silent)
    lab.pump()
    assert lab[3].raft.log.last_index == leader.raft.log.last_index


def test_h13b_what_is_in_flight_is_bounded_in_messages() -> None:
    """Small entries to a slow follower: the window in messages, then heartbeats; the rest leaves in few messages."""
    lab = Lab(by_hand=True, config=PIPELINED)
    leader = lab.elect(1)
    lab.pump()
    for number in range(500):
        leader.put(b"%d" % number)
        lab.run(0.0)
        lab.pump(1, 2)
        lab.pump(2, 1)
    waiting = lab.take(1, 3)
    assert len(waiting) == limits.MAX_INFLIGHT_APPENDS
    assert len(leader.lead.followers[3].sent) == limits.MAX_INFLIGHT_APPENDS
    lab.deliver(*waiting)
    assert lab.pump() < limits.MAX_INFLIGHT_APPENDS + 60
    assert lab[3].raft.log.last_index == leader.raft.log.last_index


def test_h13b_one_slow_follower_holds_up_nobody() -> None:
    """Commits go on with the others, and nothing is kept for the slow one but the log itself."""
    lab = Lab(fate=lambda envelope: () if 3 in (envelope.src, envelope.dst) else (0.001,), config=PIPELINED)
    lab.run_until(lambda: lab.leader() is not None and lab.leader() is not lab[3])
    leader = lab.leader()
    assert leader is not None
    for number in range(300):
        assert lab.commit(leader, b"%d" % number).ok
    assert len(leader.lead.followers[3].sent) < limits.MAX_INFLIGHT_APPENDS + 60


def test_window_opens_again_after_lost_messages() -> None:
    """A window full of messages that were lost does not stay closed: a refused heartbeat empties it."""
    lab = Lab(by_hand=True, config=PIPELINED)
    leader = lab.elect(1)
    lab.pump()
    for number in range(100):
        leader.put(b"%d" % number)
        lab.run(0.0)
        lab.take(1, 3)
        lab.pump()
    lab.tick(1, after=0.2)
    lab.pump()
    assert lab[3].raft.log.last_index == leader.raft.log.last_index


def test_reconnection_sends_again_what_was_in_flight() -> None:
    """After a broken link the leader resends at once from the last match, without waiting for a refusal."""
    lab = Lab(by_hand=True, config=PIPELINED)
    leader = lab.elect(1)
    lab.pump()
    outcomes = []
    for number in range(5):
        outcomes.append(leader.put(b"%d" % number))
        lab.run(0.0)
    lab.take()
    lab.reconnect(1, 2)
    leader.wake()
    lab.run(0.0)
    assert [len(envelope.message[8]) for envelope in lab.find(1, 2, Type.APPEND)] == [5]
    lab.pump(1, 2)
    lab.pump(2, 1)
    assert all(outcome.ok for outcome in outcomes)


def test_h13d_commit_costs_the_same_with_many_uncommitted_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting commits looks at the followers' positions, not at the entries between."""
    lab = Lab(by_hand=True)
    leader = _behind(lab, [(1, batch(b"a"))] * 20_000)
    calls = 0
    plain = GroupLog.term_at

    def counted(log: GroupLog, index: int) -> int | None:
        nonlocal calls
        calls += 1
        return plain(log, index)

    monkeypatch.setattr(GroupLog, "term_at", counted)
    leader.raft.core._SyncObj__raftCommitIndex = 1
    leader.lead.advance_commit()
    assert leader.raft.core.commit_index() == 20_002
    assert calls <= 2


def test_idle_group_sends_heartbeats_only() -> None:
    """Without work a leader sends each follower one small message per heartbeat, and gets one back."""
    lab = Lab()
    leader = lab.wait_for_leader()
    assert lab.commit(leader, b"a").ok
    lab.run(0.5)
    messages, size = lab.messages, lab.bytes
    lab.run(10.0)
    assert 4 * 75 <= lab.messages - messages <= 4 * 101
    assert (lab.bytes - size) / (lab.messages - messages) < 50


def test_steady_writes_cost_one_append_and_one_answer_each() -> None:
    """An entry costs a follower one message and one answer: no resends, no empty appends in between."""
    kinds: list[Type] = []

    def note(envelope: Envelope) -> tuple[float]:
        kinds.append(envelope.type)
        return (0.001,)

    lab = Lab(fate=note)
    leader = lab.wait_for_leader()
    kinds.clear()
    for number in range(200):
        assert lab.commit(leader, b"%d" % number).ok
    assert kinds.count(Type.APPEND) <= 2 * 201
    assert kinds.count(Type.ACK) <= 2 * 201


def test_log_slices_respect_bytes_and_end() -> None:
    """At least one entry if there is one, else as many as fit; never beyond the end or the stop."""
    entries = [(b"x" * 10, index, 1) for index in range(2, 12)]
    log = GroupLog(GROUP, Outputs(), (1, 0), (1,), entries, 1, 0)
    indexes = [[entry[1] for entry in log.between(*bounds)] for bounds in ((2, 12, 25), (2, 12, 1), (10, 99, 1000))]
    assert indexes == [[2, 3], [2], [10, 11]]
    assert log.between(12, 20, 100) == log.between(5, 5, 100) == []
    assert [entry[1] for entry in log.between(3, 6)] == [3, 4, 5]
    assert log.bytes == 100
    log.compact(5)
    assert (log.base_index, log.bytes, log.term_at(5), log.term_at(4)) == (5, 60, 1, None)


def test_nothing_is_sent_over_a_link_that_is_down() -> None:
    """While a link is down (number 0) no append is made for it; when it is up again, replication goes on by itself."""
    lab = Lab(by_hand=True, config=PIPELINED)
    leader = lab.elect(1)
    lab.pump()
    lab.link_numbers[1, 3] = 0
    for number in range(10):
        leader.put(b"%d" % number)
        lab.run(0.0)
        lab.pump()
    lab.tick(1, after=0.2)
    assert lab.find(1, 3) == []
    lab.link_numbers[1, 3] = 2
    lab.tick(1, after=0.2)
    lab.pump()
    assert lab[3].raft.log.last_index == leader.raft.log.last_index
