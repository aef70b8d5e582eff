"""Scenarios: what is run on which cluster, how rounds and processes become one number, and the files that stay."""

from __future__ import annotations

import contextlib
import json
import random
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import disk, echo, generators, histogram, results, series
from bench.cli import bench
from bench.generators import check, shares
from bench.load import LoadPlan, Measured
from bench.progress import ProgressBar
from bench.report import LoadStats, stats_of, summary_of, together
from bench.scenarios import SCENARIOS, BenchShape, Case, Scenario
from raftkv.errors import Unavailable


def some(op: str = "get", per_second: int = 1000, scale: float = 1.0, seconds: float = 1.0) -> LoadStats:
    """A measurement of one second with latencies of 1 to 10 milliseconds."""
    latencies = array("d", [scale * (1 + 9 * at / per_second) / 1000 for at in range(per_second)])
    plan = LoadPlan("x", op)  # type: ignore[arg-type]
    return stats_of(plan, Measured(latencies, seconds, Counter()))


@dataclass
class Cluster:
    endpoints: str


class World:
    """Clusters and measurements that are only written down."""

    def __init__(self) -> None:
        self.started: list[BenchShape] = []
        self.running = 0
        self.plans: list[LoadPlan] = []

    @contextlib.contextmanager
    def start(self, shape: BenchShape, folder: Path) -> Iterator[Cluster]:
        assert folder.is_dir()
        self.started.append(shape)
        self.running += 1
        assert self.running == 1
        yield Cluster(f"cluster-{len(self.started)}")
        self.running -= 1

    def run(self, plan: LoadPlan) -> LoadStats:
        self.plans.append(plan)
        return some(plan.op, 1000 * len(self.plans))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(echo, "measure", lambda *_: 4000.0)
    return World()


def go(world: World, scenario: Scenario, **options: Any) -> dict[str, Any]:
    chosen = series.Options(seconds=0.02, warmup=0.0, **options)
    return series.measure(scenario, chosen, ProgressBar(1), world.run, world.start)


def test_histograms_of_processes_make_the_histogram_of_all(tmp_path: Path) -> None:
    rng = random.Random(1)
    parts = [array("d", [rng.expovariate(500) for _ in range(2000)]) for _ in range(3)]
    plan = LoadPlan("x", "get", parts=3)
    sent = [
        json.loads(json.dumps(stats_of(plan, Measured(one, 2.0 + at, Counter(Unavailable=at))).packed()))
        for at, one in enumerate(parts)
    ]
    merged = summary_of(plan, together([LoadStats.unpacked(one) for one in sent], 4.0))
    whole = array("d", [latency for one in parts for latency in one])
    assert merged == summary_of(plan, stats_of(plan, Measured(whole, 4.0, Counter(Unavailable=3))))
    assert merged["operations"] == 6000
    assert merged["per_second"] == 1500


def test_nothing_measured_merges_too() -> None:
    nothing = stats_of(LoadPlan("x", "get"), Measured(array("d"), 1.0, Counter()))
    both = together([LoadStats.unpacked(nothing.packed()), some()], 1.0)
    assert both.all_latencies().get_total_count() == 1000
    assert histogram.curve(nothing.all_latencies()) == []


