"""Small messages of a busy stream wait a moment; nothing else does."""

from __future__ import annotations

from raftkv.api.batcher import LONGEST, Batcher
from tests.peer_world import ManualClock

_SHARE = 0.5


class _Clock(ManualClock):
    def pass_by(self, seconds: float) -> None:
        """As advance, with nothing that has to come to rest."""
        passing = self.advance(seconds)
        while True:
            try:
                passing.send(None)
            except StopIteration:
                return


class _World:
    def __init__(self) -> None:
        self.clock = _Clock()
        self.resumed = 0
        self.batcher = Batcher(self.clock, _SHARE, self.resume)

    def resume(self) -> None:
        self.resumed += 1

    def settle(self, answer_time: float) -> None:
        for number in range(1, 200):
            self.batcher.follow(number)
            self.clock.pass_by(answer_time)
            assert abs(self.batcher.answered() - answer_time) < 1e-9
        self.batcher.sent()


def test_an_idle_stream_never_waits() -> None:
    world = _World()
    world.settle(0.01)
    assert not world.batcher.waits(gathered=1, enough=1)


def test_what_travels_together_never_waits() -> None:
    world = _World()
    world.settle(0.01)
    assert not world.batcher.waits(gathered=25, enough=25)


def test_a_small_part_waits_for_a_share_of_the_time_that_answers_take() -> None:
    world = _World()
    world.settle(0.004)
    world.clock.pass_by(0.001)
    assert world.batcher.waits(gathered=2, enough=25)
    assert world.batcher.enough == 25
    world.clock.pass_by(_SHARE * 0.004 - 0.001 - 1e-4)
    assert (world.resumed, world.batcher.waits(3, 25)) == (0, True)
    world.clock.pass_by(2e-4)
    assert world.resumed == 1
    assert not world.batcher.waits(gathered=3, enough=25)
    assert world.batcher.enough == 1


def test_one_timer_serves_all_waits() -> None:
    world = _World()
    world.settle(0.004)
    assert world.batcher.waits(2, 25)
    world.clock.pass_by(0.001)
    # Enough came: a message leaves, and the next one waits anew, from then on.
    assert not world.batcher.waits(25, 25)
    world.batcher.sent()
    assert world.batcher.waits(2, 25)
    world.clock.pass_by(_SHARE * 0.004 - 1e-4)
    assert world.resumed == 0
    world.clock.pass_by(2e-4)
    assert world.resumed == 1


def test_nothing_rings_when_nobody_waits() -> None:
    world = _World()
    world.settle(0.004)
    assert world.batcher.waits(2, 25)
    assert not world.batcher.waits(25, 25)
    world.clock.pass_by(1.0)
    assert world.resumed == 0


def test_nothing_rings_after_the_end_of_the_stream() -> None:
    world = _World()
    world.settle(0.004)
    assert world.batcher.waits(2, 25)
    world.batcher.close()
    world.clock.pass_by(1.0)
    assert (world.resumed, world.batcher.enough) == (0, 1)


def test_the_wait_is_bounded_however_slow_answers_are() -> None:
    world = _World()
    world.settle(3.0)
    assert world.batcher.waits(1, 25)
    world.clock.pass_by(LONGEST + 1e-6)
    assert world.resumed == 1
    assert not world.batcher.waits(1, 25)


def test_a_caller_may_set_another_bound() -> None:
    world = _World()
    world.settle(3.0)
    assert world.batcher.waits(1, 25, 4 * LONGEST)
    world.clock.pass_by(3 * LONGEST)
    assert world.resumed == 0
    world.clock.pass_by(LONGEST + 1e-6)
    assert world.resumed == 1


def test_only_one_operation_is_timed_and_a_lost_one_makes_way() -> None:
    world = _World()
    world.batcher.follow(1)
    world.clock.pass_by(0.5)
    world.batcher.follow(2)
    assert world.batcher.followed == 1
    world.clock.pass_by(1.5)
    world.batcher.follow(3)
    assert world.batcher.followed == 3
    world.clock.pass_by(0.1)
    assert abs(world.batcher.answered() - 0.1) < 1e-9
    assert world.batcher.followed == 0
