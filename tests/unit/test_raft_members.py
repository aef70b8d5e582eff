"""Membership of a group: one server at a time, in effect from the moment its entry is appended (H11)."""

import contextlib
from typing import Any

import pytest

from faults.sim.raftlab import Lab, append, batch
from faults.sim.raftreplica import GROUP
from raftkv.errors import Code
from raftkv.raft import BrokenInvariant, RaftConfig, consensus
from raftkv.raft.configurations import CONFIG, pack_voters
from raftkv.raft.consensus import Consensus
from raftkv.raft.core import Core
from raftkv.raft.elections import Elections
from raftkv.raft.log import GroupLog
from raftkv.raft.membership import MAX_LAG, Membership
from raftkv.raft.messages import Type
from raftkv.storage.snapshots import SnapshotStore
from tests.group_lab import GroupLab, GroupReplica
from tests.members_lab import beat, change, led, refusal, write

MUTANT = pytest.mark.parametrize("mutant", [False, True], ids=["fixed", "mutant"])


# -- changes


def test_a_learner_becomes_a_voter_and_a_voter_leaves() -> None:
    """A change is in effect at once and answered when it is committed; every replica then knows the same voters."""
    lab, leader = led()
    outcome = leader.change(1, 2, 3, 4)
    lab.run(0.0)
    assert outcome.answers == []
    assert leader.voters == (1, 2, 3, 4)
    members = leader.members()
    assert (members.committed, members.committed_voters, members.index) == (False, (1, 2, 3), 3)
    lab.pump()
    assert outcome.ok
    beat(lab)
    for replica in lab.nodes.values():
        members = replica.members()
        assert (members.voters, members.committed_voters, members.learners) == ((1, 2, 3, 4), (1, 2, 3, 4), ())
        assert members.committed
        assert (members.peers != {}) is (replica is leader)
    gone = leader.change(1, 3, 4)
    lab.run(0.0)
    lab.pump()
    assert gone.ok
    assert leader.status().voters == (1, 3, 4)
    assert set(leader.status().match) == {1, 3, 4}


def test_a_change_that_was_made_already_is_answered_at_once() -> None:
    """Who does not know the outcome asks again, in any order of the nodes."""
    _, leader = led()
    assert leader.change(3, 2, 1, 1).ok
    assert leader.members().index == 0, "nothing was appended"


def test_followers_change_nothing() -> None:
    """Only the leader takes a change; others name it."""
    lab, _ = led()
    outcome = lab[2].change(1, 2)
    assert outcome.code == Code.NOT_LEADER
    assert outcome.answers[0].hint == 1


def test_the_larger_group_needs_the_larger_majority_at_once() -> None:
    """From its entry on, a change to four voters is committed by three of the four."""
    lab, leader = led()
    lab.take()
    outcome = leader.change(1, 2, 3, 4)
    lab.run(0.0)
    lab.pump(1, 4)
    lab.pump(4, 1)
    assert outcome.answers == []
    lab.pump(1, 2)
    lab.pump(2, 1)
    assert outcome.ok


def test_the_smaller_group_needs_the_smaller_majority_at_once() -> None:
    """From its entry on, a change from five voters to four is committed by three, whoever else is silent."""
    lab, leader = led(5, (1, 2, 3, 4, 5), ())
    outcome = leader.change(1, 2, 3, 4)
    lab.run(0.0)
    assert lab.find(1, 5) == [], "who leaves gets nothing more"
    lab.pump(1, 2)
    lab.pump(2, 1)
    assert outcome.answers == []
    lab.pump(1, 3)
    lab.pump(3, 1)
    assert outcome.ok


