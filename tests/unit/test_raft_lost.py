"""Guarantee: a replica that has lost what it had acknowledged counts in no later term, and none is barred for less."""

from __future__ import annotations

import pytest

from faults.sim.raftlab import Lab
from faults.sim.raftreplica import GROUP, LabReplica, recover
from raftkv.raft.messages import Type
from tests.members_lab import beat, change, led, write


def set_back(replica: LabReplica, records: int) -> None:
    """Start it again with the disk of an earlier time, when it held so many records."""
    replica.kill()
    del replica.durable[records:]
    replica.start()


def lost_disk() -> tuple[Lab, LabReplica, LabReplica, LabReplica]:
    """Leader, and two followers: one acknowledged an entry that the other never got, and its disk went back since."""
    lab = Lab()
    leader = lab.wait_for_leader()
    lab.run(0.5)
    two, three = (lab[node] for node in lab.nodes if node != leader.node)
    assert lab.commit(leader, b"before").ok
    lab.run(0.5)
    earlier = len(two.durable)
    lab.isolate(three.node)
    assert lab.commit(leader, b"acknowledged by two").ok
    lab.run(0.2)
    set_back(two, earlier)
    lab.run(0.5)
    assert leader.status().data_loss == (two.node,)
    return lab, leader, two, three


def barred(replica: LabReplica) -> bool:
    return replica.status().lost


def test_it_elects_nobody_in_any_later_term_and_after_any_start() -> None:
    """The other one lacks the entry: with a vote of the one that lost it too, it would lead, and the entry be gone."""
    lab, leader, two, _ = lost_disk()
    assert barred(two)
    leader.kill()
    lab.heal()
    for _ in range(3):
        lab.run(3.0)
        assert lab.leader() is None
        two.kill()
        two.start()
        assert barred(two)
    leader.start()
    lab.run_until(leader.raft.ready)
    lab.run(1.0)
    assert leader.commands() == [b"before", b"acknowledged by two"]
    assert leader.status().data_loss == (two.node,), "a later leader hears so from the node itself"
    assert two.commands() == [], "and sends it nothing"
    assert two.raft.core.leader() == leader.node, "which knows the leader all the same"


def test_it_commits_nothing_in_a_later_term() -> None:
    lab, leader, _, other = lost_disk()
    lab.heal()
    lab.run_until(lambda: leader.raft.ready() and leader.lead.answers(other.node, leader.now()))
    lab.run(1.0)
    assert leader.transfer(other.node)
    lab.run(1.0)
    assert other.leads()
    assert lab.commit(other, b"later").ok
    leader.kill()
    outcome = other.put(b"by the lost one alone")
    lab.run(1.0)
    assert not outcome.ok
    assert not other.leads(), "it has no majority"


def test_it_comes_back_as_a_learner_once_it_was_replaced() -> None:
    """Removed, dropped and taken in again: then it counts like another, and keeps to what it had acknowledged."""
    lab, leader = led()
    write(lab, leader, b"a")
    beat(lab)
    earlier = len(lab[3].durable)
    write(lab, leader, b"b")
    beat(lab)
    set_back(lab[3], earlier)
    beat(lab, times=4)
    assert barred(lab[3])
    change(lab, leader, 1, 2)
    lab.set_learners(3)
    lab[3].drop()
    assert recover(lab[3].durable).floor[1] >= 4
    lab[3].start()
    beat(lab, times=4)
    assert not barred(lab[3])
    assert lab[3].commands() == [b"a", b"b"]
    change(lab, leader, 1, 2, 3)
    assert leader.status().data_loss == ()
    lab[2].kill()
    write(lab, leader, b"c")
    assert leader.commands() == [b"a", b"b", b"c"]


def test_what_a_leader_says_is_checked_against_the_own_log() -> None:
    lab, leader = led()
    write(lab, leader, b"a")
    beat(lab)
    term, last = leader.raft.core.term(), leader.raft.log.last_index
    for claim in (0, 1, last):
        lab[2].receive(1, [GROUP, Type.LOST, term, claim, term])
        assert not barred(lab[2]), "it holds that"
    lab[2].raft.core.adopt_term(term + 1)
    lab[2].receive(1, [GROUP, Type.LOST, term, last + 5, term])
    assert not barred(lab[2]), "an older term's entries may have been replaced since"
    lab[2].receive(1, [GROUP, Type.LOST, term + 1, last + 5, term + 1])
    assert barred(lab[2])


def test_a_dropped_replica_has_lost_nothing() -> None:
    """A late message of its leader finds an empty log; the WAL knows how far the dropped one reached."""
    lab, leader = led()
    write(lab, leader, b"a", b"b")
    beat(lab)
    term, last = leader.raft.core.term(), leader.raft.log.last_index
    change(lab, leader, 1, 2)
    lab[3].drop()
    lab[3].start()
    assert lab[3].raft.log.last_index < last
    lab[3].receive(1, [GROUP, Type.LOST, term, last, term])
    assert not barred(lab[3])
    lab[3].receive(1, [GROUP, Type.LOST, term, last + 10, term])
    assert barred(lab[3])


def test_a_leader_hears_of_a_loss_from_members_and_in_its_term_only() -> None:
    lab, leader = led()
    term = leader.raft.core.term()
    leader.receive(9, [GROUP, Type.BARRED, term])
    leader.receive(2, [GROUP, Type.BARRED, term - 1])
    leader.receive(2, [GROUP, Type.BARRED, term + 1])
    assert leader.status().data_loss == ()
    leader.receive(2, [GROUP, Type.BARRED, term])
    assert leader.status().data_loss == (2,)
    lab[3].receive(2, [GROUP, Type.BARRED, term])
    assert lab[3].status().data_loss == ()


@pytest.mark.parametrize("seed", range(5))
def test_no_replica_is_barred_for_a_kill_or_a_loss_of_power(seed: int) -> None:
    lab = Lab(seed=seed)
    for number in range(12):
        leader = lab.wait_for_leader()
        lab.commit(leader, b"%d" % number)
        victim = lab[lab.rng.choice(list(lab.nodes))]
        leader.put(b"on its way")
        lab.run(lab.rng.uniform(0, 0.02))
        victim.kill()
        lab.run(lab.rng.choice((0.1, 1.5)))
        victim.start()
    lab.run(2.0)
    assert not any(barred(lab[node]) for node in lab.nodes)
