"""Money neither comes nor goes, whatever fails: storms in which all clients work for the bank."""

from __future__ import annotations

from dataclasses import replace

import pytest

from faults.sim.mutants import find
from faults.sim.run import run
from faults.sim.storm import MOVING, Storm

WORK = ("bank",)


@pytest.mark.parametrize("seed", [4, 5, 10, 12, MOVING + 3, MOVING + 4])
def test_a_storm_costs_nobody_money(seed: int) -> None:
    report = run(replace(Storm.draw(seed), workloads=WORK))
    assert report.problems == []
    assert sum(one.done for one in report.history.operations) > 500


@pytest.mark.parametrize(
    ("fault", "seed", "told"),
    [
        ("no dedupe", 3, "bank: happened, then its condition failed"),
        ("writes while frozen", 31, "bank: a scan shows"),
    ],
)
def test_the_bank_notices_planted_faults(fault: str, seed: int, told: str) -> None:
    mutant = find(fault)
    storm = replace(mutant.storm(seed), workloads=WORK)
    with mutant.in_place():
        assert [problem for problem in run(storm).problems if problem.startswith(told)]
    assert run(storm).problems == []
