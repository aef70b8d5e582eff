"""Guarantee: a seed draws the same storm for ever, the storms together leave nothing out, and a planted fault leaves
nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from faults.sim.mutants import MUTANTS, Mutant, find
from faults.sim.nemesis import EFFECTS
from faults.sim.storm import DISK, DRIFT, FASTEST_WILD, GENTLE, KINDS, NETWORK, PROCESS, RUINOUS, Storm
from faults.workloads import MIXED
from raftkv.raft.config import RaftConfig

SEEDS = range(300)
STORMS = [Storm.draw(seed) for seed in SEEDS]

each_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)


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


# -- planted faults


def attributes(target: Any) -> dict[str, Any]:
    """All that a class or module itself holds, inherited things left out."""
    return dict(vars(target))


@contextmanager
def unchanged(mutant: Mutant) -> Iterator[None]:
    """All targets of the mutant are the same objects before and after, no attribute more and none less."""
    before = [(target, attributes(target)) for target, _, _ in mutant.patches]
    yield
    for target, was in before:
        now = attributes(target)
        assert now.keys() == was.keys()
        assert [name for name in was if now[name] is not was[name]] == []


def test_planted_faults_are_told_apart_by_name() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    assert [find(name) for name in names] == list(MUTANTS)
    with pytest.raises(KeyError):
        find("no such fault")


@each_mutant
def test_a_planted_fault_replaces_something_and_goes_without_a_trace(mutant: Mutant) -> None:
    assert mutant.patches
    assert mutant.fault
    assert mutant.what
    with unchanged(mutant):
        before = [getattr(target, name) for target, name, _ in mutant.patches]
        with mutant.in_place():
            planted = [getattr(target, name) for target, name, _ in mutant.patches]
            assert planted == [value for _, _, value in mutant.patches]
            assert all(now is not was for now, was in zip(planted, before, strict=True))
        assert [getattr(target, name) for target, name, _ in mutant.patches] == before


@each_mutant
def test_a_planted_fault_goes_when_the_run_breaks_off(mutant: Mutant) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with unchanged(mutant), pytest.raises(error), mutant.in_place():
            raise error


@each_mutant
def test_a_planted_fault_can_be_planted_again(mutant: Mutant) -> None:
    with unchanged(mutant):
        for _ in range(2):
            with mutant.in_place():
                pass


@each_mutant
def test_the_storm_of_a_planted_fault_has_the_weather_that_it_needs(mutant: Mutant) -> None:
    for seed in range(1, 60):
        storm, plain = mutant.storm(seed), Storm.draw(seed)
        assert storm == mutant.storm(seed), "the same for ever"
        assert storm.seed == seed
        assert set(mutant.faults) <= set(storm.faults) <= set(KINDS)
        if mutant.only:
            assert set(storm.faults) == set(mutant.faults)
        elif storm.moves:
            assert not (storm.members and {*RUINOUS} & {*storm.faults})
        else:
            tamed = set() if storm.wild == plain.wild else {"wild clock"}
            assert set(storm.faults) == {*plain.faults, *mutant.faults} - tamed
        assert storm.replicas <= storm.nodes
        assert storm.workloads


def test_no_storm_of_a_planted_fault_has_leases_where_clocks_are_wild() -> None:
    """Reads would be stale without any fault, and the fault pass for noticed."""
    storms = [(mutant.name, mutant.storm(seed)) for mutant in MUTANTS for seed in range(1, 100)]
    broken = {
        name
        for name, storm in storms
        if "wild clock" in storm.faults and (storm.settings.reads, storm.wild) != ("quorum", True)
    }
    assert broken == set()


def test_every_planted_fault_names_a_kind_of_weather_that_exists() -> None:
    assert {kind for mutant in MUTANTS for kind in mutant.faults} <= set(KINDS)
