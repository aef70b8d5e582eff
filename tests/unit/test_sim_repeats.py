"""Messages that come again: which, and after how long."""

from __future__ import annotations

import random
from collections import Counter

from faults.sim.cluster import _kinds_of_raft
from faults.sim.repeats import Repeats
from raftkv.peer.frames import Encoder
from raftkv.peer.hello import Identity, hello_frame
from raftkv.raft.messages import Type

OFTEN, SELDOM = 1, 2


def drawn(repeats: Repeats, connection: object, times: int = 2000) -> Counter[bytes]:
    """What came again, and how often."""
    rng = random.Random(1)
    return Counter(one for _ in range(times) if (one := repeats.draw(connection, 0.5, rng)) is not None)


def test_nothing_comes_again_over_the_connection_that_carried_it() -> None:
    repeats = Repeats()
    assert drawn(repeats, "first") == {}
    repeats.remember([OFTEN], b"one")
    assert drawn(repeats, "first") == {}
    assert set(drawn(repeats, "second")) == {b"one"}


def test_so_large_a_share_comes_again_as_was_asked_for() -> None:
    repeats, rng = Repeats(), random.Random(1)
    repeats.draw("first", 0.5, rng)
    repeats.remember([OFTEN], b"one")
    assert 900 < drawn(repeats, "second").total() < 1100
    assert all(repeats.draw("second", 0.0, rng) is None for _ in range(100))
    assert all(repeats.draw("second", 1.0, rng) == b"one" for _ in range(100))


def test_a_rare_kind_comes_again_as_often_as_a_frequent_one() -> None:
    repeats = Repeats()
    drawn(repeats, "first")
    repeats.remember([SELDOM], b"vote")
    for number in range(500):
        repeats.remember([OFTEN], b"%d" % number)
    found = drawn(repeats, "second")
    assert 0.4 < found[b"vote"] / found.total() < 0.6


def test_the_latest_and_much_older_ones_come_again() -> None:
    repeats = Repeats()
    drawn(repeats, "first")
    for number in range(2000):
        repeats.remember([OFTEN], b"%d" % number)
    ages = [(1999 - int(data), times) for data, times in drawn(repeats, "second").items()]
    assert max(age for age, _ in ages) < 512, "the memory has a bound"
    assert sum(times for age, times in ages if age < 10) > 200
    assert sum(times for age, times in ages if age > 100) > 200


def test_a_sending_of_no_kind_never_comes_again() -> None:
    repeats = Repeats()
    drawn(repeats, "first")
    repeats.remember([], b"only once")
    assert drawn(repeats, "second") == {}


def test_only_frames_of_raft_between_nodes_may_come_again() -> None:
    def kinds(address: str, *messages: object) -> list[int]:
        return _kinds_of_raft(address, bytes(Encoder().frame_of(messages)))

    vote, stale, ping = [1, Type.VOTE_REPLY, 3], [0, Type.STALE, 3], 7
    assert kinds("n1:7501", vote, ping, stale, vote) == [Type.STALE, Type.VOTE_REPLY]
    assert kinds("n1:7501", ping) == []
    assert kinds("n1:7501", vote, ["forward", 1]) == []
    assert kinds("n1:7501", *hello_frame(Identity("cluster", 1, "folder", "boot"), 2)) == []
    assert kinds("n1:7401", vote) == []
