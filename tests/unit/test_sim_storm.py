"""Guarantee: a seed draws the same storm for ever, and the storms together leave nothing out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from faults.sim.nemesis import EFFECTS
from faults.sim.storm import DISK, DRIFT, FASTEST_WILD, GENTLE, KINDS, NETWORK, PROCESS, RUINOUS, Storm
from faults.workloads.kinds import MIXED
from raftkv.raft.config import RaftConfig

SEEDS = range(300)
STORMS = [Storm.draw(seed) for seed in SEEDS]


# -- storms


def drawn(seeds: range) -> str:
    return "\n".join(repr(Storm.draw(seed)) for seed in seeds)


def test_a_storm_depends_on_its_seed_and_nothing_else() -> None:
    assert [Storm.draw(seed) for seed in reversed(SEEDS)] == STORMS[::-1], "nor on what was drawn before"
    command = [sys.executable, "-c", "from tests.unit.test_sim_storm import drawn; print(drawn(range(40)))"]
    other = subprocess.run(
        command,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    assert other.strip() == drawn(range(40)), "in another interpreter with other hashes"


def test_other_seeds_are_other_storms() -> None:
    assert len({repr(storm) for storm in STORMS}) == len(STORMS)
    assert [storm.seed for storm in STORMS] == list(SEEDS)


def test_every_kind_of_fault_occurs_alone_and_with_every_other() -> None:
    """But for drift with wild clocks, which leave nothing of it."""
    together = {frozenset((one, other)) for storm in STORMS for one in storm.faults for other in storm.faults}
    wanted = {frozenset((one, other)) for one in KINDS for other in KINDS}
    assert wanted - together == {frozenset(("drift", "wild clock"))}


def test_every_workload_size_of_cluster_and_read_mode_occurs_often() -> None:
    for count, wanted in (
        (Counter(name for storm in STORMS for name in storm.workloads), set(MIXED)),
        (Counter(storm.nodes for storm in STORMS), {3, 5}),
        (Counter((storm.nodes, storm.replicas) for storm in STORMS), {(3, 3), (5, 3), (5, 5)}),
        (Counter(storm.groups for storm in STORMS), {1, 2, 3}),
        (Counter(storm.settings.reads for storm in STORMS), {"lease", "quorum"}),
        (Counter(storm.wild for storm in STORMS), {True, False}),
        (Counter(storm.gentle for storm in STORMS), {True, False}),
        (Counter(storm.cancels > 0 for storm in STORMS), {True, False}),
    ):
        assert set(count) == wanted
        assert min(count.values()) >= 15


def test_no_storm_mixes_drift_with_wild_clocks() -> None:
    assert not any({"drift", "wild clock"} <= storm.faults.keys() for storm in STORMS)


def test_where_clocks_are_wild_a_majority_is_asked_for_every_read() -> None:
    """Leases promise nothing there."""
    assert all(storm.wild == ("wild clock" in storm.faults) for storm in STORMS)
    wild = [storm for storm in STORMS if storm.wild]
    assert {storm.settings.reads for storm in wild} == {"quorum"}
    assert {storm.fastest_clock for storm in wild} == {FASTEST_WILD}


def test_clocks_that_are_not_wild_stay_within_the_allowance_of_the_lease() -> None:
    for storm in STORMS:
        settings = storm.settings
        config = RaftConfig(settings.election_min, settings.election_max, settings.heartbeat)
        assert config.lease / (1 - DRIFT) < config.election_min / (1 + DRIFT), "by the slowest and the fastest clock"
        assert storm.wild or storm.fastest_clock == 1 + DRIFT


def test_a_gentle_storm_has_one_fault_of_a_minority_at_a_time() -> None:
    gentle = [storm for storm in STORMS if storm.gentle]
    assert [storm.seed for storm in gentle] == list(SEEDS[::10])
    for storm in gentle:
        assert len(storm.faults) == 1
        assert set(storm.faults) <= set(GENTLE)
        assert (storm.replicas, storm.wild, storm.cancels) == (storm.nodes, False, 0.0)
    assert {kind for seed in SEEDS for kind in Storm.draw_gentle(seed).faults} == set(GENTLE)


def test_lost_replies_come_with_the_workload_that_is_meant_for_them() -> None:
    wild = [storm for storm in STORMS if not storm.gentle]
    assert all("drop replies" in storm.faults for storm in wild if "retry" in storm.workloads)


def test_a_storm_can_be_run_as_it_is_drawn() -> None:
    for storm in STORMS:
        assert set(storm.faults) <= set(KINDS)
        assert min(storm.faults.values(), default=1.0) > 0
        assert storm.replicas <= storm.nodes
        assert storm.settings.election_min < storm.settings.election_max
        assert storm.settings.heartbeat < storm.settings.election_min / 2
        assert len(storm.describe()) == 8


def test_every_kind_of_fault_is_known_by_what_it_does() -> None:
    assert len(set(KINDS)) == len(KINDS) == len(NETWORK) + len(DISK) + len(PROCESS)
    assert set(EFFECTS) == set(KINDS)
    assert {*RUINOUS, *GENTLE} <= set(KINDS)
    assert not set(RUINOUS) & set(GENTLE)
