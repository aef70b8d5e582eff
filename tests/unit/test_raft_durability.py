"""Persist before send: nothing counts before it is on stable storage (H3), and nothing false comes back from it."""

import contextlib

import pytest

from faults.sim.persisted import LabError
from faults.sim.raftlab import append, batch
from faults.sim.raftreplica import GROUP, LabReplica
from raftkv.raft.leadership import Leadership
from raftkv.raft.log import GroupLog
from raftkv.raft.messages import Type
from tests.group_lab import GroupLab

MUTANT = pytest.mark.parametrize("mutant", [False, True], ids=["fixed", "mutant"])


@MUTANT
def test_h3b_follower_acknowledges_only_what_is_durable(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A write whose second copy was not synced is not acknowledged; with the barrier off a power loss loses it."""
    if mutant:
        monkeypatch.setattr(LabReplica, "hold", LabReplica.send)
    lab = GroupLab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    lab[2].sync_delay = None
    outcome = leader.put(b"w")
    lab.run(0.0)
    lab.take(1, 3)
    lab.pump()
    assert outcome.ok is mutant
    leader.kill()
    lab[2].kill()
    lab[2].start()
    survivor = lab.elect(3)
    lab.pump()
    assert survivor.commands() == []


def test_h3b_acknowledgement_leaves_with_the_sync() -> None:
    """The acknowledgement waits for the sync of the entry that it speaks of, and then leaves."""
    lab = GroupLab(by_hand=True, sync_delay=None)
    lab[2].receive(1, append(1, 1, 0, [(1, batch(b"a"))]))
    lab.run(0.0)
    assert lab.find(2, 1, Type.ACK) == []
    lab[2].sync()
    assert [envelope.message[6] for envelope in lab.take(2, 1, Type.ACK)] == [3]


@MUTANT
def test_h3c_leader_counts_its_own_log_only_as_far_as_durable(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """One durable copy at a follower and one in the leader's memory are no majority."""
    if mutant:
        everything = property(lambda log: log.last_index, lambda log, index: None)
        monkeypatch.setattr(GroupLog, "durable_index", everything, raising=False)
    lab = GroupLab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    leader.sync_delay = None
    outcome = leader.put(b"w")
    lab.run(0.0)
    lab.take(1, 3)
    lab.pump()
    assert outcome.ok is mutant
    if not mutant:
        leader.sync()
        lab.run(0.0)
        assert outcome.ok
        return
    lab[2].kill()
    leader.kill()
    leader.start()
    lab.take()
    lab.elect(1)
    lab.pump()
    assert leader.commands() == []


def test_slow_disk_of_the_leader_holds_up_no_commit() -> None:
    """Two durable followers are a majority: the leader's own sync may come later."""
    lab = GroupLab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    leader.sync_delay = None
    outcome = leader.put(b"w")
    lab.run(0.0)
    lab.pump()
    assert outcome.ok
    assert leader.raft.log.durable_index < leader.raft.log.last_index


@MUTANT
def test_h3d_vote_leaves_only_when_durable(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A vote that a power loss can undo is not sent; else a term gets two leaders."""
    if mutant:
        monkeypatch.setattr(LabReplica, "hold", LabReplica.send)
    lab = GroupLab(5, by_hand=True)
    lab[3].sync_delay = None
    lab.run(2.0)
    lab.tick(1)
    for node in (4, 5):
        lab.isolate(node)
    lab.pump()
    assert lab[1].leads() is mutant
    lab.take()
    lab[3].kill()
    lab[3].start()
    lab.heal()
    for node in (1, 2):
        lab.isolate(node)
    lab.run(2.0)
    with pytest.raises(LabError, match="both lead in term 1") if mutant else contextlib.nullcontext():
        lab.tick(5)
        lab.pump()
    assert lab[5].leads()


def test_h3d_vote_request_leaves_only_when_durable() -> None:
    """A candidate asks for votes only once its own vote is on stable storage: else it could vote again."""
    lab = GroupLab(by_hand=True, sync_delay=None)
    lab.run(2.0)
    lab.tick(1)
    lab.pump()
    assert lab[1].raft.core.term() == 1
    assert lab.find(1) == []
    lab[1].sync()
    assert [envelope.type for envelope in lab.find(1)] == [Type.VOTE, Type.VOTE]


def test_vote_survives_a_restart() -> None:
    """A node that has voted and restarted does not vote for another in the same term."""
    lab = GroupLab(by_hand=True)
    lab.run(2.0)
    lab[2].receive(1, [GROUP, Type.VOTE, 5, 1, 0, False])
    lab.run(0.0)
    assert [envelope.type for envelope in lab.take(2, 1)] == [Type.VOTE_REPLY]
    lab[2].kill()
    lab[2].start()
    lab.run(2.0)
    assert lab[2].raft.core.term() == 5
    lab[2].receive(3, [GROUP, Type.VOTE, 5, 1, 0, False])
    lab.run(0.0)
    assert lab.find(2, 3) == []


def test_h14b_commit_index_is_not_taken_from_disk() -> None:
    """A restarted node trusts no commit index: a fresh leader acknowledges nothing that it has not replicated."""
    lab = GroupLab(by_hand=True)
    leader = lab.elect(1)
    for number in range(5):
        leader.put(b"%d" % number)
        lab.run(0.0)
        lab.pump()
    for replica in lab.nodes.values():
        replica.kill()
        replica.start()
        assert replica.raft.core.commit_index() == 1
        assert replica.commands() == []
    lab.run(2.0)
    lab.tick(1)
    lab.pump(kind=Type.PREVOTE)
    lab.pump(kind=Type.PREVOTE_REPLY)
    lab.pump(kind=Type.VOTE)
    lab.pump(kind=Type.VOTE_REPLY)
    assert leader.leads()
    outcome = leader.put(b"new")
    lab.run(0.0)
    assert outcome.answers == []
    lab.pump()
    assert outcome.ok
    assert leader.commands() == [b"0", b"1", b"2", b"3", b"4", b"new"]


def test_truncation_is_not_undone_by_a_restart() -> None:
    """Entries removed by a conflict do not come back, and their indexes count as durable only when written anew."""
    lab = GroupLab(by_hand=True, sync_delay=None)
    node = lab[2]
    node.receive(1, append(1, 1, 0, [(1, batch(b"a")), (1, batch(b"ghost"))]))
    node.step()
    node.sync()
    assert node.raft.log.durable_index == 3
    node.receive(3, append(2, 2, 1, [(2, batch(b"b")), (2, batch(b"c"))]))
    assert node.raft.log.durable_index == 2
    node.step()
    node.sync()
    assert node.raft.log.durable_index == 4
    node.kill()
    node.start()
    assert [node.raft.log.term_at(index) for index in range(1, 6)] == [0, 1, 2, 2, None]


@MUTANT
def test_a_leader_keeps_contact_with_followers_whose_disks_are_slow(
    monkeypatch: pytest.MonkeyPatch, mutant: bool
) -> None:
    """Acknowledgements may wait long behind much data; leadership and lease only need followers that listen."""
    if mutant:
        monkeypatch.setattr(Leadership, "on_heard", lambda *_: None)
    lab = GroupLab()
    leader = lab.wait_for_leader()
    lab.run(1.0)
    term = leader.status().term
    for replica in lab.nodes.values():
        replica.sync_delay = 3.0
    outcome = leader.put(b"w")
    lab.run(2.0)
    assert (leader.leads() and leader.status().term == term) is not mutant
    if not mutant:
        assert outcome.answers == []
        assert leader.now() < leader.raft.contact(leader.now()) + lab.config.lease
        lab.run(5.0)
        assert outcome.ok


def test_hearing_is_not_storing() -> None:
    """That a follower heard an entry commits nothing, and frees no room for more."""
    lab = GroupLab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    lab[2].sync_delay = lab[3].sync_delay = None
    lab.run(1.0)
    outcome = leader.put(b"w")
    lab.run(0.0)
    sent = leader.lead.followers[2].bytes
    lab.pump()
    assert sent > 0
    follower = leader.lead.followers[2]
    assert follower.acked == follower.sent[-1][0], "the latest append was heard"
    assert leader.lead.followers[2].bytes == sent
    assert outcome.answers == []