def test_one_voter_becomes_three_and_one_again() -> None:
    """A group may begin with one voter, grow and shrink to another one."""
    lab, leader = led(3, (1,), (2, 3))
    change(lab, leader, 1, 2)
    change(lab, leader, 1, 2, 3)
    write(lab, leader, b"a")
    assert leader.transfer(3)
    lab.run(0.0)
    lab.pump()
    leader = lab[3]
    assert leader.leads()
    beat(lab, 3)
    change(lab, leader, 2, 3)
    change(lab, leader, 3)
    lab[1].kill()
    lab[2].kill()
    write(lab, leader, b"b")
    assert leader.commands() == [b"a", b"b"]


@pytest.mark.parametrize(
    ("voters", "reason"),
    [
        ((1, 2), "is not committed yet"),
        ((), "cannot remove itself"),
        ((2, 3, 4), "hand the leadership over first"),
    ],
)
def test_a_refusal_says_why(voters: tuple[int, ...], reason: str) -> None:
    _, leader = led()
    if "committed" in reason:
        leader.change(1, 2, 3, 4)
    assert reason in refusal(leader.change(*voters))
    assert leader.members().index == (3 if "committed" in reason else 0)


def test_newcomers_are_learners_that_have_caught_up() -> None:
    """From its entry on, commits may need the newcomer: it must be there and hold nearly everything."""
    lab, leader = led(5, (1, 2, 3), ())
    assert "node 4 is not a learner" in refusal(leader.change(1, 2, 3, 4))
    lab.set_learners(4)
    assert "node 4 does not answer" in refusal(leader.change(1, 2, 3, 4))
    beat(lab)
    assert "differ by more than one" in refusal(leader.change(1, 2, 4))
    change(lab, leader, 1, 2, 3, 4)


def test_a_learner_that_lags_is_refused() -> None:
    """Neither one that lacks too many entries, nor one that first needs a snapshot."""
    lab, leader = led(4, (1, 2, 3), (4,), RaftConfig(open_entries=10**6))
    for number in range(MAX_LAG + 10):
        leader.put(b"%d" % number)
        leader._turn()
    lab.run(0.0)
    lab.take(1, 4)
    lab.pump()
    lab.tick(1, after=0.15)
    lab.pump(1, 4, Type.APPEND)
    assert f"node 4 is {MAX_LAG + 10} entries behind" in refusal(leader.change(1, 2, 3, 4))
    lab, leader = led(4, (1, 2, 3), (4,), RaftConfig(keep_entries=0))
    lab.isolate(4)
    write(lab, leader, b"a", b"b")
    leader.take_snapshot()
    lab.run(0.0)
    assert leader.raft.log.base_index == 4
    assert "node 4 is 2 entries behind" in refusal(leader.change(1, 2, 3, 4))


def test_no_change_without_a_majority_afterwards() -> None:
    """A change that could not be committed at present is not begun: the group would stand still."""
    lab, leader = led()
    lab.isolate(3)
    beat(lab, times=8)
    reason = refusal(leader.change(1, 3))
    assert "no majority of voters 1, 3: no answer from 3" in reason
    change(lab, leader, 1, 2)
    assert leader.voters == (1, 2), "the one that is dead may go"


def test_no_change_before_the_term_is_open_nor_during_a_transfer() -> None:
    """A leader of a new term does not know yet which changes are committed (the flaw of 2015 in single-server
    changes)."""
    lab, leader = led()
    leader.put(b"a")
    assert leader.transfer(2)
    assert "is being handed over" in refusal(leader.change(1, 2))
    lab.run(0.0)
    lab.take()
    lab.run(2.0)
    lab.tick(3)
    lab.pump(3, 2, Type.PREVOTE)
    lab.pump(2, 3)
    lab.pump(3, 2, Type.VOTE)
    lab.pump(2, 3)
    assert lab[3].leads()
    assert "has not committed an entry of its term" in refusal(lab[3].change(2, 3))


def test_transfer_goes_to_voters_only() -> None:
    """A learner is no target, however far it is."""
    _, leader = led(3, (1, 2), (3,))
    assert leader.members().peers[3].match == leader.raft.log.last_index
    assert not leader.transfer(3)
    assert leader.lead.best_target(leader.now()) == 2


