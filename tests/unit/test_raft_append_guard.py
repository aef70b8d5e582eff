"""Appends: only a true conflict removes an entry, only what was verified is committed, only fresh answers count."""

from collections.abc import Sequence
from typing import Any

import pytest

from faults.sim.raftlab import Lab, append, batch
from faults.sim.raftreplica import GROUP, LabReplica
from raftkv.raft import BrokenInvariant, RaftConfig
from raftkv.raft.consensus import Consensus
from raftkv.raft.core import Core
from raftkv.raft.leadership import Leadership
from raftkv.raft.messages import Type
from raftkv.raft.replication import Progress

PIPELINED = RaftConfig(open_entries=64)
MUTANT = pytest.mark.parametrize("mutant", [False, True], ids=["fixed", "mutant"])


def _library_append(
    group: Consensus,
    peer: int,
    term: int,
    seq: int,
    link_number: int,
    previous: int,
    previous_term: int,
    commit: int,
    raw: Sequence[tuple[int, bytes]],
) -> None:
    """What the library does by itself with an append: no guard."""
    entries = [(command, previous + 1 + at, item_term) for at, (item_term, command) in enumerate(raw)]
    reply = group.core.receive_append(peer, term, previous, previous_term, entries, commit)
    group._acknowledge(peer, seq, link_number, matches=reply["success"], index=reply["next_node_idx"])


def _puts(lab: Lab, leader: LabReplica, *values: bytes) -> list[Any]:
    """Propose each value as an entry of its own."""
    outcomes = []
    for value in values:
        outcomes.append(leader.put(value))
        lab.run(0.0)
    return outcomes


def _acks(lab: Lab, src: int) -> list[list[Any]]:
    return [envelope.message[2:] for envelope in lab.take(src, None, Type.ACK)]