def test_processes_share_workers_clients_and_rate() -> None:
    parts = shares(LoadPlan("x", "get", workers=50, clients=7, rate=900.0, fill=True, parts=4))
    assert [one.workers for one in parts] == [12, 13, 12, 13]
    assert [one.clients for one in parts] == [1, 2, 2, 2]
    assert {one.rate for one in parts} == {225.0}
    assert [one.fill for one in parts] == [True, False, False, False]
    assert [one.part for one in parts] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        (LoadPlan("x", "get", keys=1000, key_size=2), "no 1000 decimal keys of 2 bytes"),
        (LoadPlan("x", "get", workers=2, parts=3), "3 processes share 2 workers"),
        (LoadPlan("x", "get", clients=2, parts=3), "3 processes share 2 clients"),
        (LoadPlan("x", "ycsb-e", api="unary"), "ycsb-e needs more calls than the API unary has"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan: LoadPlan, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        check(plan)


def test_a_generator_that_finds_no_cluster_says_so() -> None:
    plan = LoadPlan("127.0.0.1:1", "get", keys=10, timeout=0.2, workers=1)
    with pytest.raises(Unavailable):
        generators.measure(plan)


def test_rounds_alternate_and_numbers_are_their_medians(world: World) -> None:
    scenario = Scenario("two", "", (Case("g", LoadPlan("", "get")), Case("s", LoadPlan("", "set"))))
    result = go(world, scenario, repeat=3)
    assert [plan.op for plan in world.plans] == ["get", "set"] * 3
    # The n-th measurement reached n thousand.
    assert [row["per_second"] for row in result["rows"]] == [3000, 4000]
    first, _ = result["rows"]
    assert [one["per_second"] for one in first["runs"]] == [1000, 3000, 5000]
    assert first["operations"] == 9000
    assert histogram.decoded(first["histogram"]).get_total_count() == 9000


def test_a_cluster_is_kept_for_the_same_records_and_filled_once(world: World) -> None:
    cases = (
        Case("1", LoadPlan("", "get")),
        Case("2", LoadPlan("", "set")),
        Case("other records", LoadPlan("", "get", value_size=1)),
        Case("other shape", LoadPlan("", "get", value_size=1), BenchShape(groups=1, reads="quorum")),
        Case("inserts", LoadPlan("", "ycsb-d", value_size=1), BenchShape(groups=1, reads="quorum")),
        Case("after inserts", LoadPlan("", "get", value_size=1), BenchShape(groups=1, reads="quorum")),
    )
    result = go(world, Scenario("many", "", cases), nodes=5, processes=2)
    assert [plan.endpoints for plan in world.plans] == [f"cluster-{number}" for number in (1, 1, 2, 3, 3, 4)]
    assert [plan.fill for plan in world.plans] == [True, False, True, True, False, True]
    assert {plan.parts for plan in world.plans} == {2}
    assert {shape.nodes for shape in world.started} == {5}
    assert [row["reads"] for row in result["rows"]] == ["lease"] * 3 + ["quorum"] * 3
    assert world.running == 0


def test_open_loops_arrive_at_a_share_of_what_the_closed_loop_reached(world: World) -> None:
    go(world, SCENARIOS["open-loop-set"], repeat=2)
    rates = [plan.rate for plan in world.plans]
    assert rates == [0.0, 100.0, 250.0, 500.0, 750.0, 900.0, 950.0] * 2


def test_every_scenario_can_be_measured_and_its_axis_tells_its_cases_apart() -> None:
    for name, scenario in SCENARIOS.items():
        assert scenario.name == name
        series.check(scenario, series.Options())
        labels = [case.label for case in scenario.cases]
        assert len(set(labels)) == len(labels)
    assert {f"ycsb-{letter}" for letter in "abcdef"} < set(SCENARIOS)


def test_the_page_stands_alone_and_the_files_say_what_was_measured(world: World, tmp_path: Path) -> None:
    scenarios = [go(world, SCENARIOS[name]) for name in ("groups", "open-loop-get")]
    scenarios.append(
        go(world, Scenario("<b>&", "a name to be escaped", (Case("<i>", LoadPlan("", "get")),))) | {"name": "b"}
    )
    result = {"format": results.FORMAT, "machine": {"cores": 2}, "options": {}, "scenarios": scenarios}
    results.write(tmp_path, result)
    assert json.loads((tmp_path / results.RESULT).read_text()) == result
    page = (tmp_path / results.PAGE).read_text()
    # All it shows is in it, and its policy forbids it to load anything.
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    assert "&lt;i&gt;" in page
    plots = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert plots == [
        "b-percentiles.svg",
        "groups-along.svg",
        "groups-percentiles.svg",
        "open-loop-get-along.svg",
        "open-loop-get-percentiles.svg",
        "open-loop-get-throughput.svg",
    ]
    assert page.count("<svg ") == len(plots)
    assert "prefers-color-scheme: dark" in page
    assert re.search(r'<p class="headline">GET up to [\d,]+/s', page)
    assert '<a href="#open-loop-get">' in page
    assert "get groups 12" in page
    text = (tmp_path / results.MARKDOWN).read_text()
    assert text.count("| latencies in ms | ops/s |") == len(scenarios)
    assert "| <i> | " in text


def test_every_field_of_a_row_is_documented(world: World) -> None:
    documented = set(re.findall(r"``(\w+)``", results.__doc__ or ""))
    for name in ("open-loop-get", "ycsb-e"):
        result = go(world, SCENARIOS[name])
        assert (set(result) | {field for row in result["rows"] for field in row}) - documented == set()


def test_the_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    found = disk.measure(tmp_path, 0.05)
    assert found.per_second > 1
    assert 0 < found.p50_ms <= found.p99_ms
    assert list(tmp_path.iterdir()) == []


def test_the_scenarios_are_listed() -> None:
    listed = CliRunner().invoke(bench, ["run", "--list"])
    assert listed.exit_code == 0
    for name in SCENARIOS:
        assert name in listed.output


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["run"], "name a scenario"),
        (["run", "get", "nonsense"], "there is no scenario nonsense"),
        (["run", "get", "--seconds", "0"], "--seconds"),
        (["run", "get", "--repeat", "0"], "--repeat"),
        (["run", "get", "--out", "full"], "full is not empty"),
        (["run", "get", "--data", "absent"], "does not exist"),
        (["run", "processes", "get", "--processes", "64"], "64 processes share 50 workers"),
        (["load", "--keys", "1000", "--key-size", "2"], "no 1000 decimal keys of 2 bytes"),
        (["load", "--op", "nonsense"], "--op"),
        (["load", "--rate", "-1"], "--rate"),
    ],
)
def test_bad_input_is_a_clear_error(
    arguments: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    (Path("full") / "file").touch()
    done = CliRunner().invoke(bench, arguments)
    assert done.exit_code == 2
    assert what in done.output
