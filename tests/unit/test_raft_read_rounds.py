"""Whom a leader asks whether it still leads: as many followers as a majority needs, the others when those are late."""

from faults.sim.raftlab import Lab
from raftkv.errors import Code
from raftkv.raft.replication import Progress, to_ask

LONGEST = 0.1


def _follower(answer_time: float, acked: int = 0) -> Progress:
    return Progress(1, contact=0.0, acked=acked, answer_time=answer_time)


def _asked(
    voters: dict[int, Progress], since: float = 0.0, now: float = 0.0, down: int = 0, seq: int = 10
) -> list[int]:
    return to_ask(voters, lambda peer: int(peer != down), seq, since, now, LONGEST)


def test_those_that_answer_soonest_are_asked() -> None:
    """The leader is one of the majority; of four, two others are needed, as of five."""
    voters = {2: _follower(0.003), 3: _follower(0.001), 4: _follower(0.002), 5: _follower(0.004)}
    assert _asked(voters) == [3, 4]
    del voters[5]
    assert _asked(voters) == [3, 4]
    del voters[4]
    assert _asked(voters) == [3]


def test_what_was_sent_since_the_round_began_counts() -> None:
    """Entries and heartbeats ask as well, whether they are answered already or not."""
    voters = {2: _follower(0.001, acked=12), 3: _follower(0.002), 4: _follower(0.003), 5: _follower(0.004)}
    assert _asked(voters) == [3]
    voters[4].on_sent(11, 0.0, 0)
    assert _asked(voters) == []
    voters[4].sent.clear()
    voters[4].on_sent(9, 0.0, 0)
    assert _asked(voters) == [3], "that was before the read"


def test_an_append_on_a_link_that_broke_asks_nobody() -> None:
    """Another one is asked at once, and so is the same one on its new link."""
    voters = {2: _follower(0.001), 3: _follower(0.002)}
    voters[2].on_sent(10, 0.0, 0)
    assert _asked(voters) == []
    assert _asked(voters, down=2) == [3]
    voters[2].link_number = 7
    assert _asked(voters) == [2]


def test_all_others_are_asked_when_one_is_late() -> None:
    """Two answer times after the round began, but not before a few milliseconds, nor later than the longest wait."""
    for answer_time, late in ((0.0, 0.01), (0.02, 0.04), (5.0, LONGEST)):
        voters = {2: _follower(answer_time), 3: _follower(9.0), 4: _follower(9.0), 5: _follower(9.0)}
        voters[2].on_sent(10, 1.0, 0)
        voters[3].acked = 10
        assert _asked(voters, since=1.0, now=1.0 + late * 0.9) == []
        assert _asked(voters, since=1.0, now=1.0 + late * 1.1) == [4, 5]


def test_who_is_late_comes_last() -> None:
    """A follower that has stopped is not asked again before it answers, however fast it was."""
    voters = {2: _follower(0.001), 3: _follower(0.05)}
    voters[2].on_sent(5, 0.0, 0)
    assert _asked(voters, since=1.0, now=1.0) == [3]
    voters[2].on_ack(5, 1.0)
    assert voters[2].answer_time > 0.1
    assert _asked(voters, since=1.0, now=1.0) == [3], "what it took shows for a while"


def test_other_voters_need_another_majority() -> None:
    """A round that is under way asks those that the voters of now need, and nobody who does not count."""
    voters = {2: _follower(0.001), 3: _follower(0.002)}
    voters[2].on_sent(10, 0.0, 0)
    assert _asked(voters) == []
    voters[4] = _follower(0.003)
    assert _asked(voters) == [3]
    voters[3].data_loss = True
    assert _asked(voters) == [4]
    del voters[2]
    assert _asked(voters) == [4]
    assert _asked({}) == []


def test_a_stopped_follower_delays_a_read_by_a_moment_only() -> None:
    """Its first quorum read asks the other one a moment later, the next ones ask that one first."""
    lab = Lab()
    leader = lab.wait_for_leader()
    assert lab.commit(leader, b"a").ok
    lab.run(0.5)
    took = []
    first = min(node for node in lab.nodes if node != leader.node)
    lab.cut(first, leader.node)
    for _ in range(10):
        lab.run(0.013)
        began, read = lab.now, leader.read(quorum=True)
        lab.run_until(lambda: read.answers, step=0.001)  # noqa: B023 - called at once
        assert read.code == Code.OK
        took.append(lab.now - began)
    assert max(took) < 0.05
    assert sorted(took)[7] < 0.01


def test_followers_that_are_not_needed_are_left_alone() -> None:
    """Of five voters and a learner two are asked; all the others get is heartbeats."""
    lab = Lab(6, founders=(1, 2, 3, 4, 5), by_hand=True)
    lab.set_learners(6)
    leader = lab.elect(1)
    lab.pump()
    for _ in range(20):
        read = leader.read(quorum=True)
        lab.run(0.0)
        assert len(lab.find(1)) == 2
        lab.pump()
        assert read.ok
