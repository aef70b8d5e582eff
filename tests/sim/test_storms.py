"""Promises 1 to 5 on simulated clusters: fixed seeds of storms, every history checked, every replica watched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from faults.cli import FIXED
from faults.sim.run import run
from faults.sim.soak import RunSummary, run_seed
from faults.sim.storm import KINDS, Storm


@pytest.fixture
def summaries(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that the processes of this run share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "storms"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seed", FIXED)
def test_no_storm_of_the_fixed_seeds_breaks_a_promise(seed: int, summaries: Path) -> None:
    """``make sim SEED=n`` repeats it and tells its story. The storm that ends last judges what all came to."""
    one = run_seed(seed)
    counts = counts_of_all(one, summaries)
    assert not one.problems, "\n".join([f"make sim SEED={seed}", *one.problems, *one.timeline])
    if counts is not None:
        judge(counts)


def counts_of_all(one: RunSummary, summaries: Path) -> Counter[str] | None:
    """Keep those of ``one``; the sum if no other storm is left."""
    unfinished = summaries / f"{one.seed}.unfinished"
    unfinished.write_text(json.dumps(one.counts))
    unfinished.rename(summaries / f"{one.seed}.json")
    files = [summaries / f"{seed}.json" for seed in FIXED]
    if not all(file.exists() for file in files):
        return None
    return sum((Counter(json.loads(file.read_text())) for file in files), Counter())


def judge(counts: Counter[str]) -> None:
    """The storms did much and every kind of fault mattered: else it would say little that no promise was broken."""
    assert counts["operations ok"] > 500 * len(FIXED)
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


@pytest.mark.parametrize("seed", [2, 30], ids=["storm", "gentle"])
def test_the_same_seed_is_the_same_storm_in_every_process(seed: int) -> None:
    assert elsewhere(seed, 1) == elsewhere(seed, 2) == fingerprint(seed)
