"""Promises 1 to 5 on simulated clusters: fixed seeds of storms, every history checked, every replica watched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults.cli import FIXED
from faults.sim.run import run
from faults.sim.soak import Summary, cores, soak
from faults.sim.storm import KINDS, Storm


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_storm_of_the_fixed_seeds_breaks_a_promise() -> None:
    """A failure names the seed; ``make sim SEED=n`` repeats it and tells its story."""
    seen: list[Summary] = []
    total = soak(FIXED, cores(), seen.append)
    assert sorted(one.seed for one in seen) == list(FIXED)
    told = [f"make sim SEED={one.seed}\n" + "\n".join([*one.problems, *one.timeline]) for one in total.failed]
    assert not told, "\n\n".join(told)
    counts = total.counts
    assert counts["operations ok"] > 500 * total.runs
    assert counts["operations ok"] > 10 * counts["operations unknown"]
    assert [kind for kind in KINDS if not counts[f"effective {kind}"]] == [], "each kind of fault took effect"
    assert min(counts["snapshots installed"], counts["WALs read after a crash"], counts["states compared"]) > 20


def fingerprint(seed: int) -> str:
    """All that a run came to, in a line."""
    report = run(Storm.draw(seed))
    return f"{report.digest} {report.seconds} {len(report.history.operations)} {sorted(report.counts.items())}"


def elsewhere(seed: int, hash_seed: int) -> str:
    """The same in another interpreter."""
    command = [sys.executable, "-c", f"from tests.sim.test_storms import fingerprint; print(fingerprint({seed}))"]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    ).stdout.strip()


@pytest.mark.parametrize("seed", [2, 10], ids=["storm", "gentle"])
def test_the_same_seed_is_the_same_storm_in_every_process(seed: int) -> None:
    assert elsewhere(seed, 1) == elsewhere(seed, 2) == fingerprint(seed)
