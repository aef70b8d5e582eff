"""The measurements that need processes work and say something."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.echo import measure
from bench.load import LoadPlan
from bench.rebalance import measure as measure_rebalance
from bench.running import load_command
from bench.targets import Api
from raftkv.testing import LocalCluster
from tests.waiting import PATIENCE


@pytest.mark.parametrize("api", ["pipeline", "unary"])
def test_the_echo_measures_both_operations_in_both_ways(api: Api) -> None:
    for op, workers, clients in (("get", 5, 1), ("set", 5, 3), ("get", 2, 2)):
        assert measure(LoadPlan("", op, api, workers, clients, seconds=0.1, warmup=0.05)) > 0  # type: ignore[arg-type]


def test_a_load_on_a_cluster_of_its_own_tells_the_processor_time_of_client_and_nodes() -> None:
    options = ["--cluster", "1", "--groups", "1", "--workers", "8", "--keys", "50", "--seconds", "0.3", "--warmup", "0"]
    done = CliRunner().invoke(load_command, [*options, "-o", "json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["operations"] > 0
    assert found["errors"] == {}
    assert found["client_us"] > 1
    assert found["busiest_us"] == found["nodes_us"] > 1


def test_a_scenario_is_measured_by_two_processes_and_its_report_written(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "bench", "run", "get", "--nodes", "1", "--processes", "2"]
    options = ["--seconds", "0.3", "--warmup", "0.1", "--repeat", "2", "--data", str(tmp_path)]
    out = tmp_path / "out"
    result = subprocess.run(
        [*command, *options, "--out", str(out), "-o", "json"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found == json.loads((out / "result.json").read_text())
    (scenario,) = found["scenarios"]
    (row,) = scenario["rows"]
    assert (row["nodes"], row["processes"], len(row["runs"])) == (1, 2, 2)
    assert row["operations"] > 0
    assert row["errors"] == {}
    assert scenario["beside"]["fsync"]["per_second"] > 0
    assert scenario["beside"]["echo"]["per_second"] > 0
    assert "2/2 get: GET" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "get-percentiles.svg",
        "report.html",
        "report.md",
        "result.json",
    ]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_a_cluster_grows_to_twice_its_size_and_shrinks_again_under_load() -> None:
    said: list[str] = []
    with LocalCluster(3, 3, slots=256) as cluster:
        found = asyncio.run(measure_rebalance(cluster, 1000, 8, 0.5, said.append, pause=0.05))
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