@MUTANT
def test_h1a_late_append_removes_no_acknowledged_entry(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A repeated old append leaves the acknowledged entries behind it in place: no acknowledged write is lost."""
    if mutant:
        monkeypatch.setattr(Consensus, "_on_append", _library_append)
    lab = Lab(by_hand=True, config=PIPELINED)
    leader = lab.elect(1)
    outcomes = _puts(lab, leader, b"x1", b"x2", b"x3", b"x4")
    old = lab.find(1, 2, Type.APPEND)[0]
    lab.take(1, 3)
    lab.pump(1, 2)
    lab.pump(2, 1)
    assert all(outcome.ok for outcome in outcomes)
    lab.take()
    lab.deliver(old)
    leader.kill()
    lab.take()
    successor = lab.elect(2)
    assert (successor.commands() == [b"x1", b"x2", b"x3", b"x4"]) is not mutant


def test_h1c_pipelined_writes_never_shrink_a_followers_log() -> None:
    """Without any fault a follower never holds less than what the leader has counted as acknowledged."""
    lab = Lab(config=PIPELINED, fate=lambda _: (0.005,))
    leader = lab.wait_for_leader()
    down, follower = [replica for replica in lab.nodes.values() if replica is not leader]
    down.kill()
    outcomes = []
    for number in range(120):
        outcomes.append(leader.put(b"%d" % number + b"x" * 30_000))
        lab.run(0.001)
        assert follower.raft.log.last_index >= leader.raft.core.match_index(follower.node)
    lab.run(0.2)
    assert all(outcome.ok for outcome in outcomes)


@MUTANT
def test_h1_only_what_an_append_vouches_for_is_committed(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A tail left by a deposed leader is not committed by a heartbeat that does not reach it."""
    if mutant:
        plain = Core.receive_append

        def unclamped(core: Core, peer: int, term: int, at: int, at_term: int, entries: Any, commit: int) -> Any:
            return plain(core, peer, term, at, at_term, entries, commit and 10**6)

        monkeypatch.setattr(Core, "receive_append", unclamped)
    lab = Lab(by_hand=True)
    node = lab[3]
    node.receive(1, append(1, 1, 0, [(1, batch(b"a")), (1, batch(b"ghost")), (1, batch(b"ghost"))]))
    node.receive(2, append(2, 2, 1, commit=4, seq=2))
    lab.run(0.0)
    assert node.raft.core.commit_index() == (4 if mutant else 2)
    assert node.commands() == ([b"a", b"ghost", b"ghost"] if mutant else [b"a"])


@MUTANT
def test_h1_acknowledgement_claims_only_what_was_verified(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A heartbeat is answered with the index up to which it matched, not with the end of a longer log."""
    if mutant:
        plain = Consensus._acknowledge

        def boastful(group: Consensus, peer: int, seq: int, link_number: int, *, matches: bool, index: int) -> None:
            plain(group, peer, seq, link_number, matches=matches, index=group.log.last_index + 1 if matches else index)

        monkeypatch.setattr(Consensus, "_acknowledge", boastful)
    lab = Lab(by_hand=True)
    lab[3].receive(1, append(1, 1, 0, [(1, batch(b"a")), (1, batch(b"ghost"))]))
    lab.run(0.0)
    lab.take()
    lab[3].receive(2, append(2, 2, 1))
    lab.run(0.0)
    [(term, _, _, matches, index, last, _)] = _acks(lab, 3)
    assert (term, matches, last) == (2, True, 3)
    assert index == (4 if mutant else 3)


def test_entries_already_held_are_not_written_again() -> None:
    """A repeated append changes neither the log nor the WAL, and is acknowledged all the same."""
    lab = Lab(by_hand=True)
    node = lab[2]
    message = append(1, 1, 0, [(1, batch(b"a")), (1, batch(b"b"))])
    node.receive(1, message)
    lab.run(0.0)
    appended = node.recorded
    node.receive(1, message)
    lab.run(0.0)
    assert node.recorded == appended
    assert [ack[4] for ack in _acks(lab, 2)] == [4, 4]


def test_true_conflict_is_replaced() -> None:
    """Entries that contradict a later leader go, in memory and in the WAL, and the new ones take their places."""
    lab = Lab(by_hand=True)
    node = lab[2]
    node.receive(1, append(1, 1, 0, [(1, batch(b"a")), (1, batch(b"ghost")), (1, batch(b"ghost"))]))
    node.receive(3, append(2, 2, 1, [(2, batch(b"b"))], commit=3))
    lab.run(0.0)
    assert node.commands() == [b"a", b"b"]
    node.kill()
    node.start()
    assert [node.raft.log.term_at(index) for index in range(1, 5)] == [0, 1, 2, None]


def test_committed_entry_is_never_removed() -> None:
    """A conflict below the commit index stops the node: somebody broke a promise."""
    lab = Lab(by_hand=True)
    node = lab[2]
    node.receive(1, append(1, 1, 0, [(1, batch(b"a")), (1, batch(b"b"))], commit=3))
    with pytest.raises(BrokenInvariant, match="committed"):
        node.raft.core.receive_append(3, 2, 1, 0, [(batch(b"c"), 2, 2)], 0)


def test_append_below_the_commit_index_is_cut_to_it() -> None:
    """The committed prefix matches without looking, also where the log no longer holds it."""
    lab = Lab(by_hand=True)
    node = lab[2]
    entries = [(1, batch(b"%d" % number)) for number in range(6)]
    node.receive(1, append(1, 1, 0, entries[:4], commit=5))
    lab.run(0.0)
    node.raft.log.compact(4)
    lab.take()
    node.receive(1, append(1, 1, 0, entries, commit=7, seq=2))
    lab.run(0.0)
    assert node.commands() == [b"%d" % number for number in range(6)]
    assert [ack[4] for ack in _acks(lab, 2)] == [8]


@MUTANT
def test_h2_acknowledgement_of_an_older_term_is_not_counted(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A node that leads again does not count what was acknowledged to its earlier term."""
    if mutant:
        plain = Leadership.on_ack

        def termless(lead: Leadership, peer: int, term: int, *rest: Any) -> None:
            plain(lead, peer, lead.term, *rest)

        monkeypatch.setattr(Leadership, "on_ack", termless)
    lab = Lab(5, by_hand=True, config=PIPELINED)
    first = lab.elect(1)
    _puts(lab, first, b"old0", b"old1", b"old2")
    lab.pump(1, 2)
    stale = lab.take(2, 1, Type.ACK)[-1]  # over a slow link
    lab.take()
    lab.isolate(1)
    second = lab.elect(3)
    lab.heal()
    lab.tick(3, after=0.2)
    lab.pump()
    assert not first.leads()
    second.kill()
    assert lab.elect(1) is first
    outcomes = _puts(lab, first, b"new0", b"new1")
    lab.pump(1, 4)
    lab.pump(4, 1)
    assert not any(outcome.answers for outcome in outcomes), "two copies of five are no majority"
    lab.deliver(stale)
    assert any(outcome.ok for outcome in outcomes) is mutant


@MUTANT
def test_h14c_next_index_stays_within_the_log(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A hint beyond the leader's log is clamped: the follower goes on getting appends that make sense."""
    if mutant:
        monkeypatch.setattr(
            Core,
            "set_next_index",
            lambda core, peer, index: core._SyncObj__raftNextIndex.__setitem__(core._peer(peer), index),
        )
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    leader.put(b"a")
    lab.run(0.0)
    sent = lab.take(1, 2)[-1].message
    leader.receive(2, [GROUP, Type.ACK, sent[2], sent[3], sent[4], False, 1000, 999, [5, 1]])
    lab.tick(1, after=0.2)
    previous_terms = [envelope.message[6] for envelope in lab.take(1, 2, Type.APPEND)]
    assert (None in previous_terms) is mutant


def test_h14c_hint_below_the_match_is_clamped() -> None:
    """What is known to match is never sent again on a strange hint."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    leader.put(b"a")
    lab.run(0.0)
    lab.pump()
    leader.raft.core.set_next_index(2, 1)
    assert leader.raft.core.next_index(2) == leader.raft.core.match_index(2) + 1


def test_acknowledgement_beyond_the_log_stops_the_node() -> None:
    """A follower that claims entries the leader never had shows a broken promise."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    leader.put(b"a")
    lab.run(0.0)
    sent = lab.take(1, 2)[-1].message
    with pytest.raises(BrokenInvariant, match="claims"):
        leader.receive(2, [GROUP, Type.ACK, sent[2], sent[3], sent[4], True, 1000, 999, [5, 1]])


def test_two_leaders_of_one_term_stop_the_node() -> None:
    """A leader that gets an append of its own term stops instead of following."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    with pytest.raises(BrokenInvariant, match="two leaders"):
        leader.receive(2, append(leader.raft.core.term(), 1, 0))
    with pytest.raises(BrokenInvariant, match="two leaders"):
        leader.receive(2, [GROUP, Type.SNAPSHOT_OFFER, leader.raft.core.term(), 50, 1, 100])


def test_h13c_backtracking_skips_a_term_at_a_time() -> None:
    """A follower with 200 contradicting entries of three terms is set right after a handful of refusals."""
    lab = Lab(by_hand=True, config=PIPELINED)
    for term, count in ((1, 80), (2, 60), (3, 60)):
        node = lab[3]
        last, last_term = node.raft.log.last_index, node.raft.log.last_term
        node.receive(1, append(term, last, last_term, [(term, batch(b"ghost")) for _ in range(count)]))
    lab[1].receive(2, append(4, 1, 0, [(4, batch(b"a")) for _ in range(210)]))
    lab[2].receive(1, append(4, 1, 0, [(4, batch(b"a")) for _ in range(210)]))
    lab.take()
    lab.run(2.0)
    lab.tick(1)
    refusals = 0
    while lab.wire:
        envelope = lab.wire.pop(0)
        refusals += envelope.type == Type.ACK and not envelope.message[5]
        lab.deliver(envelope)
    assert lab[1].leads()
    assert lab[3].commands() == lab[1].commands()
    assert 0 < refusals <= 5


@MUTANT
def test_h13e_stale_refusals_cause_no_second_resend(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """Of several refusals that one lost append has caused only the first makes the leader send anew."""
    if mutant:
        plain = Progress.forget_sent
        monkeypatch.setattr(Progress, "forget_sent", lambda self, link_number, seq: plain(self, link_number, 0))
    lab = Lab(by_hand=True, config=PIPELINED)
    leader = lab.elect(1)
    _puts(lab, leader, *(b"%d" % number for number in range(20)))
    lab.take(1, 3)
    appends = lab.take(1, 2)
    lab.deliver(*appends[1:])
    refusals = lab.take(2, 1)
    assert len(refusals) == len(appends) - 1
    lab.deliver(*refusals)
    sent = sum(len(envelope.message[8]) for envelope in lab.take(1, 2, Type.APPEND))
    assert (sent > len(appends)) is mutant
    lab.tick(1, after=0.2)


def test_refusal_over_an_older_link_is_ignored() -> None:
    """After a reconnection only refusals of appends that were sent over the new link count."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    leader.put(b"a")
    lab.run(0.0)
    lab.pump()
    leader.put(b"b")
    lab.run(0.0)
    sent = lab.take(1, 2)[-1].message
    lab.reconnect(1, 2)
    lab.tick(1, after=0.2)
    before = leader.raft.core.next_index(2)
    leader.receive(2, [GROUP, Type.ACK, sent[2], sent[3], sent[4], False, 2, 1, [5, 1]])
    assert leader.raft.core.next_index(2) == before
    assert leader.status().data_loss == ()
