"""Guarantee: whatever fails, moves or stands still, a lock has one holder that is sure of it, with rising tokens."""

from __future__ import annotations

import pytest

from faults.check.history import Kind, Outcome
from faults.sim.run import run
from faults.sim.storm import LOCKING, Storm


@pytest.mark.parametrize("seed", [LOCKING + 2, LOCKING + 3])
def test_locks_in_a_storm(seed: int) -> None:
    report = run(Storm.draw(seed))
    assert report.problems == []
    counted = [one for one in report.history.operations if one.kind is Kind.INCR and one.outcome is Outcome.OK]
    assert len(counted) > 15, "so often it was held"
