"""Attempts last as long as their group lately needed, and no longer than that for long."""

from __future__ import annotations

from raftkv.api.patience import LEAST, MOST, SLOW, Patience


def test_ordinary_answers_change_nothing() -> None:
    patience = Patience()
    patience.saw(1, SLOW, 0.0)
    assert not patience.needed
    assert patience.of(1, 0.0) == 0.0


def test_a_slow_group_gets_twice_what_it_needed_and_others_do_not() -> None:
    patience = Patience()
    patience.saw(1, 1.2, 0.0)
    assert patience.of(1, 0.0) == 2.4
    assert patience.of(2, 0.0) == 0.0
    patience.saw(1, 0.6, 1.0)
    assert LEAST < patience.of(1, 1.0) <= 2.4
    patience.saw(1, 100.0, 2.0)
    assert patience.of(1, 2.0) == MOST


def test_what_was_needed_is_forgotten() -> None:
    patience = Patience()
    patience.saw(1, 1.2, 0.0)
    assert 1.2 <= patience.of(1, 10.0) <= 1.3
    assert patience.of(1, 20.0) == 0.0
    assert not patience.needed
