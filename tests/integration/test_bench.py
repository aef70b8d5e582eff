"""The measurements that need processes work and say something."""

from __future__ import annotations

import asyncio

import pytest

from bench.echo import measure
from bench.rebalance import measure as measure_rebalance
from raftkv.testing import LocalCluster


def test_the_echo_measures_round_trips_and_leaves_no_process() -> None:
    assert measure(1000, 0.3) > 1


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_cluster_grows_to_twice_its_size_and_shrinks_again_under_load() -> None:
    said: list[str] = []
    with LocalCluster(3, 3, slots=256) as cluster:
        found = asyncio.run(measure_rebalance(cluster, 1000, 8, 0.5, said.append))
        assert cluster.nodes == [1, 2, 3, 4, 5, 6]
        assert [node["state"] for node in cluster.status()["nodes"]] == ["ready"] * 3 + ["removed"] * 3
    assert said[0] == "before"
    assert said[-1] == "after"
    assert found.violations == []
    assert found.lost == 0
    assert set(found.outcomes) == {"ok"}
    assert found.keys == 1000
    for moved, fewest in found.slots_moved:
        assert moved <= 1.03 * fewest + 3
    assert len(found.freezes) > 10
