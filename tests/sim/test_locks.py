"""Guarantee: whatever fails, moves or stands still, a lock has one holder that is sure of it, with rising tokens."""

from __future__ import annotations

from faults.check.history import Kind, Outcome
from faults.sim.run import run
from faults.sim.storm import LOCKING, Storm


def test_locks_in_storms() -> None:
    held = 0
    for seed in (LOCKING + 1, LOCKING + 2, LOCKING + 3):
        report = run(Storm.draw(seed))
        assert report.problems == [], seed
        held += sum(one.kind is Kind.INCR and one.outcome is Outcome.OK for one in report.history.operations)
    # How often by each depends on the bytes that nodes write, and so on every change of a format.
    assert held > 45
