"""Small messages of a busy stream wait a moment; nothing else does."""

from __future__ import annotations

from raftkv.rpc.pace import LONGEST, SHARE, Pace


def _settled(answer_time: float) -> Pace:
    pace = Pace()
    now = 0.0
    for number in range(1, 200):
        pace.follow(number, now)
        now += answer_time
        pace.answered(now)
    return pace


def test_an_idle_stream_never_waits() -> None:
    pace = _settled(0.01)
    pace.sent(10.0)
    assert pace.delay(10.0, gathered=1, outstanding=1) == 0.0


def test_what_travels_together_never_waits() -> None:
    pace = _settled(0.01)
    pace.sent(10.0)
    assert pace.delay(10.0, gathered=25, outstanding=50) == 0.0


def test_a_small_part_waits_for_a_share_of_the_time_that_answers_take() -> None:
    pace = _settled(0.004)
    pace.sent(10.0)
    wait = pace.delay(10.001, gathered=2, outstanding=50)
    assert abs(wait - (SHARE * 0.004 - 0.001)) < 1e-4
    assert pace.delay(10.0 + wait + 0.002, gathered=2, outstanding=50) == 0.0


def test_the_wait_is_bounded_however_slow_answers_are() -> None:
    pace = _settled(3.0)
    pace.sent(0.0)
    assert pace.delay(0.0, gathered=1, outstanding=50) == LONGEST


def test_only_one_operation_is_timed_and_a_lost_one_makes_way() -> None:
    pace = Pace()
    pace.follow(1, 0.0)
    pace.follow(2, 0.5)
    assert pace.followed == 1
    pace.follow(3, 2.0)
    assert pace.followed == 3
    pace.answered(2.1)
    assert pace.followed == 0
