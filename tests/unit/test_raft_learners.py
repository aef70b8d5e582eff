"""Learners, nodes that do not know each other yet, and replicas that were dropped and come back."""

from typing import Any

import pytest

from faults.sim.raftlab import Lab
from faults.sim.raftreplica import GROUP, LabAnswer
from raftkv.errors import Code
from raftkv.raft import RaftConfig
from raftkv.raft.consensus import Consensus
from raftkv.raft.messages import Type
from tests.group_lab import GroupLab, GroupReplica
from tests.members_lab import beat, change, led, write

MUTANT = pytest.mark.parametrize("mutant", [False, True], ids=["fixed", "mutant"])


# -- who hears whom (dissertation, 4.1)


@MUTANT
def test_a_newcomer_gets_votes_from_those_who_do_not_know_it(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A change is in the logs of the leader and the newcomer only, and the leader is gone: without the votes of nodes
    that have not heard of it, the newcomer's longer log would block every election."""
    lab, leader = led(3, (1, 2), (3,))
    lab.take()
    leader.change(1, 2, 3)
    lab.run(0.0)
    lab.pump(1, 3)
    lab.take()
    leader.kill()
    assert 3 not in lab[2].voters
    if mutant:
        plain = Consensus.receive

        def members_only(replica: Consensus, peer: int, message: list[Any], now: float) -> None:
            if peer in replica.core.voters():
                plain(replica, peer, message, now)

        monkeypatch.setattr(Consensus, "receive", members_only)
    for _ in range(3):
        lab.run(2.0)
        lab.tick()
        lab.pump()
    assert lab[3].leads() is not mutant
    if not mutant:
        write(lab, lab[3], b"a")
        beat(lab, 3)
        assert lab[2].voters == (1, 2, 3)


def test_a_follower_takes_appends_of_a_leader_it_does_not_know() -> None:
    """Whoever was elected by the others leads this node too."""
    lab, leader = led(4, (1, 2, 3), (4,))
    lab.isolate(3)
    change(lab, leader, 1, 2, 3, 4)
    assert leader.transfer(4)
    lab.run(0.0)
    lab.pump()
    assert lab[4].leads()
    lab.heal()
    assert 4 not in lab[3].voters
    beat(lab, 4)
    assert lab[3].raft.core.leader() == 4
    assert lab[3].voters == (1, 2, 3, 4)


# -- learners


def test_learners_hold_the_log_and_count_for_nothing() -> None:
    """Neither commits, nor leases, nor the leader's calm, nor quorum reads rest on them."""
    lab, leader = led(5, (1, 2, 3), (4, 5))
    write(lab, leader, b"a")
    beat(lab)
    assert lab[4].commands() == [b"a"]
    assert leader.status().learners == (4, 5)
    lab.isolate(2)
    lab.isolate(3)
    outcome, read = leader.put(b"b"), leader.read(quorum=True)
    lab.run(0.0)
    lab.pump()
    assert lab[4].raft.log.last_index == lab[5].raft.log.last_index == leader.raft.log.last_index
    assert outcome.answers == []
    assert read.answers == []
    for _ in range(8):
        beat(lab, times=1)
    assert not leader.leads()
    assert outcome.code == Code.UNKNOWN


def test_learners_are_kept_over_a_change_of_the_leader() -> None:
    """Every replica was told; the next leader goes on where it finds them."""
    lab, _ = led()
    lab.isolate(1)
    leader = lab.elect(3)
    write(lab, leader, b"a")
    beat(lab, 3)
    assert lab[4].commands() == [b"a"]
    assert leader.members().peers[4].match == leader.raft.log.last_index
    leader.set_learners(())
    assert set(leader.members().peers) == {1, 2, 3}
    leader.set_learners((1, 2, 4))
    assert leader.members().learners == (4,), "voters among them are passed over"


def test_what_a_learner_held_in_an_older_term_does_not_count() -> None:
    """A leader that is elected again knows nothing of anyone at first."""
    lab, leader = led(4, (1, 2, 3), (4,))
    write(lab, leader, b"a")
    assert leader.raft.core.match_index(4) == 3
    leader.receive(2, [GROUP, Type.STALE, 5])
    lab.run(0.0)
    lab.take()
    lab.isolate(4)
    lab.elect(1)
    assert leader.raft.core.match_index(4) == 0


def test_a_learner_gets_a_snapshot() -> None:
    lab, leader = led(4, (1, 2, 3), (), RaftConfig(keep_entries=0), GroupLab)
    write(lab, leader, *(b"%d" % number for number in range(20)))
    leader.take_snapshot()
    lab.run(0.0)
    lab.set_learners(4)
    beat(lab, times=4)
    assert lab[4].commands() == leader.commands()
    change(lab, leader, 1, 2, 3, 4)


def test_progress_is_kept_when_a_learner_becomes_a_voter_and_back() -> None:
    """Nothing is sent again, and its silence or voice is known at once."""
    lab, leader = led()
    write(lab, leader, b"a")
    progress = leader.lead.followers[4]
    change(lab, leader, 1, 2, 3, 4)
    assert leader.lead.followers[4] is progress
    change(lab, leader, 1, 2, 3)
    assert leader.lead.followers[4] is progress
    assert leader.members().learners == (4,)


# -- replicas that were dropped


def test_a_replica_that_was_dropped_comes_back() -> None:
    """Removed, dropped, a learner again with an empty log, a voter again: no alarm, and it is counted rightly."""
    lab, leader = led()
    write(lab, leader, b"a", b"b")
    change(lab, leader, 1, 2)
    lab.set_learners(3, 4)
    beat(lab)
    assert leader.raft.core.match_index(3) == leader.raft.log.last_index
    lab[3].drop()
    lab[3].start()
    assert lab[3].commands() == []
    beat(lab, times=4)
    assert lab[3].commands() == [b"a", b"b"]
    assert leader.status().data_loss == ()
    change(lab, leader, 1, 2, 3)
    lab[2].kill()
    write(lab, leader, b"c")


def test_late_answers_of_a_dropped_replica_do_not_count() -> None:
    """What the former replica held says nothing of the new one."""
    lab, leader = led(4, (1, 2, 3), (4,))
    leader.put(b"a")
    lab.run(0.0)
    lab.pump(1, 4)
    late = lab.take(4, 1)
    assert late[-1].message[6] == 4
    lab.deliver(*late)
    lab[4].drop()
    lab[4].start()
    lab.tick(1, after=0.15)
    lab.pump(1, 4)
    lab.pump(4, 1)
    assert leader.raft.core.match_index(4) == 0
    lab.deliver(*late)
    assert leader.raft.core.match_index(4) == 0


@MUTANT
def test_founders_that_were_dropped_found_no_second_group(mutant: bool) -> None:
    """The group has moved on to others. Two founders come back with empty logs, the third never had more: they know
    each other as the voters, and together they are all of them. They give no vote for a log shorter than theirs was."""
    lab = Lab(6, founders=(1, 2, 3), by_hand=True)
    lab.isolate(3)
    lab.set_learners(4, 5, 6)
    leader = lab.elect(1)
    beat(lab)
    write(lab, leader, b"a")
    for voters in ((1, 2, 3, 4), (1, 2, 4), (1, 2, 4, 5), (1, 2, 4, 5, 6), (1, 4, 5, 6)):
        change(lab, leader, *voters)
    assert leader.transfer(4)
    lab.run(0.0)
    lab.pump()
    beat(lab, 4)
    change(lab, lab[4], 4, 5, 6)
    for node in (1, 2):
        lab[node].drop()
        lab[node].start()
        if mutant:
            lab[node].raft.elections._floor = (0, 0)
    for node in (4, 5, 6):
        lab.isolate(node)
    lab.cuts = {cut for cut in lab.cuts if not set(cut) <= {1, 2, 3}}
    lab.take()
    for node in (3, 1, 2):
        lab.run(2.0)
        lab.tick(node)
        lab.pump()
    assert any(lab[node].leads() for node in (1, 2, 3)) is mutant
    lab.heal()
    if not mutant:
        lab.set_learners(1, 2, 3)
        beat(lab, 4, times=8)
        assert {tuple(replica.commands()) for replica in lab.nodes.values()} == {(b"a",)}
        assert {replica.voters for replica in lab.nodes.values()} == {(4, 5, 6)}


def test_a_dropped_replica_keeps_term_and_vote() -> None:
    """It voted in a term before it was dropped, and does not again after."""
    lab = Lab(3, by_hand=True)
    lab.run(2.0)
    lab[2].receive(1, [GROUP, Type.VOTE, 5, 1, 0, False])
    lab.run(0.0)
    assert len(lab.take(2, 1, Type.VOTE_REPLY)) == 1
    lab[2].drop()
    lab[2].start()
    assert lab[2].raft.core.term() == 5
    lab.run(2.0)
    lab[2].receive(3, [GROUP, Type.VOTE, 5, 9, 4, False])
    lab.run(0.0)
    assert lab.find(2, 3, Type.VOTE_REPLY) == []


def test_a_closed_replica_answers_what_waits() -> None:
    """Open proposals, waiting ones, reads and changes, each once."""
    lab, leader = led(4, (1, 2, 3), (4,), kind=GroupLab)
    lab.isolate(1)
    opened, pending, read = leader.put(b"a"), leader.change(1, 2, 3, 4), leader.read(quorum=True)
    lab.run(0.0)
    waiting = leader.put(b"b")
    assert isinstance(leader, GroupReplica)
    group = leader.group
    group.close()
    assert opened.code == pending.code == Code.UNKNOWN
    assert read.code == Code.NOT_LEADER
    assert waiting.code in (Code.NOT_LEADER, Code.UNAVAILABLE)
    late = LabAnswer(b"late")
    group.propose([], 0, late.answers.extend)
    assert not group.leads()


def test_a_snapshot_under_way_ends_with_its_replica() -> None:
    """Nothing is recorded for a group that is not hosted any more."""
    lab, leader = led(1, (1,), (), kind=GroupLab)
    assert isinstance(leader, GroupReplica)
    leader.worker.delay = 0.01
    leader.machine.chunk_items = 1
    for number in range(20):
        write(lab, leader, b"%d" % number + b"x" * 50_000)
    leader.take_snapshot()
    lab.run(0.0)
    records = leader.recorded
    leader.close()
    lab.run(1.0)
    assert leader.disk.files() == {}
    assert leader.recorded == records
