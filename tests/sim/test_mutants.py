"""Every planted fault is noticed: what a checker has caught is what it is worth."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.planted.catalogue import PLANTED, find
from faults.planted.search import CACHE, MOST, Lately, search
from faults.sim.run import run
from faults.sim.storm import Storm

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", [fault.name for fault in PLANTED])
def test_each_planted_fault_is_noticed_and_the_same_storm_without_it_passes(name: str) -> None:
    """``python -m faults sim --seed n --mutant NAME`` tells one's story; ``make mutants`` searches for all."""
    lately = Lately(ROOT / CACHE)
    found = search(find(name), MOST, lately.of(name))
    lately.note(found)
    assert found.seed, f"not noticed by {found.tried} storms; the last problem: {found.problem or 'none'}"


def test_a_run_that_ends_with_the_first_problem_tells_the_first_problem() -> None:
    with find("commits alone").in_place():
        whole, early = (run(find("commits alone").storm(1), whole=each) for each in (True, False))
    assert early.problems == whole.problems[:1] != []
    assert early.seconds < whole.seconds
    whole_run, sound = (run(Storm.draw(1), whole=each) for each in (True, False))
    assert whole_run.passed
    assert (sound.problems, sound.digest, sound.counts) == ([], whole_run.digest, whole_run.counts), "nothing ends it"


def test_the_page_tells_what_notices_each_planted_fault() -> None:
    rows = [line for line in (ROOT / "docs" / "simulation.md").read_text().splitlines() if line.startswith("| ")]
    at = rows.index("| planted fault | guards | safeguard that is off | noticed as |")
    wanted = [f"| {' | '.join(fault.row())} |" for fault in PLANTED]
    assert rows[at + 2 : at + 2 + len(PLANTED)] == wanted, "python -m faults mutants --markdown prints the table"
