"""Elections: a healthy leader stays, a deposed or deaf one goes soon, and no term ever has two."""

import contextlib
from typing import Any

import pytest

from faults.sim.persisted import LabError
from faults.sim.raftlab import Lab, append, batch
from faults.sim.raftreplica import GROUP
from raftkv.errors import Code
from raftkv.raft import BrokenInvariant, RaftConfig
from raftkv.raft.core import Core
from raftkv.raft.elections import Elections
from raftkv.raft.messages import Type
from tests.group_lab import GroupLab

MUTANT = pytest.mark.parametrize("mutant", [False, True], ids=["fixed", "mutant"])


def _no_prevote(elections: Elections) -> None:
    elections._core.step_down()
    elections._core.postpone_election()
    elections.campaign(transfer=False)


@MUTANT
def test_h4a_half_deaf_node_deposes_nobody(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A node that hears nothing but can send does not disturb a healthy majority."""
    if mutant:
        monkeypatch.setattr(Elections, "stand", _no_prevote)
        monkeypatch.setattr(Elections, "_sticky", lambda *_: False)
    lab = Lab()
    leader = lab.wait_for_leader()
    term = leader.raft.core.term()
    deaf = next(node for node in lab.nodes if node != leader.node)
    for node in lab.nodes:
        if node != deaf:
            lab.cut(node, deaf)
    lab.run(11.0)
    if mutant:
        assert max(lab.leaders) >= term + 5
    else:
        assert leader.leads()
        assert leader.raft.core.term() == term
        assert lab.commit(leader, b"a").ok


def test_h4b_isolated_node_comes_back_quietly() -> None:
    """A node that was cut off for long does not depose the leader when it returns, and catches up."""
    lab = Lab()
    leader = lab.wait_for_leader()
    alone = next(node for node in lab.nodes if node != leader.node)
    lab.isolate(alone)
    lab.run(6.0)
    assert lab.commit(leader, b"a").ok
    lab.heal()
    lab.run(1.0)
    assert leader.leads()
    assert lab[alone].raft.core.term() == leader.raft.core.term()
    assert lab[alone].commands() == [b"a"]


@MUTANT
def test_h4c_no_vote_soon_after_a_leader_was_heard(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A voter that has just heard a leader gives neither vote nor pre-vote, so that leases hold."""
    if mutant:
        monkeypatch.setattr(Elections, "_sticky", lambda *_: False)
    lab = Lab(by_hand=True)
    lab.elect(1)
    lab.run(0.4)
    lab[2].receive(3, [GROUP, Type.PREVOTE, 2, 2, 1])
    lab[2].receive(3, [GROUP, Type.VOTE, 2, 2, 1, False])
    lab.run(0.0)
    granted = [envelope.message[3:4] for envelope in lab.take(2, 3, Type.PREVOTE_REPLY)]
    assert granted == [[mutant]]
    assert (len(lab.find(2, 3, Type.VOTE_REPLY)) == 1) is mutant
    assert lab[2].raft.core.term() == (2 if mutant else 1)


def test_vote_is_given_once_the_leader_was_silent() -> None:
    """After the shortest election time-out without a leader, a vote is given again."""
    lab = Lab(by_hand=True)
    lab.elect(1)
    lab.run(0.51)
    lab[2].receive(3, [GROUP, Type.VOTE, 2, 2, 1, False])
    lab.run(0.0)
    assert len(lab.find(2, 3, Type.VOTE_REPLY)) == 1


@MUTANT
def test_prevotes_end_when_a_leader_is_heard(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """Pre-votes that arrive after the leader's next append start no election."""
    if mutant:
        monkeypatch.setattr(Elections, "hear_leader", lambda elections: None)
    lab = Lab(by_hand=True)
    lab.elect(1)
    lab.run(1.0)
    lab.tick(3)
    lab.pump(3, 2)
    lab.take(3, 1)
    lab[3].receive(1, append(1, 2, 1))
    lab.pump(2, 3)
    assert (len(lab.find(3, 2, Type.VOTE)) > 0) is mutant


@MUTANT
def test_restarted_voter_is_silent(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A voter forgets whom it heard when it restarts, so it gives no vote until a lease it may have allowed is over."""
    if mutant:
        monkeypatch.setattr(RaftConfig, "silence", 0.0)
    lab = Lab(by_hand=True)
    lab.elect(1)
    lab[2].kill()
    lab[2].start()
    lab[2].receive(3, [GROUP, Type.VOTE, 2, 2, 1, False])
    lab.run(0.0)
    assert (len(lab.take(2, 3, Type.VOTE_REPLY)) == 1) is mutant
    lab.run(0.51)
    lab[2].receive(3, [GROUP, Type.VOTE, 3, 2, 1, False])
    lab.run(0.0)
    assert len(lab.find(2, 3, Type.VOTE_REPLY)) == 1


def test_h5_append_of_an_old_term_is_answered() -> None:
    """A deposed leader learns of it from the first node of a later term that it reaches, and answers its callers."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    lab.isolate(1)
    lab.elect(2)
    lab.take()
    lab.cuts = {(2, 1)}
    outcome = leader.put(b"stuck")
    lab.run(0.0)
    lab.tick(1, after=0.1)
    lab.pump(1, 3)
    assert [envelope.type for envelope in lab.find(3, 1)][:1] == [Type.STALE]
    lab.pump(3, 1)
    assert not leader.leads()
    assert leader.raft.core.term() == lab[2].raft.core.term()
    assert outcome.code == Code.UNKNOWN


@pytest.mark.parametrize("deaf_only", [False, True], ids=["isolated", "deaf"])
def test_h5_leader_without_contact_steps_down(deaf_only: bool) -> None:
    """A leader that hears no majority stops leading within about an election time-out, and the others go on."""
    lab = Lab()
    leader = lab.wait_for_leader()
    stuck = leader.put(b"stuck") if deaf_only else None
    for node in lab.nodes:
        if node != leader.node:
            lab.cut(node, leader.node)
            if not deaf_only:
                lab.cut(leader.node, node)
    lab.run(1.1)
    assert not leader.leads()
    lab.run(2.0)
    successor = lab.leader()
    assert successor is not None
    assert successor is not leader
    assert lab.commit(successor, b"b").ok
    assert stuck is None or stuck.code == Code.UNKNOWN


def test_h7_answers_of_strangers_change_nothing() -> None:
    """Answers of a node outside the group, and whatever seems to come from this node itself, are ignored."""
    lab = GroupLab(by_hand=True)
    leader = lab.elect(1)
    before = leader.status()
    answers: list[list[Any]] = [
        [GROUP, Type.ACK, 50, 1, 1, True, 100, 100, [1, 1]],
        [GROUP, Type.ACK, 1, leader.lead.seq, 1, True, 3, 3, [1, 1]],
        [GROUP, Type.HEARD, 1, leader.lead.seq],
        [GROUP, Type.STALE, 50],
        [GROUP, Type.PREVOTE_REPLY, 2, True, 50],
        [GROUP, Type.VOTE_REPLY, 1],
        [GROUP, Type.SNAPSHOT_PULL, 1, 2, 0],
    ]
    own: list[list[Any]] = [
        [GROUP, Type.VOTE, 50, 100, 50, True],
        append(50, 1, 0, [(50, batch(b"foreign"))]),
        [GROUP, Type.SNAPSHOT_OFFER, 50, 100, 50, 1000],
    ]
    for message in answers:
        assert leader.receive(9, message)
    for message in answers + own:
        assert leader.receive(1, message)
    lab.run(0.0)
    assert leader.status() == before
    assert lab.find(1, 9) == []


def test_h7_votes_of_strangers_do_not_count() -> None:
    """Only members elect."""
    lab = Lab(by_hand=True)
    lab.run(2.0)
    lab.tick(1)
    lab[1].receive(9, [GROUP, Type.PREVOTE_REPLY, 1, True, 0])
    assert lab[1].raft.core.term() == 0
    lab[1].receive(2, [GROUP, Type.PREVOTE_REPLY, 1, True, 0])
    lab[1].receive(9, [GROUP, Type.VOTE_REPLY, 1])
    assert not lab[1].leads()


def test_h7_data_loss_is_noticed() -> None:
    """A follower that lost what it had acknowledged raises an alarm and no longer counts towards commits."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    assert not leader.put(b"a").answers
    lab.run(0.0)
    lab.pump()
    lab[2].kill()
    lab[2].durable = []
    lab[2].start()
    lab.tick(1, after=0.2)
    lab.pump(1, 2)
    lab.pump(2, 1)
    assert leader.status().data_loss == (2,)
    outcome = leader.put(b"b")
    lab.run(0.0)
    assert lab.find(1, 2) == []
    lab.pump()
    assert outcome.ok, "the other two are a majority"


def test_late_answers_raise_no_data_loss_alarm() -> None:
    """Answers that overtake each other are told apart from lost entries (found by the storm, seeds 30 to 119)."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    leader.put(b"a")
    lab.run(0.0)
    sent = lab.take(1, 2)[-1].message
    lab.take()
    head = [GROUP, Type.ACK, sent[2], sent[3], sent[4]]
    leader.receive(2, [*head, True, 4, 3, [77, 12]])
    leader.receive(2, [*head, True, 3, 2, [77, 10]])
    leader.receive(2, [*head, False, 3, 2, [77, 11]])
    assert leader.status().data_loss == ()
    lab.tick(1, after=0.2)
    leader.receive(2, [*head[:3], leader.lead.seq, sent[4], False, 3, 2, [78, 1]])
    assert leader.status().data_loss == (2,)


@MUTANT
def test_h14a_repeated_vote_counts_once(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """Whatever the network repeats, a voter has one vote."""
    if mutant:
        monkeypatch.setattr(Core, "_votes", property(lambda core: set(), lambda core, votes: None), raising=False)
    lab = Lab(5, by_hand=True)
    lab.run(2.0)
    lab.tick(1)
    lab.pump(kind=Type.PREVOTE)
    lab.pump(kind=Type.PREVOTE_REPLY)
    lab.pump(1, 2, Type.VOTE)
    vote = lab.take(2, 1, Type.VOTE_REPLY)[0]
    lab.take()
    lab.deliver(vote, vote)
    assert lab[1].leads() is mutant
    lab.take()
    lab.isolate(1)
    lab.run(2.0)
    with pytest.raises(LabError, match="both lead in term 1") if mutant else contextlib.nullcontext():
        lab.tick(5)
        lab.take(5, 2)
        lab.pump()


def test_late_votes_of_an_older_term_do_not_count() -> None:
    """A vote belongs to its term."""
    lab = Lab(by_hand=True)
    lab.run(2.0)
    lab.tick(1)
    lab.pump(kind=Type.PREVOTE)
    lab.pump(kind=Type.PREVOTE_REPLY)
    lab.pump(1, 2, Type.VOTE)
    vote = lab.take(2, 1, Type.VOTE_REPLY)[0]
    lab.take()
    lab[1].raft.core.adopt_term(7)
    lab.run(2.0)
    lab.tick(1)
    lab.pump(1, 2, Type.PREVOTE)
    lab.pump(2, 1, Type.PREVOTE_REPLY)
    assert lab[1].raft.core.term() == 8
    lab.deliver(vote)
    assert not lab[1].leads()


@pytest.mark.parametrize(
    ("last_index", "last_term", "granted"), [(1, 0, False), (4, 1, False), (3, 2, True), (2, 3, True), (9, 1, False)]
)
def test_vote_goes_to_logs_at_least_as_long(last_index: int, last_term: int, granted: bool) -> None:
    """A candidate whose log lacks entries gets neither pre-vote nor vote (Raft, 5.4.1)."""
    lab = Lab(by_hand=True)
    node = lab[2]
    node.receive(1, append(2, 1, 0, [(1, batch(b"a")), (2, batch(b"b"))]))
    lab.run(2.0)
    lab.take()
    node.receive(3, [GROUP, Type.PREVOTE, 9, last_index, last_term])
    node.receive(3, [GROUP, Type.VOTE, 9, last_index, last_term, False])
    lab.run(0.0)
    assert [envelope.message[3] for envelope in lab.find(2, 3, Type.PREVOTE_REPLY)] == [granted]
    assert (len(lab.find(2, 3, Type.VOTE_REPLY)) == 1) is granted


def test_h14h_node_outside_the_voters_never_stands() -> None:
    """A replica that is not a voter asks for no vote, whatever it hears or does not hear."""
    lab = Lab(3, founders=(2, 3), by_hand=True)
    for _ in range(5):
        lab.tick(1, after=2.0)
    assert lab[1].voters == (2, 3)
    assert lab.find(1) == []
    leader = lab.elect(2)
    leader.set_learners((1,))
    lab.tick(2, after=0.2)
    lab.pump()
    assert lab[1].raft.core.leader() == 2
    lab[1].receive(2, [GROUP, Type.TIMEOUT_NOW, leader.raft.core.term()])
    lab.run(0.0)
    assert lab.find(1) == []
    lab.tick(1, after=2.0)
    assert lab[1].raft.core.leader() == 0, "it no longer names a leader that is silent"
    with pytest.raises(BrokenInvariant, match="not among the voters"):
        lab[1].raft.core.campaign()


def test_single_voter_leads_after_its_silence_and_commits_what_is_durable() -> None:
    """A group of one elects itself, but an entry is committed only once it is on stable storage."""
    lab = Lab(1, by_hand=True)
    lab.tick(1)
    assert not lab[1].leads()
    leader = lab.elect(1)
    assert leader.status().commit_index == 2
    leader.sync_delay = None
    outcome = leader.put(b"a")
    lab.run(0.0)
    assert outcome.answers == []
    leader.sync()
    lab.run(0.0)
    assert outcome.ok
    assert leader.read(quorum=True).code is None
    lab.run(0.0)
    leader.kill()
    leader.start()
    leader = lab.elect(1)
    assert leader.commands() == [b"a"]


def test_five_voters_survive_two() -> None:
    """Five voters go on without any two of them, the leader among these, and not without three."""
    lab = Lab(5)
    leader = lab.wait_for_leader()
    assert lab.commit(leader, b"a").ok
    leader.kill()
    next(replica for replica in lab.nodes.values() if replica.alive).kill()
    leader = lab.wait_for_leader()
    assert lab.commit(leader, b"b").ok
    next(replica for replica in lab.nodes.values() if replica.alive and replica is not leader).kill()
    outcome = leader.put(b"c")
    lab.run(3.0)
    assert outcome.code == Code.UNKNOWN
    assert lab.leader() is None
    for replica in lab.nodes.values():
        if not replica.alive:
            replica.start()
    leader = lab.wait_for_leader()
    assert lab.commit(leader, b"d").ok
    lab.run(1.0)
    assert {tuple(replica.commands()) for replica in lab.nodes.values()} == {tuple(leader.commands())}


# -- leadership transfer


def test_h14d_transfer_works_with_entries_in_flight() -> None:
    """The leadership is handed over once the target holds the whole log; proposals wait and are then refused."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    outcome = leader.put(b"a")
    lab.run(0.0)
    assert leader.transfer(2)
    assert not leader.transfer(3), "one at a time"
    lab.run(0.0)
    waiting = leader.put(b"b")
    lab.run(0.0)
    assert lab.find(kind=Type.TIMEOUT_NOW) == []
    lab.pump()
    assert outcome.ok
    assert lab[2].leads()
    assert waiting.code in (Code.NOT_LEADER, Code.UNAVAILABLE)
    assert lab[2].commands() == [b"a"]
    assert lab[2].raft.core.term() == leader.raft.core.term() == 2


def test_transfer_that_fails_lets_the_leader_go_on() -> None:
    """If the target does not answer, the leader takes proposals again after an election time-out."""
    lab = Lab()
    leader = lab.wait_for_leader()
    target = next(node for node in lab.nodes if node != leader.node)
    lab[target].kill()
    assert leader.transfer(target)
    outcome = leader.put(b"a")
    lab.run(0.5)
    assert outcome.answers == []
    lab.run(0.6)
    assert outcome.ok


def test_transfer_is_refused_where_it_makes_no_sense() -> None:
    """Followers hand nothing over; a leader gives only to another member, once its term is open."""
    lab = Lab(by_hand=True)
    lab.elect(1)
    assert not lab[2].transfer(3)
    assert not lab[1].transfer(1)
    assert not lab[1].transfer(9)


@pytest.mark.parametrize(("sender", "term"), [(3, 1), (1, 0), (1, 2)])
def test_timeout_now_is_taken_from_the_present_leader_only(sender: int, term: int) -> None:
    """A late or foreign request to campaign does nothing."""
    lab = Lab(by_hand=True)
    lab.elect(1)
    lab[2].receive(sender, [GROUP, Type.TIMEOUT_NOW, term])
    lab.run(0.0)
    assert lab[2].raft.core.term() == 1
    assert lab.find(2) == []


def test_h14d_follower_that_missed_its_transfer_stays_calm() -> None:
    """After another node won the election, appends postpone the target's next one as always."""
    lab = Lab()
    leader = lab.wait_for_leader()
    target, other = (node for node in lab.nodes if node != leader.node)
    lab.cut(target, leader.node)
    lab.cut(target, other)
    lab[target].receive(leader.node, [GROUP, Type.TIMEOUT_NOW, leader.raft.core.term()])
    lab.run(0.1)
    lab.heal()
    lab.run(3.0)
    lab.wait_for_leader()
    terms = len(lab.leaders)
    lab.run(5.0)
    assert len(lab.leaders) == terms


def test_best_target_holds_most_of_the_log() -> None:
    """Of the followers in contact the one that is furthest is proposed, at a tie the lowest id."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    lab.run(0.0)
    assert leader.lead.best_target(leader.now()) == 2
    leader.put(b"a")
    lab.run(0.0)
    lab.take(1, 2)
    lab.pump()
    assert leader.lead.best_target(leader.now()) == 3
    lab.run(2.0)
    assert leader.lead.best_target(leader.now()) == 0
