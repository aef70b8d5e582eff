"""Every planted fault is noticed: what a checker has caught is what it is worth."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.sim.mutants import MUTANTS, NOTICED_BY
from faults.sim.run import run
from faults.sim.soak import run_seed
from faults.sim.storm import Storm

PAGE = Path(__file__).parents[2] / "docs" / "simulation.md"


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTICED_BY)
def test_each_planted_fault_is_noticed_by_the_seed_that_once_noticed_it(name: str) -> None:
    """``python -m faults sim --seed n --mutant NAME`` tells one's story; ``make mutants`` searches all seeds anew."""
    assert run_seed(NOTICED_BY[name], name, whole=False).problems


def test_a_run_that_ends_with_the_first_problem_tells_the_first_problem() -> None:
    whole, early = (run_seed(1, "commits alone", whole=each) for each in (True, False))
    assert early.problems == whole.problems[:1] != ()
    assert early.seconds < whole.seconds
    whole_run, sound = (run(Storm.draw(1), whole=each) for each in (True, False))
    assert whole_run.passed
    assert (sound.problems, sound.digest, sound.counts) == ([], whole_run.digest, whole_run.counts), "nothing ends it"


def test_the_page_tells_how_many_seeds_each_planted_fault_took() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    for mutant in MUTANTS:
        wanted = f"| {mutant.name} | {mutant.fault} | {mutant.what} | {NOTICED_BY[mutant.name]} |"
        assert any(row.startswith(wanted) for row in rows), wanted
    assert {*NOTICED_BY} == {mutant.name for mutant in MUTANTS}
