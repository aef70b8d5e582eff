"""The measurements that need processes work and say something."""

from __future__ import annotations

from bench.echo import measure


def test_the_echo_measures_round_trips_and_leaves_no_process() -> None:
    assert measure(1000, 0.3) > 1