def test_a_change_whose_leader_is_lost_is_unknown() -> None:
    """The entry may survive or not; the caller asks the next leader."""
    lab, leader = led()
    outcome = leader.change(1, 2, 3, 4)
    lab.run(0.0)
    lab.take()
    leader.receive(2, [GROUP, Type.STALE, 9])
    lab.run(0.0)
    assert outcome.code == Code.UNKNOWN


def test_a_callers_mistake_is_not_the_groups(caplog: pytest.LogCaptureFixture) -> None:
    lab, leader = led(kind=GroupLab)

    def fail(_: Any) -> None:
        raise ValueError("mistake")

    assert isinstance(leader, GroupReplica)
    leader.group.change_members((1, 2, 3), fail)
    lab.run(0.0)
    assert "receiver of results failed" in caplog.text
    assert leader.leads()


# -- H11, fix by fix


@MUTANT
def test_h11a_one_change_at_a_time(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """Two additions in flight make two majorities without a common member, and two histories."""
    if mutant:
        monkeypatch.setattr(Membership, "_settled", lambda membership: True)
    lab, leader = led(5, (1, 2, 3), (4, 5))
    for node in (2, 3):
        lab.cut(1, node)
    first = leader.change(1, 2, 3, 4)
    second = leader.change(1, 2, 3, 4, 5)
    lab.run(0.0)
    lab.pump()
    assert (second.code == Code.CONDITION_FAILED) is not mutant
    assert first.ok is mutant
    for node in (4, 5):
        lab.isolate(node)
    lab.isolate(1)
    lab.elect(2)
    write(lab, lab[2], b"other")
    committed = min(leader.raft.core.commit_index(), lab[2].raft.core.commit_index())
    assert (leader.raft.log.term_at(committed) != lab[2].raft.log.term_at(committed)) is mutant


@MUTANT
def test_h11b_a_restart_replays_the_changes_in_the_log(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A restarted voter counts the voters of its log, not those with which the group began: else node 2 would be
    elected by itself and node 3, which the group has left behind."""
    lab, leader = led(4, (1, 2, 3), (4,))
    change(lab, leader, 1, 2, 3, 4)
    lab.isolate(3)
    change(lab, leader, 1, 2, 4)
    lab[2].kill()
    lab.cuts.clear()
    lab.isolate(1)
    lab.isolate(4)
    if mutant:
        monkeypatch.setattr(GroupLog, "_note", lambda *_: None)
    lab[2].start()
    assert lab[2].voters == ((1, 2, 3) if mutant else (1, 2, 4))
    lab.run(2.0)
    lab.tick(2)
    lab.pump()
    assert lab[2].leads() is mutant
    assert leader.leads()


def _no_prevote(elections: Elections) -> None:
    if elections._core.votes():
        elections._core.step_down()
        elections._core.postpone_election()
        elections.campaign(transfer=False)


@MUTANT
def test_h11c_a_removed_node_deposes_nobody(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A node that does not know of its removal goes on asking for votes, and gets none that matters."""
    if mutant:
        monkeypatch.setattr(Elections, "stand", _no_prevote)
        monkeypatch.setattr(Elections, "_sticky", lambda *_: False)
    lab = Lab(4)
    leader = lab.wait_for_leader()
    gone = next(node for node in lab.nodes if node != leader.node)
    lab.cut(leader.node, gone)
    outcome = leader.change(*(node for node in lab.nodes if node != gone))
    lab.run_until(lambda: outcome.answers, 0.2)
    assert outcome.ok
    assert gone in lab[gone].voters
    term = leader.raft.core.term()
    lab.heal()
    lab.run(10.0)
    assert (max(lab.leaders) > term + 3) is mutant
    if not mutant:
        assert leader.leads()
        assert lab.commit(leader, b"a").ok


def test_h11c_a_node_that_learns_of_its_removal_falls_silent() -> None:
    """As a learner it still gets the log; it stands for nothing any more."""
    lab, leader = led(3, (1, 2, 3), (3,))
    change(lab, leader, 1, 2)
    assert lab[3].members().committed_voters == (1, 2)
    assert lab[3].members().learners == (3,)
    for _ in range(3):
        lab.tick(3, after=2.0)
    assert lab.find(3) == []


@MUTANT
def test_h11d_late_answers_of_a_removed_node_are_ignored(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """What a removed node had sent arrives after its removal."""
    if mutant:
        monkeypatch.setattr(consensus, "ANSWERS", frozenset())
    lab, leader = led(4, (1, 2, 3, 4), ())
    leader.put(b"a")
    lab.run(0.0)
    lab.pump(1, 4)
    late = lab.take(4, 1)
    assert late
    lab.pump()
    outcome = leader.change(1, 2, 3)
    lab.run(0.0)
    before = leader.status()
    with pytest.raises(KeyError) if mutant else contextlib.nullcontext():
        lab.deliver(*late)
        leader.receive(4, [GROUP, Type.HEARD, 1, leader.lead.seq])
        leader.receive(4, [GROUP, Type.STALE, 77])
        assert leader.status() == before
        lab.pump()
        assert outcome.ok


def test_h11e_a_leader_leaves_after_it_has_handed_over() -> None:
    """It does not remove itself; its successor does, and the group goes on without it."""
    lab, leader = led()
    assert "hand the leadership over first" in refusal(leader.change(2, 3))
    with pytest.raises(BrokenInvariant, match="no longer among the voters"):
        Core.append(leader.raft.core, pack_voters((2, 3)))
    lab, leader = led()
    assert leader.transfer(2)
    lab.run(0.0)
    lab.pump()
    beat(lab, 2)
    change(lab, lab[2], 2, 3)
    leader.kill()
    write(lab, lab[2], b"a")


@MUTANT
def test_h11f_applying_an_older_change_undoes_no_newer_one(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A replica that applies late has the voters of its log's end, not of the entry that it applies."""
    if mutant:
        plain = Consensus.applied

        def applied(replica: Consensus, index: int, time: int, now: float) -> bool:
            replica.core._voters = replica.log.configurations.at(index)
            return plain(replica, index, time, now)

        monkeypatch.setattr(Consensus, "applied", applied)
    lab = Lab(4, founders=(1, 2, 3), by_hand=True)
    node = lab[2]
    entries = [(1, pack_voters((1, 2, 3, 4))), (1, pack_voters((1, 2, 4)))]
    node.receive(1, append(1, 1, 0, entries, commit=2))
    lab.run(0.0)
    assert node.raft.core.applied_index() == 2
    assert node.voters == ((1, 2, 3, 4) if mutant else (1, 2, 4))


@MUTANT
def test_h11g_a_snapshot_has_the_voters_of_its_entry(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A change that stood in the log when the snapshot was taken, and was truncated later, does not come back."""
    lab, leader = led(4, (1, 2, 3), (4,), RaftConfig(keep_entries=0), GroupLab)
    if mutant:
        plain = SnapshotStore.writer

        def newest(files: SnapshotStore, group: int, index: int, term: int, voters: Any) -> Any:
            return plain(files, group, index, term, leader.voters)

        monkeypatch.setattr(SnapshotStore, "writer", newest)
    write(lab, leader, b"a")
    lab.isolate(1)
    leader.change(1, 2, 3, 4)
    leader.take_snapshot()
    lab.run(0.0)
    assert leader.status().snapshot_index == 3
    assert leader.voters == (1, 2, 3, 4)
    lab.take()
    lab.elect(2)
    lab.heal()
    beat(lab, 2, times=4)
    leader.kill()
    leader.start()
    assert lab[2].voters == (1, 2, 3)
    assert leader.voters == ((1, 2, 3, 4) if mutant else (1, 2, 3))


def test_h11g_an_installed_snapshot_brings_its_voters() -> None:
    """A replica that missed the changes learns them from the snapshot, also for its next start."""
    lab, leader = led(4, (1, 2, 3), (4,), RaftConfig(keep_entries=0), GroupLab)
    lab.isolate(3)
    change(lab, leader, 1, 2, 3, 4)
    write(lab, leader, b"a")
    leader.take_snapshot()
    lab.run(0.0)
    lab.heal()
    beat(lab, times=6)
    assert lab[3].status().snapshot_index == 4
    for _ in range(2):
        assert lab[3].voters == lab[3].members().committed_voters == (1, 2, 3, 4)
        lab[3].kill()
        lab[3].start()


@MUTANT
def test_h11h_a_truncated_change_is_undone(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """Uncommitted, deposed, overwritten: the voters are again those of before, on the leader of then too."""
    if mutant:
        monkeypatch.setattr(GroupLog, "configurations", property(lambda log: log.sticking, _stick), raising=False)
    lab, leader = led()
    lab.isolate(1)
    lab.isolate(4)
    lab.cuts -= {(1, 4), (4, 1)}
    outcome = leader.change(1, 2, 3, 4)
    lab.run(0.0)
    lab.pump()
    assert leader.voters == lab[4].voters == (1, 2, 3, 4)
    lab.elect(2)
    write(lab, lab[2], b"other")
    lab.heal()
    beat(lab, 2, times=4)
    assert outcome.code == Code.UNKNOWN
    for node in (1, 4):
        assert lab[node].commands() == [b"other"]
        assert lab[node].voters == ((1, 2, 3, 4) if mutant else (1, 2, 3))


def _stick(log: Any, configurations: Any) -> None:
    configurations.truncate = lambda first: None
    log.sticking = configurations


# -- odd entries


def test_a_change_that_is_none_stops_the_node() -> None:
    """An entry of our own kind that cannot be read is never passed over."""
    for command in (CONFIG, CONFIG + b"\x93\x01", pack_voters(()), CONFIG + b"\x92\x02\x01", CONFIG + b"\x91\x00"):
        lab = Lab(by_hand=True)
        with pytest.raises(BrokenInvariant, match="entry 2"):
            lab[2].receive(1, append(1, 1, 0, [(1, command)]))


def test_a_batch_behind_a_change_is_applied_once() -> None:
    """Changes and proposals share the log."""
    lab, leader = led()
    first, outcome, second = leader.put(b"a"), leader.change(1, 2, 3, 4), leader.put(b"b")
    lab.run(0.0)
    lab.pump()
    assert first.ok
    assert outcome.ok
    assert second.ok
    lab[3].receive(1, append(1, 2, 1, [(1, batch(b"x"))], commit=2))
    assert leader.commands() == [b"a", b"b"]


def test_a_newcomer_has_to_answer_after_it_was_asked_for() -> None:
    """What the leader knows of a learner may be that of a replica which the node has dropped since."""
    lab, leader = led()
    write(lab, leader, b"a", b"b")
    beat(lab)
    assert leader.raft.core.match_index(4) == leader.raft.log.last_index
    outcome = leader.change(1, 2, 3, 4, heard=False)
    lab.run(0.0)
    assert 4 not in leader.voters
    assert "node 4 is being checked" in refusal(leader.change(1, 2, 3, 4, heard=False))
    lab.pump(1, 2)
    lab.pump(1, 3)
    assert 4 not in leader.voters
    beat(lab)
    assert outcome.ok
    assert leader.voters == (1, 2, 3, 4)


def test_a_newcomer_that_answers_no_more_is_refused() -> None:
    lab, leader = led()
    beat(lab)
    lab[4].kill()
    outcome = leader.change(1, 2, 3, 4, heard=False)
    for _ in range(10):
        lab.tick(1, after=0.1)
        lab.pump()
    assert "node 4 does not answer" in refusal(outcome)
    assert leader.voters == (1, 2, 3)
