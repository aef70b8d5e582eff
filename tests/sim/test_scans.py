"""Guarantee: whatever fails and moves, a scan misses nothing that stood throughout and gives nothing twice or of
another time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from faults.check.history import Kind, Outcome
from faults.sim.run import run
from faults.sim.storm import MOVING, Storm


@pytest.mark.parametrize("seed", [3, 11, MOVING + 2])
def test_scans_in_a_storm(seed: int) -> None:
    report = run(replace(Storm.draw(seed), workloads=("scans",)))
    assert report.problems == []
    read = [one for one in report.history.operations if one.kind is Kind.GET and one.client[0] == "c"]
    assert sum(one.outcome is Outcome.OK for one in read) > 500
    assert any(one.found for one in read)
