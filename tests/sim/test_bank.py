"""Money neither comes nor goes, whatever fails: storms in which all clients work for the bank."""

from __future__ import annotations

from dataclasses import replace

import pytest

from faults.planted.catalogue import find
from faults.planted.search import search
from faults.sim.run import run
from faults.sim.storm import MOVING, Storm

WORK = ("bank",)


@pytest.mark.parametrize("seed", [4, 5, 10, 18, MOVING + 3, MOVING + 4])
def test_a_storm_costs_nobody_money(seed: int) -> None:
    report = run(replace(Storm.draw(seed), workloads=WORK))
    assert report.problems == []
    assert sum(one.done for one in report.history.operations) > 500


@pytest.mark.parametrize("name", ["no dedupe", "writes while frozen"])
def test_the_bank_notices_planted_faults(name: str) -> None:
    fault = find(name)
    banking = replace(fault, noticed_as=("bank",), profile=lambda storm: replace(fault.profile(storm), workloads=WORK))
    assert search(banking).seed
