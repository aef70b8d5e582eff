"""Membership of a group: one server at a time, in effect from the moment its entry is appended (H11)."""

from typing import Any

import pytest

from faults.sim.raftlab import GROUP, Lab, Outcome, Replica, append, batch
from raftkv.errors import Code
from raftkv.raft import RaftConfig
from raftkv.raft.configurations import pack_voters
from raftkv.raft.messages import Type

EAGER = RaftConfig(keep_entries=0)


def led(nodes: int = 4, founders: tuple[int, ...] = (1, 2, 3), learners: tuple[int, ...] = (4,)) -> tuple[Lab, Replica]:
    """By hand: node 1 leads, and has heard of everyone."""
    lab = Lab(nodes, founders=founders, by_hand=True, config=EAGER)
    lab.set_learners(*learners)
    leader = lab.elect(1)
    beat(lab)
    return lab, leader


def beat(lab: Lab, times: int = 2) -> None:
    """Heartbeats of node 1, so that everyone knows the commit index."""
    for _ in range(times):
        lab.tick(1, after=0.15)
        lab.pump()


def refusal(outcome: Outcome) -> str:
    assert outcome.code == Code.CONDITION_FAILED
    return outcome.answers[0].detail


def test_a_learner_becomes_a_voter_and_a_voter_leaves() -> None:
    """The change is answered once it is committed; every replica then knows the same voters."""
    lab, leader = led()
    outcome = leader.change(1, 2, 3, 4)
    lab.run(0.0)
    assert outcome.answers == []
    assert leader.raft.voters == (1, 2, 3, 4), "in effect at once"
    members = leader.raft.members()
    assert (members.committed, members.committed_voters, members.index) == (False, (1, 2, 3), 3)
    lab.pump()
    assert outcome.ok
    beat(lab)
    for replica in lab.nodes.values():
        members = replica.raft.members()
        assert (members.voters, members.committed_voters, members.learners) == ((1, 2, 3, 4), (1, 2, 3, 4), ())
        assert members.committed
    gone = leader.change(1, 3, 4)
    lab.run(0.0)
    lab.pump()
    assert gone.ok
    assert leader.raft.status().voters == (1, 3, 4)
    assert set(leader.raft.status().match) == {1, 3, 4}


def test_a_replica_that_was_dropped_comes_back() -> None:
    """Removed, dropped, a learner again with an empty log, a voter again."""
    lab, leader = led()
    leader.put(b"a")
    lab.run(0.0)
    lab.pump()
    assert not leader.change(1, 2).answers
    lab.run(0.0)
    lab.pump()
    lab[3].drop()
    lab[3].start()
    assert lab[3].commands() == []
    lab.set_learners(3, 4)
    beat(lab, 4)
    assert lab[3].commands() == [b"a"]
    assert leader.raft.status().amnesia == ()
    outcome = leader.change(1, 2, 3)
    lab.run(0.0)
    lab.pump()
    assert outcome.ok
