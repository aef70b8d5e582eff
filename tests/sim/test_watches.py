"""Guarantee: whatever fails and moves, a watch is told each change once, in order, and whole transactions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from faults.check.history import Outcome
from faults.sim.run import run
from faults.sim.storm import MOVING, Storm


@pytest.mark.parametrize("seed", [4, MOVING + 5])
def test_watches_in_a_storm(seed: int) -> None:
    report = run(replace(Storm.draw(seed), workloads=("watches",)))
    assert report.problems == []
    assert report.history.count(Outcome.OK) > 200
